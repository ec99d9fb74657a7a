"""Folders of training images, with or without labels."""

import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stylegan2.errors import StyleGAN2Error

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABELS = "dataset.json"
_SHOWN = 10
# All that Pillow's decoders raise for damaged files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error)
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


def load_image_folder(folder: Path, size: tuple[int, int], resize: bool = False) -> ImageFolder:
    """Load every image below a folder, and their labels if there is a dataset.json.

    The file of labels holds `{"labels": [["a/0001.png", 3], …]}`: a path below the folder and the number of a
    class, or a list of numbers; `{"labels": null}` says that there are none.

    Args:
        folder: is searched at every depth.
        size: height and width that the images must have.
        resize: scale images of another size; what exceeds the aspect ratio is cut off, equally at both ends.

    Raises:
        StyleGAN2Error: naming every image that is unreadable or of another size, and everything that is wrong
            with the labels.
    """
    paths = _image_paths(folder)
    problems: list[str] = []
    loaded: list[NDArray[np.uint8]] = []
    for path in paths:
        try:
            loaded.append(_load(path, size, resize))
        except StyleGAN2Error as error:
            problems.append(str(error))
    names = [path.relative_to(folder).as_posix() for path in paths]
    labels = None
    if (folder / LABELS).is_file():
        try:
            labels = _read_labels(folder / LABELS, names)
        except StyleGAN2Error as error:
            problems.append(str(error))
    if problems:
        more = len(problems) - _SHOWN
        shown = problems[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise StyleGAN2Error(f"{folder} cannot be trained on:\n  - " + "\n  - ".join(shown))
    channels = max(image.shape[2] for image in loaded)
    images = [np.repeat(image, channels // image.shape[2], axis=2) for image in loaded]
    return ImageFolder(np.stack(images), labels)


def image_batches(folder: Path) -> Iterator[NDArray[np.uint8]]:
    """Read the images below a folder one by one, whatever their sizes.

    Yields:
        uint8 [1, H, W, 1 or 3], in the order of their paths.

    Raises:
        StyleGAN2Error: when there is none, or one is unreadable.
    """
    for path in _image_paths(folder):
        yield _load(path)[None]


def _image_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise StyleGAN2Error(f"there is no folder {folder}; expected one with images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise StyleGAN2Error(f"{folder} holds no images; expected files ending in {', '.join(SUFFIXES)}")
    return paths


def _load(path: Path, size: tuple[int, int] | None = None, resize: bool = False) -> NDArray[np.uint8]:
    """Read one image as uint8 [H, W, 1 or 3]."""
    try:
        with Image.open(path) as file:
            deep = _is_deep(file)
            image = file.convert("L" if file.mode in _GREY_MODES else "RGB")
    except (*_DECODING_ERRORS, Image.DecompressionBombError) as error:
        raise StyleGAN2Error(f"{path}: not a readable image ({error})") from None
    if deep:
        raise StyleGAN2Error(f"{path}: more than 8 bits a channel, expected 8; convert it")
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


def _read_labels(path: Path, names: list[str]) -> NDArray[np.float32] | None:
    """Read labels [N, c_dim] in the order of the names; numbers of classes become one-hot."""
    try:
        entries = json.loads(path.read_bytes())["labels"]
        if entries is None:  # images without labels
            return None
        pairs = [(name, label) for name, label in entries]
        known = dict(pairs)
    except (ValueError, KeyError, TypeError) as error:
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
