"""Training images in a folder or a ZIP file, with or without labels."""

import io
import json
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stylegan2.errors import StyleGAN2Error

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABELS = "dataset.json"
# What SUFFIXES stand for, whatever a file is named. Of other kinds Pillow may start programs: Ghostscript.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_MEMBER_BYTES = 2**30  # of a file in a ZIP: its header may promise anything
_PIECE = 2**20  # bytes unpacked at once
# The others are unpacked in one go, however large, whatever number of bytes zipfile is asked for.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_COMPRESSION_NAMES = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz"}
_SHOWN = 10
# All that Pillow's decoders raise for damaged files.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error),
    Image.DecompressionBombError,
)
# All that zipfile raises for damaged or encrypted files.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, LookupError),
    *(RuntimeError, struct.error),
)
_ZIP_EXTRAS = "__MACOSX/"  # a second, unreadable file beside each file that macOS packs
_GREY_MODES = ("L", "1", "LA")
_MOST_CLASSES = 1 << 16
_LARGEST_NUMBER = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ImageFolder:
    """Images of one size.

    Attributes:
        images: uint8 [N, H, W, 1 or 3], in the order of their paths; 1 channel if all are grey-scale.
        labels: float32 [N, c_dim]; None without a file of labels.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Files:
    """The files of a folder or ZIP file.

    Attributes:
        place: path of the folder or ZIP file.
        images: names of the images, in the order of their paths.
        has_labels: whether there is a file of labels.
        misplaced: names of the files that would be labels if they lay at the top.
        read: gives the content of a file; raises StyleGAN2Error that does not name it.
    """

    place: Path
    images: list[str]
    has_labels: bool
    misplaced: list[str]
    read: Callable[[str], bytes]


def load_image_folder(
    folder: Path, size: tuple[int, int], resize: bool = False, purpose: str = "trained on"
) -> ImageFolder:
    """Load every image below a folder or in a ZIP file, and their labels if there is a dataset.json.

    The file of labels holds `{"labels": [["a/0001.png", 3], …]}`: a path below the folder and the number of a
    class, or a list of numbers; `{"labels": null}` says that there are none.

    An EXIF orientation is applied. Nothing of a ZIP file, whose files are stored or deflated, is unpacked to
    disk.

    Args:
        folder: is searched at every depth; or a ZIP file of images.
        size: height and width that the images must have.
        resize: scale images of another size; what exceeds the aspect ratio is cut off, equally at both ends.
        purpose: what they cannot be, for messages.

    Raises:
        StyleGAN2Error: naming every image that is unreadable, transparent, deeper than 8 bits or of another
            size, and everything that is wrong with the labels.
    """
    with _open_files(folder) as files:
        problems: list[str] = []
        loaded: list[NDArray[np.uint8]] = []
        for name in files.images:
            try:
                loaded.append(_load(files, name, size, resize))
            except StyleGAN2Error as error:
                problems.append(str(error))
        labels = None
        if files.has_labels:
            try:
                labels = _read_labels(files)
            except StyleGAN2Error as error:
                problems.append(str(error))
        elif files.misplaced:
            problems.append(
                f"found {', '.join(files.misplaced[:_SHOWN])} ({len(files.misplaced)} in all); {LABELS} must "
                f"lie at the top, with the images' paths from there, or be given with the folder that it is "
                f'in; {{"labels": null}} at the top says that there are none'
            )
    if problems:
        more = len(problems) - _SHOWN
        shown = problems[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise StyleGAN2Error(f"{folder} cannot be {purpose}:\n  - " + "\n  - ".join(shown))
    channels = max(image.shape[2] for image in loaded)
    images = [np.repeat(image, channels // image.shape[2], axis=2) for image in loaded]
    return ImageFolder(np.stack(images), labels)


def image_batches(folder: Path) -> Iterator[NDArray[np.uint8]]:
    """Read the images below a folder, or in a ZIP file, one by one, whatever their sizes.

    Yields:
        uint8 [1, H, W, 1 or 3], in the order of their paths.

    Raises:
        StyleGAN2Error: when there is none, or one is unreadable, transparent or deeper than 8 bits.
    """
    with _open_files(folder) as files:
        for name in files.images:
            yield _load(files, name)[None]


@contextmanager
def _open_files(place: Path) -> Iterator[_Files]:
    if place.is_dir():
        paths = sorted(path for path in place.rglob("*") if _is_image(path.name) and path.is_file())
        names = [path.relative_to(place).as_posix() for path in paths]
        _check_any(place, names)
        has_labels = (place / LABELS).is_file()
        deeper = [] if has_labels else [path for path in place.rglob(LABELS) if path.is_file()]
        misplaced = sorted(path.relative_to(place).as_posix() for path in deeper)
        yield _Files(place, names, has_labels, misplaced, lambda name: _read_file(place / name))
    elif place.is_file():
        try:
            archive = zipfile.ZipFile(place)
        except _ZIP_ERRORS as error:
            raise StyleGAN2Error(
                f"{place} is not a usable ZIP file ({error}); expected a folder or a ZIP file of images"
            ) from None
        with archive:
            yield _zip_files(place, archive)
    else:
        raise StyleGAN2Error(f"there is no folder {place}; expected one with images, or a ZIP file of images")


def _zip_files(place: Path, archive: zipfile.ZipFile) -> _Files:
    """List a ZIP file. Names in it are nothing but names here: no path is made of them."""
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.startswith(_ZIP_EXTRAS)
    ]
    counts = Counter(member.filename for member in members)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise StyleGAN2Error(
            f"{place}: more than one file of the name {', '.join(twice[:_SHOWN])} ({len(twice)} names in "
            "all); pack the images again"
        )
    known = {member.filename: member for member in members}
    names = sorted(filter(_is_image, known), key=PurePosixPath)  # as in a folder
    _check_any(place, names)

    misplaced = sorted(name for name in known if PurePosixPath(name).name == LABELS and name != LABELS)
    return _Files(place, names, LABELS in known, misplaced, lambda name: _read_member(archive, known[name]))


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a file into memory, never more than its header promises (and one piece, on the way)."""
    if member.compress_type not in _COMPRESSIONS:
        method = _COMPRESSION_NAMES.get(member.compress_type, f"method {member.compress_type}")
        raise StyleGAN2Error(f"is compressed with {method}, expected Deflate or none; pack it again")
    if member.file_size > MAX_MEMBER_BYTES:
        raise StyleGAN2Error(
            f"has {member.file_size:,} bytes, expected at most {MAX_MEMBER_BYTES:,}; leave it out"
        )
    content = io.BytesIO()
    try:
        with archive.open(member) as file:
            # zipfile stops at the promised size, and then compares the checksum.
            while piece := file.read(min(_PIECE, member.file_size + 1 - content.tell())):
                content.write(piece)
    except _ZIP_ERRORS as error:
        raise StyleGAN2Error(f"cannot be read from the ZIP file ({error}); pack it again") from None
    return content.getvalue()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StyleGAN2Error(f"cannot be read ({error.strerror or error})") from None


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _check_any(place: Path, names: list[str]) -> None:
    if not names:
        raise StyleGAN2Error(f"{place} holds no images; expected files ending in {', '.join(SUFFIXES)}")


def _load(
    files: _Files, name: str, size: tuple[int, int] | None = None, resize: bool = False
) -> NDArray[np.uint8]:
    """Read one image as uint8 [H, W, 1 or 3]."""
    path = files.place / name
    try:
        image = decode_image(files.read(name))
    except UnidentifiedImageError:  # its text names an object in memory
        raise StyleGAN2Error(f"{path}: not a readable image, of no kind that is known") from None
    except StyleGAN2Error as error:
        raise StyleGAN2Error(f"{path}: {error}") from None
    except DECODING_ERRORS as error:
        raise StyleGAN2Error(f"{path}: not a readable image ({error})") from None
    if size is not None and image.size != size[::-1]:
        height, width = size
        if not resize:
            raise StyleGAN2Error(
                f"{path}: got {image.height}×{image.width} (height × width), expected {height}×{width}; "
                "resize the images first, or let --resize do it"
            )
        image = _fill(image, width, height)
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def decode_image(content: bytes) -> Image.Image:
    """Decode an image file, and turn it as its EXIF orientation says.

    Returns:
        An image of mode L, or RGB.

    Raises:
        StyleGAN2Error: it has more than 8 bits a channel, or makes use of transparency; the file is not
            named.
        DECODING_ERRORS: what Pillow raises for a file that is damaged or no image.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as file:
        if _is_deep(file):
            raise StyleGAN2Error("more than 8 bits a channel, expected 8; convert it")
        if not is_opaque(file):
            raise StyleGAN2Error("got transparency, expected none; convert it")
        image = ImageOps.exif_transpose(file)
        if image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns when a palette loses its transparency
        return image.convert("L" if file.mode in _GREY_MODES else "RGB")


def is_opaque(image: Image.Image) -> bool:
    """Whether no pixel makes use of transparency, be it an alpha channel or a transparent colour."""
    if not image.has_transparency_data:
        return True
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest == 255


def _is_deep(file: Image.Image) -> bool:
    """Whether a file has more than 8 bits a channel; must be asked before its pixels are read.

    Pillow gives colour of 16 bits as `RGB`; only how the data is to be decoded tells of the depth.
    """
    tiles = getattr(file, "tile", [])
    return file.mode.startswith(("I", "F")) or any(";16" in str(part) for tile in tiles for part in tile[3:])


def _fill(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale an image to cover width × height and cut off the rest."""
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _read_labels(files: _Files) -> NDArray[np.float32] | None:
    """Read labels [N, c_dim] in the order of the images; numbers of classes become one-hot."""
    path, names = files.place / LABELS, files.images
    try:
        content = files.read(LABELS)
    except StyleGAN2Error as error:
        raise StyleGAN2Error(f"{path}: {error}") from None
    try:
        entries = json.loads(content)["labels"]
        if entries is None:  # images without labels
            return None
        pairs = [(name, label) for name, label in entries]
        known = dict(pairs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StyleGAN2Error(
            f'{path}: {error!r}; expected {{"labels": [["image.png", 0], …]}} with a class or a list for '
            "each image"
        ) from None
    counts = Counter(name for name, _ in pairs)
    twice = [name for name in names if counts[name] > 1]
    missing = [name for name in names if name not in known]
    problems = [
        f"{path}: {what} for {', '.join(some[:_SHOWN])} ({len(some)} in all)"
        for what, some in (("no label", missing), ("more than one label", twice))
        if some
    ]
    if problems:
        raise StyleGAN2Error("; ".join(problems))
    values = [known[name] for name in names]
    if all(_is_class(value) for value in values):
        one_hot = np.zeros((len(values), max(values) + 1), np.float32)  # [N, c_dim]
        one_hot[np.arange(len(values)), values] = 1
        return one_hot
    if all(_is_vector(value) and len(value) == len(values[0]) for value in values):
        return np.asarray(values, np.float32)
    raise StyleGAN2Error(
        f"{path}: expected for every image a class from 0 to {_MOST_CLASSES - 1}, or for every image a list "
        "of equally many finite numbers"
    )


def _is_class(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_CLASSES


def _is_vector(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    numbers = all(isinstance(number, int | float) and not isinstance(number, bool) for number in value)
    return numbers and all(abs(number) <= _LARGEST_NUMBER for number in value)  # NaN is not
