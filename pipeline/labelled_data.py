"""Labelled images of any dataset that can be read, ready to be scored.

Raw datasets are verified like those of the stage `prepare` and copied, for as long as they are used, into the
layout of prepared data: scores do not depend on which of the two an image came from.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Literal, TypeVar

from pipeline.checks import read_item, verify
from pipeline.errors import Problems, UserError
from pipeline.prepared import SPLITS, Entry, Sample, load_samples, write_prepared
from pipeline.readers.raw import RawFolder, RawItem, open_raw, pair
from pipeline.readers.registry import READERS, Reader

T = TypeVar("T")
SplitName = Literal["train", "validation", "test", "all"]
PREPARED = "prepared"
PHANTOM_LAYOUT = "images/000000.png … and vessels/000000.png …, as `vesselforge phantoms` writes them"


def read_phantoms(folder: RawFolder, problems: Problems) -> list[RawItem]:
    """List what `vesselforge phantoms` drew; it has no split and no masks."""
    images, vessels = folder.images("images"), folder.images("vessels")
    if not images:
        problems.add(f"{folder.path}: no image in images/; expected {PHANTOM_LAYOUT}")
    return [
        RawItem(id=name, image=files["image"], vessels=files["label"], fov=None, patient=name, split=None)
        for name, files in pair(images, {"label": vessels}, lambda file: file.stem, problems).items()
    ]


RAW_READERS: dict[str, Reader] = {**READERS, "phantom": Reader(read_phantoms, PHANTOM_LAYOUT)}
DATASETS: tuple[str, ...] = (*RAW_READERS, PREPARED)


@dataclass(frozen=True)
class LabelledData:
    """The images to be scored.

    Attributes:
        samples: labelled, sorted by id; the files are there as long as `open_labelled` is open.
        split: what they are: `train`, `validation`, `test` or `all`.
        unlabelled: number of images left out because they have no label.
        estimated: number of images whose field of view is estimated, because the dataset has no mask.
    """

    samples: list[Sample]
    split: SplitName
    unlabelled: int
    estimated: int


@contextmanager
def open_labelled(dataset: str, folder: Path, split: SplitName | None = None) -> Iterator[LabelledData]:
    """Read the labelled images of a dataset.

    Args:
        dataset: one of `DATASETS`; `prepared` is a folder that the stage `prepare` wrote.
        folder: where the data lie.
        split: part of the dataset; None for `test` where the dataset is divided, else `all`. `validation` is
            known to prepared data only.

    Raises:
        UserError: with every problem of the images asked for, or because there are none; or TMPDIR names no
            place for copies.
    """
    if dataset == PREPARED:
        yield _read_prepared(folder, split)
        return
    reader = RAW_READERS[dataset]
    place = _place_for_copies()
    with (
        open_raw(folder, reader.layout) as raw,
        TemporaryDirectory(prefix="vesselforge-", dir=place) as copy,
    ):
        problems = Problems(f"{folder}: not usable as {dataset}")
        items = reader.read(raw, problems)
        named = [("unlabelled" if item.vessels is None else item.split, item) for item in items]
        chosen, name = _choose(named, split, problems)
        verify(chosen, problems, progress=True)
        problems.raise_if_any()
        entries = (Entry(read_item(item), "test", str(item.image.source)) for item in chosen)
        samples = write_prepared(Path(copy), entries)
        yield LabelledData(
            samples,
            name,
            unlabelled=sum(item.vessels is None for item in items),
            estimated=sum(item.fov is None for item in chosen),
        )


def _place_for_copies() -> str | None:
    """Give TMPDIR, or None where it is not set: `tempfile` alone would pass over one that is of no use.

    Raises:
        UserError: no file can be written there.
    """
    place = os.environ.get("TMPDIR")
    if not place:
        return None
    try:
        with TemporaryFile(dir=place, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(
            f"TMPDIR is {place}, where no file can be written ({error.strerror}); expected a folder with "
            "room for a copy of the images; set another one, or none for the system's"
        ) from error
    return place


def _read_prepared(folder: Path, split: SplitName | None) -> LabelledData:
    # A wrong manifest is an error of the first call; after it, only a split without images is one.
    found = load_samples(folder, "unlabelled", allow_test=True)
    unlabelled = len(found)
    for name in (name for name in SPLITS if name != "unlabelled"):
        with suppress(UserError):
            found += load_samples(folder, name, allow_test=True)
    problems = Problems(f"{folder}: not usable as {PREPARED}")
    chosen, split = _choose([(sample.split, sample) for sample in found], split, problems)
    problems.raise_if_any()
    return LabelledData(sorted(chosen, key=lambda sample: sample.id), split, unlabelled, estimated=0)


def _choose(
    items: Sequence[tuple[str | None, T]], split: SplitName | None, problems: Problems
) -> tuple[list[T], SplitName]:
    """Take the labelled images of one split, and name it; none is a problem.

    Args:
        items: each with its split, `unlabelled` for all that have no label, None where there is none.
        split: see `open_labelled`.
        problems: receives at most one message.
    """
    counts = Counter("without a split" if part is None else part for part, _ in items)
    is_divided = any(part is not None for part, _ in items)
    name: SplitName = split or ("test" if is_divided else "all")
    chosen = [item for part, item in items if part == name or (name == "all" and part != "unlabelled")]
    if not chosen and (items or not problems):
        held = ", ".join(f"{count} {part}" for part, count in sorted(counts.items())) or "none"
        usable = [part for part in ("test", "validation", "train") if counts[part]]
        usable += ["all"] if sum(counts.values()) > counts["unlabelled"] else []
        advice = f"give --split {' or '.join(usable)}" if usable else "only labelled images can be scored"
        problems.add(f"split {name}: no labelled image; expected one at least, of images: {held}; {advice}")
    return chosen, name
