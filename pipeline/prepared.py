"""Prepared data on disk: a folder of PNGs at native size with `manifest.csv`, written once, read by all.

    manifest.csv  id, split, image, vessels, fov, width, height, sha256, source
    images/ID.png  colour      vessels/ID.png  0 and 255      fov/ID.png  0 and 255

A folder holds either development data (splits `train` and `validation`) or test data (splits `test`, and
`unlabelled` where a challenge keeps the labels). Reading test data has to be asked for by name.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import Problems, TestSetError, UserError
from pipeline.images import Array8, ArrayBool, read_mask, read_rgb, write_png

Split = Literal["train", "validation", "test", "unlabelled"]
SPLITS: tuple[Split, ...] = get_args(Split)
TEST_SPLITS: tuple[Split, ...] = ("test", "unlabelled")
MANIFEST = "manifest.csv"
COLUMNS = ("id", "split", "image", "vessels", "fov", "width", "height", "sha256", "source")


@dataclass(frozen=True)
class Frame:
    """One image in memory.

    Attributes:
        id: name, unique in its data set.
        image: uint8 [H, W, 3].
        vessels: bool [H, W], or None when unlabelled.
        fov: bool [H, W], the field of view.
    """

    id: str
    image: Array8
    vessels: ArrayBool | None
    fov: ArrayBool


@dataclass(frozen=True)
class Entry:
    """One image to be written: its split, and the original file (or generator) that it came from."""

    frame: Frame
    split: Split
    source: str


@dataclass(frozen=True)
class Sample:
    """One row of a manifest, with the paths resolved.

    Attributes:
        width, height: pixels of the image and of both masks.
        sha256: hash of the image's decoded pixels, see `pixel_sha256`.
        source: the original file's name, or `phantom(seed,index)`.
    """

    id: str
    split: Split
    image: Path
    vessels: Path | None
    fov: Path
    width: int
    height: int
    sha256: str
    source: str

    def load(self) -> Frame:
        """Read the image and its masks.

        Raises:
            UserError: a file is unreadable, or its size is not the manifest's.
        """
        frame = Frame(
            id=self.id,
            image=read_rgb(self.image),
            vessels=None if self.vessels is None else read_mask(self.vessels),
            fov=read_mask(self.fov),
        )
        for path, array in ((self.image, frame.image), (self.vessels, frame.vessels), (self.fov, frame.fov)):
            if array is not None and array.shape[:2] != (self.height, self.width):
                raise UserError(
                    f"{path}: {array.shape[1]}×{array.shape[0]} pixels; {MANIFEST} says {self.width}×"
                    f"{self.height}; run the stage `prepare` again"
                )
        return frame


def pixel_sha256(image: Array8) -> str:
    """Return the SHA-256 of an image's size and decoded pixels, whatever file format it came in."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def write_prepared(folder: Path, entries: Iterable[Entry]) -> list[Sample]:
    """Write a folder of prepared data, one entry at a time; the manifest is sorted by id.

    Args:
        folder: does not exist yet, or is empty.
        entries: all of the development set or all of the test set, in any order.

    Returns:
        The samples as written, sorted by id.

    Raises:
        ValueError: an id occurs twice, or the entries mix development and test splits.
    """
    for name in ("images", "vessels", "fov"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    samples: dict[str, Sample] = {}
    for entry in entries:
        frame = entry.frame
        if frame.id in samples:
            raise ValueError(f"id {frame.id!r} occurs twice")
        samples[frame.id] = _write_entry(folder, entry)
    if len({sample.split in TEST_SPLITS for sample in samples.values()}) > 1:
        raise ValueError(f"{folder}: development and test data must be written to different folders")

    ordered = [samples[key] for key in sorted(samples)]
    with (folder / MANIFEST).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(_row(sample, folder) for sample in ordered)
    return ordered


def load_samples(folder: Path, split: Split, *, allow_test: bool = False) -> list[Sample]:
    """List one split of a prepared folder, sorted by id; the images are not read yet.

    Args:
        folder: a folder that `write_prepared` wrote.
        split: `train`, `validation`, `test`, or `unlabelled` (test images without labels; may be none).
        allow_test: whether the caller may read the test set (only `evaluate` and `report` may).

    Raises:
        TestSetError: `split` is of the test set and `allow_test` is False.
        UserError: the manifest is missing or wrong, files are missing, or the split holds no image.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    if split in TEST_SPLITS and not allow_test:
        raise TestSetError(
            f"{folder}: the split `{split}` was asked for, but only evaluate and report may read the test "
            "set; select models and thresholds on `validation`"
        )
    samples = [sample for sample in _read_manifest(folder) if sample.split == split]
    if not samples and split != "unlabelled":
        raise UserError(f"{folder / MANIFEST}: no image of the split `{split}`; check the section `prepare`")
    return samples


def _write_entry(folder: Path, entry: Entry) -> Sample:
    frame = entry.frame
    name = f"{frame.id}.png"
    height, width = frame.image.shape[:2]
    sample = Sample(
        id=frame.id,
        split=entry.split,
        image=folder / "images" / name,
        vessels=None if frame.vessels is None else folder / "vessels" / name,
        fov=folder / "fov" / name,
        width=width,
        height=height,
        sha256=pixel_sha256(frame.image),
        source=entry.source,
    )
    write_png(sample.image, frame.image)
    write_png(sample.fov, frame.fov)
    if sample.vessels is not None and frame.vessels is not None:
        write_png(sample.vessels, frame.vessels)
    return sample


def _row(sample: Sample, folder: Path) -> list[str]:
    image, vessels, fov = (
        "" if path is None else path.relative_to(folder).as_posix()
        for path in (sample.image, sample.vessels, sample.fov)
    )
    size = [str(sample.width), str(sample.height)]
    return [sample.id, sample.split, image, vessels, fov, *size, sample.sha256, sample.source]


def _read_manifest(folder: Path) -> list[Sample]:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise UserError(f"{manifest}: missing; expected a folder of prepared data; run the stage `prepare`")
    problems = Problems(f"{manifest} is not a usable manifest; run the stage `prepare` again")
    with manifest.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            problems.add(f"columns {', '.join(reader.fieldnames or ())}; expected {', '.join(COLUMNS)}")
            problems.raise_if_any()
        samples = list(_parse_rows(folder, reader, problems))
    if len({sample.id for sample in samples}) < len(samples):
        problems.add("an id occurs twice")
    if len({sample.split in TEST_SPLITS for sample in samples}) > 1:
        problems.add("development and test splits in one folder; expected one or the other")
    problems.raise_if_any()
    return samples


def _parse_rows(folder: Path, reader: "csv.DictReader[str]", problems: Problems) -> Iterator[Sample]:
    for row in reader:
        where = f"line {reader.line_num}"
        if None in row.values() or None in row:
            problems.add(f"{where}: not {len(COLUMNS)} fields")
            continue
        split = next((known for known in SPLITS if known == row["split"]), None)
        if split is None or not (row["width"].isdecimal() and row["height"].isdecimal()):
            problems.add(f"{where}: split {row['split']!r}, size {row['width']!r}×{row['height']!r}")
            continue
        if (row["vessels"] == "") != (split == "unlabelled"):
            problems.add(f"{where}: split {split} with vessels {row['vessels']!r}")
        names = [row[key] for key in ("image", "vessels", "fov") if row[key] or key != "vessels"]
        problems_before = len(problems)
        for name in names:
            if ".." in Path(name).parts or Path(name).is_absolute() or not (folder / name).is_file():
                problems.add(f"{where}: no file {name!r} in {folder}")
        if len(problems) == problems_before:
            yield Sample(
                id=row["id"],
                split=split,
                image=folder / row["image"],
                vessels=folder / row["vessels"] if row["vessels"] else None,
                fov=folder / row["fov"],
                width=int(row["width"]),
                height=int(row["height"]),
                sha256=row["sha256"],
                source=row["source"],
            )
