"""What the subcommands share: options, and how errors are shown.

Nothing here loads torch, so that `--help` answers at once.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import Problems, UserError

if TYPE_CHECKING:
    from pipeline.binarise import Binarisation

Command = Callable[..., None]
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def refuse_nan(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse what `click.FloatRange` lets pass: NaN is neither below nor above a bound."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("got nan; expected a number", context, option)
    return value


def model_option(**settings: Any) -> Decorator:
    """Add -m/--model."""
    return click.option(
        "-m",
        "--model",
        type=click.Path(path_type=Path),
        help="A model folder: models/base, models/retrained or models/ensemble.",
        **settings,
    )


threshold_option: Decorator = click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=refuse_nan,
    help="Vessel where probability ≥ this, and nowhere else [the model's own way to make masks].",
)
device_option: Decorator = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)
threads_option: Decorator = click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads on the processor [one for each core that may be used].",
)
views_option: Decorator = click.option(
    "--views",
    type=click.Choice(["none", "flips", "dihedral"]),
    help="Average over mirror images (4× the time), or over these and quarter turns (8×) [the model's own].",
)
tile_option: Decorator = click.option(
    "--tile",
    type=int,
    help="Predict images of more than TILE × TILE working pixels in tiles of that side [1024].",
)
overwrite_option: Decorator = click.option(
    "--overwrite", is_flag=True, help="Replace results of an earlier run."
)


def shows_errors(command: Command) -> Command:
    """Add --debug, and without it turn UserError into a message without a traceback (exit code 2)."""

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            if debug:
                raise
            raise BadInput(str(error)) from error

    return wrapper


class BadInput(click.ClickException):
    """Ends a command with `Error: message` and exit code 2."""

    exit_code = 2


@contextmanager
def gathering(problems: Problems) -> Iterator[None]:
    """Note a UserError raised inside, its further lines indented, and go on."""
    try:
        yield
    except UserError as error:
        problems.add(str(error).replace("\n", "\n  "))


def views_warning(asked: str | None, own: str, threshold: float | None) -> list[str]:
    """Warn, in one line or none, when masks are made in a way that was fitted to other views.

    Args:
        asked: --views, None where it was not given.
        own: the model's views, see `ModelConfig.views`.
        threshold: --threshold, which replaces what was fitted.
    """
    if asked is None or asked == own or threshold is not None:
        return []
    return [
        f"the model's way to make masks was fitted to views {own}, and is used with views {asked}, whose "
        f"probabilities are spread otherwise: leave out --views, or train with segmenter.views: {asked}"
    ]


def describe_masks(threshold: float, binarisation: "Binarisation | None", *, is_own: bool) -> str:
    """Say in words how masks were made from probabilities.

    Args:
        threshold: probability from which on a pixel is vessel, where there is no binarisation.
        binarisation: the model's, if it was used.
        is_own: whether this is the model's own way, and not --threshold.
    """
    text = f"threshold {threshold:g}"
    if binarisation is not None:
        text = f"threshold {binarisation.threshold:g}"
        if binarisation.hysteresis_low is not None:
            text += f" with hysteresis down to {binarisation.hysteresis_low:g}"
        if binarisation.min_size > 1:
            text += f", parts of {binarisation.min_size} pixels or more"
    return text + (" (the model's own)" if is_own else " (as given)")


def unwritable(error: OSError, output: Path) -> str:
    """Say that a result cannot be written."""
    return (
        f"{error.filename or output}: cannot be written ({error.strerror}); expected a folder with room that "
        "you may write to; give another one with -o"
    )
