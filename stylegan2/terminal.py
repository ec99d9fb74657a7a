"""Text that comes from files, made safe to show: a terminal obeys control characters."""


def printable(text: str, keep: str = "") -> str:
    r"""Write what does not print as an escape sequence of Python: ESC becomes ``\x1b``.

    Besides control characters these are invisible ones that reorder or end lines (such as U+202E), and halves
    of surrogate pairs, which no terminal can show.

    Args:
        text: anything.
        keep: characters to leave as they are, such as line ends.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
