"""What the subcommands share: types and checks of their arguments, and how errors are shown.

Nothing here loads torch at the top, so that `--help` answers at once.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import click

from stylegan2.errors import StyleGAN2Error
from stylegan2.terminal import printable

if TYPE_CHECKING:
    import torch

    from stylegan2.networks.generator import Generator

P = ParamSpec("P")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_ITEM = re.compile(r"(\d+)(?:\s*-\s*(\d+))?", re.ASCII)
_MAX_GRID_BYTES = 2**30
_NOISE = {"const": "the network's own", "random": "drawn from the seed", "none": "none"}


class NumberRanges(click.ParamType):
    """Whole numbers and ranges of them, both ends included: `0-35,77`.

    Args:
        name: plural of what is counted, for messages.
        highest: largest number that is allowed.
        most: largest count of numbers.
        unique: whether a number that occurs twice is an error.
    """

    def __init__(self, name: str, highest: int, most: int, unique: bool = True) -> None:
        self.name = name
        self.highest = highest
        self.most = most
        self.unique = unique

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Show the form instead of the type's name."""
        return "A-B,C,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """Parse; click shows what `parse` finds wrong."""
        if not isinstance(value, str):
            return list(value)
        try:
            return self.parse(value)
        except StyleGAN2Error as error:
            self.fail(str(error), param, ctx)

    def parse(self, text: str) -> list[int]:
        """Give the numbers in the order in which they stand.

        Raises:
            StyleGAN2Error: naming every part of the text that cannot be used.
        """
        problems: list[str] = []
        ranges: list[range] = []
        for item in text.split(","):
            try:
                ranges.append(self._parse_item(item.strip()))
            except StyleGAN2Error as error:
                problems.append(str(error))
        count = sum(len(numbers) for numbers in ranges)
        if count > self.most:
            problems.append(f"{count} {self.name}, expected at most {self.most}")
        if problems:
            raise StyleGAN2Error(f"{text!r}: " + "; ".join(problems))
        numbers = [number for part in ranges for number in part]
        if self.unique and len(set(numbers)) < count:
            twice = sorted({number for number in numbers if numbers.count(number) > 1})[:5]
            raise StyleGAN2Error(f"{text!r}: named more than once: {', '.join(map(str, twice))}")
        return numbers

    def _parse_item(self, item: str) -> range:
        match = _ITEM.fullmatch(item)
        if match is None:
            hint = "is empty" if not item else "is not a number ≥ 0 or a range of them"
            raise StyleGAN2Error(f"{item!r} {hint}; expected for example 0-35,77")
        # Lengths are compared first: Python refuses to read thousands of digits.
        digits = [group.lstrip("0") or "0" for group in match.groups() if group is not None]
        if any(len(number) > 10 or int(number) > self.highest for number in digits):
            raise StyleGAN2Error(f"{_shortened(item)!r} is out of range; expected 0 to {self.highest}")
        first, last = int(digits[0]), int(digits[-1])
        if last < first:
            raise StyleGAN2Error(f"{item!r} ends before it starts; did you mean {last}-{first}?")
        return range(first, last + 1)


SEEDS = NumberRanges("seeds", highest=2**32 - 1, most=1_000_000)
FEW_SEEDS = NumberRanges("seeds", highest=2**32 - 1, most=1_000)
KEY_SEEDS = NumberRanges("seeds", highest=2**32 - 1, most=10_000, unique=False)
LAYERS = NumberRanges("layers", highest=999, most=1_000)


class Problems:
    """Gathers everything that is wrong with a command's arguments, to show it at once.

    Args:
        messages: problems that are known already.
    """

    def __init__(self, *messages: str) -> None:
        self.messages = list(messages)

    def add(self, *messages: str) -> None:
        """Note problems: what was got, what was expected, what to do."""
        self.messages += messages

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Note a StyleGAN2Error raised inside and go on."""
        try:
            yield
        except StyleGAN2Error as error:
            self.add(str(error))

    def raise_if_any(self) -> None:
        """Raise StyleGAN2Error with every problem; do nothing when there is none."""
        if len(self.messages) == 1:
            raise StyleGAN2Error(self.messages[0])
        if self.messages:
            lines = "\n".join(f"  - {message}" for message in self.messages)
            raise StyleGAN2Error(f"{len(self.messages)} problems:\n{lines}")


def shows_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn StyleGAN2Error and failures of files into messages without a traceback (exit code 1).

    They may quote a file, so what does not print is escaped.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except StyleGAN2Error as error:
            raise click.ClickException(printable(str(error), keep="\n")) from error
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(printable(f"{place}{error.strerror or error}", keep="\n")) from error

    return wrapper


def example(command: str) -> str:
    """Give the end of a help text: an example whose line is not broken."""
    return f"\b\nExample:\n  {command}"


# As text: in a path, ./ would be lost, and with it the difference to the name of a shipped network.
network_argument: Decorator = click.argument("network", metavar="NETWORK_DIR")
device_option: Decorator = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)
overwrite_option: Decorator = click.option(
    "--overwrite", is_flag=True, help="Replace files of an earlier run."
)
class_option: Decorator = click.option(
    "--class",
    "class_index",
    type=int,
    metavar="N",
    help="Class to draw, from 0; needed exactly by networks with classes.",
)
resize_option: Decorator = click.option(
    "--resize", is_flag=True, help="Scale and crop images of another size."
)
batch_option: Decorator = click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Images computed at once."
)


def truncation_options(default: float = 1.0) -> Decorator:
    """Add --trunc and --cutoff."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--cutoff", type=int, metavar="N", help="Truncate only the first N layers [all]."
        )(command)
        return click.option(
            "--trunc",
            "psi",
            type=float,
            default=default,
            show_default=True,
            metavar="PSI",
            help="Truncation ψ: 1 = full variety, 0 = the mean image.",
        )(command)

    return decorate


def output_option(metavar: str, help_text: str) -> Decorator:
    """Add -o/--out."""
    kind = click.Path(path_type=Path)
    return click.option("-o", "--out", required=True, type=kind, metavar=metavar, help=help_text)


def noise_option(*modes: str) -> Decorator:
    """Add --noise-mode, which is one of these; the first one is the default."""
    words = [_NOISE[mode] for mode in modes]
    return click.option(
        "--noise-mode",
        type=click.Choice(modes),
        default=modes[0],
        show_default=True,
        help=f"Noise inputs: {', '.join(words[:-1])}, or {words[-1]}.",
    )


@dataclass(frozen=True)
class Drawing:
    """What the commands that draw images share; see `drawing_options`.

    Attributes:
        network: folder of the network, or the name of one that comes with this package.
        psi: truncation ψ.
        cutoff: layers to truncate, from the first on; None = all.
        class_index: class to draw; None without classes.
        batch: images computed at once.
        device: name of it.
        out: folder or file to write to.
        overwrite: whether files of an earlier run may be replaced.
    """

    network: str
    psi: float
    cutoff: int | None
    class_index: int | None
    batch: int
    device: str
    out: Path
    overwrite: bool

    def load_generator(
        self,
        seeds: Sequence[int] | None,
        problems: Problems,
        check: Callable[["Generator"], Sequence[str]] = lambda generator: (),
    ) -> "Generator":
        """Load the network onto its device, and say what computes there.

        Args:
            seeds: to draw from; None = from w itself, to which truncation and class do not apply.
            problems: what is wrong with the command's other arguments.
            check: names what is wrong with those that depend on the network.

        Raises:
            StyleGAN2Error: with all problems: these, and those of device, network, seeds, truncation, class.
        """
        from stylegan2.ops.selection import announce_implementation
        from stylegan2.sampling import load_generator, sampling_problems
        from stylegan2.sources import find_network_folder

        with problems.gather():
            place = select_device(self.device)
        with problems.gather():
            generator = load_generator(find_network_folder(self.network))
            if seeds is not None:
                problems.add(
                    *sampling_problems(
                        generator,
                        seeds,
                        self.psi,
                        class_index=self.class_index,
                        truncation_cutoff=self.cutoff,
                    )
                )
            problems.add(*check(generator))
        problems.raise_if_any()
        announce_implementation(place)  # now, not amid a progress bar
        return generator.to(place)


def drawing_options(metavar: str, help_text: str) -> Decorator:
    """Add network, truncation, class, batch, device, output and --overwrite: the argument `drawing`."""
    options = (
        *(network_argument, truncation_options(), class_option, batch_option, device_option),
        *(output_option(metavar, help_text), overwrite_option),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gathered(**arguments: Any) -> None:
            drawing = Drawing(**{field.name: arguments.pop(field.name) for field in fields(Drawing)})
            command(drawing=drawing, **arguments)

        decorated: Callable[..., Any] = gathered
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def folder_problems(folder: Path, overwrite: bool) -> list[str]:
    """Name what keeps a command from filling a folder: it is a file, or holds something already."""
    if folder.exists() and not folder.is_dir():
        return [f"{folder} is a file; expected a folder, which may be new"]
    if folder.is_dir() and not overwrite and any(folder.iterdir()):
        return [f"{folder} is not empty; name another folder, or --overwrite to replace files in it"]
    return []


def file_problems(path: Path, overwrite: bool) -> list[str]:
    """Name what keeps a command from writing a file: it is a folder, or there already."""
    if path.is_dir():
        return [f"{path} is a folder; expected the name of a file"]
    if path.exists() and not overwrite:
        return [f"{path} exists; name another file, or --overwrite to replace it"]
    return []


def grid_problems(generator: "Generator", images: int, what: str) -> list[str]:
    """Say when a picture made of so many images would be too large to hold in memory."""
    height, width = generator.img_size
    size = images * height * width * generator.img_channels
    if size <= _MAX_GRID_BYTES:
        return []
    most = _MAX_GRID_BYTES // (height * width * generator.img_channels)
    return [
        f"{what}: {images} images of {width}×{height} are too many for one picture; expected at most {most}"
    ]


def select_device(name: str) -> "torch.device":
    """Give the device of that name; `auto` is CUDA where there is one, else the processor.

    On CUDA, kernels are made deterministic and TensorFloat-32 is switched off, so that pictures come close to
    those of the processor.

    On the processor, the process keeps the memory that tensors free for the next ones.

    Raises:
        StyleGAN2Error: when the name is unknown or the device is not there.
    """
    import torch

    from stylegan2.ops.allocation import keep_freed_memory
    from stylegan2.precision import use_full_precision

    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name, flags=re.ASCII):
        raise StyleGAN2Error(f"device: got {name!r}, expected auto, cpu, mps, cuda or cuda:N, such as cuda:0")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps" and not torch.backends.mps.is_available():
        raise StyleGAN2Error("device: got 'mps', but torch sees no Apple GPU; use auto or cpu")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise StyleGAN2Error(
                f"device: got {name!r}, but torch sees {count or 'no'} CUDA devices; use auto or cpu"
            )
        use_full_precision()
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def _shortened(text: str, length: int = 24) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
