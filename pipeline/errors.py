"""The one exception a person sees without a traceback, and a list that gathers many problems into it."""

from collections.abc import Iterator


class UserError(Exception):
    """Bad input from outside the program: it is shown as a message, without a traceback, exit code 2.

    The message says what was got, what was expected and what to do.
    """


class TestSetError(UserError):
    """The test split was asked for where only training and validation data may be read."""

    __test__ = False  # not a pytest class


class Problems:
    """Gathers every problem of a file, a folder or a configuration, to report them all at once.

    Example:
        problems = Problems("data/raw/mine is not usable")
        problems.add("labels/3.png: 17 grey levels; expected two (0 and another); threshold it first")
        problems.raise_if_any()
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Note one problem: where, what was got, what was expected, what to do."""
        self.messages.append(message)

    def __iter__(self) -> Iterator[str]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def raise_if_any(self) -> None:
        """Raise UserError with every gathered message, one a line; do nothing when there is none."""
        if self.messages:
            count = len(self.messages)
            lines = "\n".join(f"  - {message}" for message in self.messages)
            raise UserError(f"{self.title} ({count} problem{'s' if count > 1 else ''}):\n{lines}")
