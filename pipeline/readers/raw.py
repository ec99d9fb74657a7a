"""What every reader shares: the raw folder with its zip files, and the list of images found in it."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline.errors import Problems, UserError

IMAGE_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".jpg", ".jpeg", ".gif", ".bmp", ".ppm", ".pgm", ".pbm"})

OfficialSplit = Literal["train", "test", "unlabelled"]


@dataclass(frozen=True)
class RawFile:
    """A file of the raw dataset: where it lies now, and its path within the dataset or zip file."""

    path: Path
    source: PurePosixPath

    @property
    def name(self) -> str:
        """The file's name."""
        return self.source.name

    @property
    def stem(self) -> str:
        """The file's name without its suffix: `im0001.ah` for `im0001.ah.ppm.gz`."""
        return PurePosixPath(self.name.removesuffix(".gz")).stem

    def below(self, folder: str) -> "RawFile":
        """The same file with its source moved into `folder`."""
        return RawFile(self.path, folder / self.source)

    @property
    def is_image(self) -> bool:
        """Whether the suffix is one of an image, possibly gzip-compressed."""
        return PurePosixPath(self.name.lower().removesuffix(".gz")).suffix in IMAGE_SUFFIXES


@dataclass(frozen=True)
class RawItem:
    """One photograph and the files that belong to it.

    Attributes:
        id: name, unique in the dataset; becomes the file name of the prepared image.
        image: the photograph.
        vessels: its manual segmentation; None if and only if `split` is `unlabelled`.
        fov: the field-of-view mask; None where the dataset has none (it is estimated then).
        patient: images of one patient never lie in different splits.
        split: the official split; None where the dataset has none.
    """

    id: str
    image: RawFile
    vessels: RawFile | None
    fov: RawFile | None
    patient: str
    split: OfficialSplit | None


@dataclass(frozen=True)
class RawFolder:
    """A dataset's folder under `data/raw`, its zip files unpacked; files sorted by source."""

    path: Path
    files: tuple[RawFile, ...]

    def images(self, *parents: str) -> list[RawFile]:
        """Image files whose innermost folders are `parents`, e.g. `images("training", "mask")`."""
        return [
            file
            for file in self.files
            if file.is_image and (not parents or file.source.parent.parts[-len(parents) :] == parents)
        ]


class MissingDatasetError(UserError):
    """There is no folder where the raw dataset should be."""


@contextmanager
def open_raw(path: Path, expected: str) -> Iterator[RawFolder]:
    """Open a raw dataset; zip files in its top folder are unpacked to a temporary folder meanwhile.

    A zip file is left alone when a folder of the same name lies beside it (it has been unpacked already).
    Hidden files and macOS's `__MACOSX` folders are passed over.

    Args:
        path: the dataset's folder.
        expected: the expected layout in words, for the error message.

    Raises:
        MissingDatasetError: there is no such folder.
        UserError: the folder holds no image, or a zip file is damaged or unsafe.
    """
    if not path.is_dir():
        raise MissingDatasetError(
            f"{path}: no such folder; expected {expected}. Get the data from its owner and put it there "
            "(see data/README.md)"
        )
    archives = [
        archive
        for archive in sorted(path.iterdir())
        if archive.suffix.lower() == ".zip" and archive.is_file() and not archive.with_suffix("").is_dir()
    ]
    with TemporaryDirectory(prefix="vesselforge-") as temporary:
        files = list(_walk(path))
        for archive in archives:
            target = Path(temporary) / archive.name
            _unpack(archive, target)
            inside = list(_walk(target))
            # training.zip may hold training/images/… or images/…: both become training/images/…
            is_nested = all(file.source.parts[0] == archive.stem for file in inside)
            files += inside if is_nested else [file.below(archive.stem) for file in inside]
        if not files:
            raise UserError(f"{path}: holds no image; expected {expected} (see data/README.md)")
        yield RawFolder(path, tuple(sorted(files, key=lambda file: file.source)))


def pair(
    images: Sequence[RawFile],
    others: Mapping[str, Sequence[RawFile]],
    key: Callable[[RawFile], str],
    problems: Problems,
) -> dict[str, dict[str, RawFile]]:
    """Match files of several kinds by a key taken from their names; report whatever stays alone or clashes.

    Args:
        images: the photographs.
        others: the further kinds that every photograph must have, e.g. `{"label": [...], "mask": [...]}`.
        key: gives a file's key.
        problems: receives one message for each file without a partner and each key that occurs twice.

    Returns:
        For every complete set: key → kind → file, with kind `image` for the photograph; sorted by key.
    """
    kinds = {"image": images, **others}
    by_kind: dict[str, dict[str, RawFile]] = {kind: {} for kind in kinds}
    for kind, files in kinds.items():
        for file in files:
            first = by_kind[kind].setdefault(key(file), file)
            if first is not file:
                problems.add(
                    f"{file.source}: the second {kind} for {key(file)!r}, after {first.source}; expected "
                    "one; keep the original (augmented copies of a dataset often look like this)"
                )
    keys = sorted(set().union(*by_kind.values()))
    complete: dict[str, dict[str, RawFile]] = {}
    for name in keys:
        present = {kind: files[name] for kind, files in by_kind.items() if name in files}
        missing = [kind for kind in kinds if kind not in present]
        if missing:
            sources = ", ".join(str(file.source) for file in present.values())
            problems.add(
                f"{sources}: no {' and no '.join(missing)} for {name!r}; expected one of each; add what is "
                "missing or take the rest out"
            )
        else:
            complete[name] = present
    return complete


def _walk(root: Path) -> Iterator[RawFile]:
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "__MACOSX"]
        for name in names:
            file = Path(folder) / name
            raw = RawFile(file, PurePosixPath(file.relative_to(root).as_posix()))
            if not name.startswith(".") and raw.is_image:
                yield raw


def _unpack(archive: Path, target: Path) -> None:
    """Unpack the images of a zip file; names that lead out of `target` are refused, not rewritten."""
    try:
        with zipfile.ZipFile(archive) as content:
            members = [member for member in content.infolist() if not member.is_dir()]
            for member in members:
                name = PurePosixPath(member.filename.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or ":" in str(name):
                    raise UserError(
                        f"{archive}: holds {member.filename!r}, a path that leads out of the archive; "
                        "expected the official file; fetch it from the dataset's owner"
                    )
                if RawFile(archive, name).is_image:
                    file = target / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(content.read(member))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise UserError(f"{archive}: a damaged or protected zip file ({error}); fetch it again") from error
