"""The one exception that this package raises on purpose."""


class StyleGAN2Error(ValueError):
    """A value that cannot be used: the message says what was got, what was expected and what to do."""
