"""Reading and writing images: colour, grey, masks, and probabilities as 16-bit PNG.

Every file is opened by Python's own `open`, so that an audit hook sees which files a stage reads, and decoded
from memory. The pixels are taken as stored: EXIF orientation is ignored, because labels are drawn on the
stored pixels.
"""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError

_PNG_COMPRESSION = 6  # fixed: equal pixels give equal bytes
_GZIP_MAGIC = b"\x1f\x8b"
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)

Array8 = npt.NDArray[np.uint8]
ArrayBool = npt.NDArray[np.bool_]
ArrayFloat = npt.NDArray[np.float32]


def read_rgb(path: Path) -> Array8:
    """Read an image as colour.

    Grey images are repeated over the three channels, 16-bit grey is scaled to 8 bits, an alpha channel is
    dropped. A gzip-compressed file (`.ppm.gz`) is unpacked first.

    Returns:
        uint8 [H, W, 3], 0..255.

    Raises:
        UserError: the file is missing, truncated, or no image.
    """
    image = _decode(path)
    if image.mode in _SIXTEEN_BIT:
        grey = (_as_uint16(image, path) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{path}: floating-point pixels; expected 8 or 16 bits; convert it to PNG")
    return np.array(image.convert("RGB"))


def read_gray(path: Path) -> Array8 | npt.NDArray[np.uint16]:
    """Read an image of one channel.

    A colour file passes when its three channels are equal. A palette of greys gives the greys, a palette of
    colours gives the indices (as segmentation tools write class maps). One-bit files give 0 and 255.

    Returns:
        [H, W], uint8, or uint16 for a 16-bit file.

    Raises:
        UserError: the file is missing, truncated, no image, coloured, or of floating-point pixels.
    """
    image = _decode(path)
    if image.mode in _SIXTEEN_BIT:
        return _as_uint16(image, path)
    if image.mode == "F":
        raise UserError(f"{path}: floating-point pixels; expected 8 or 16 bits; convert it to PNG")
    if image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))
    colours = np.array(image.convert("RGB"))
    if np.array_equal(colours[..., 0], colours[..., 1]) and np.array_equal(colours[..., 0], colours[..., 2]):
        return np.ascontiguousarray(colours[..., 0])
    if image.mode == "P":
        return np.array(image)
    raise UserError(f"{path}: a colour image; expected one grey channel; save the mask as 8-bit grey PNG")


def read_mask(path: Path) -> ArrayBool:
    """Read a mask as this project writes it: every pixel that is not 0 is set.

    Returns:
        bool [H, W].

    Raises:
        UserError: see `read_gray`.
    """
    return read_gray(path) != 0


def write_png(path: Path, array: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> None:
    """Write uint8 [H, W, 3] as colour, uint8 [H, W] as grey, or bool [H, W] as grey of 0 and 255.

    Equal arrays give equal bytes. The folder must exist.

    Raises:
        ValueError: the array has another shape or type.
    """
    is_grey, is_colour = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3
    if array.dtype not in (np.uint8, np.bool_) or not (is_grey or (is_colour and array.dtype == np.uint8)):
        raise ValueError(
            f"cannot write {array.dtype} {array.shape}; expected uint8 [H, W(, 3)] or bool [H, W]"
        )
    scale = 255 if array.dtype == np.bool_ else 1
    _write(path, array.astype(np.uint8) * np.uint8(scale))


def write_probability(path: Path, probability: ArrayFloat) -> None:
    """Write a probability map as 16-bit grey PNG: 0 stands for 0.0 and 65535 for 1.0.

    Args:
        path: where to; the folder must exist.
        probability: float [H, W], 0..1.

    Raises:
        ValueError: the array is not two-dimensional, or a value is NaN or outside 0..1.
    """
    if probability.ndim != 2 or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"cannot write {probability.shape} as probabilities; expected [H, W] within 0..1")
    _write(path, np.round(probability.astype(np.float64) * 65535).astype(np.uint16))


def read_probability(path: Path) -> ArrayFloat:
    """Read what `write_probability` wrote.

    Returns:
        float32 [H, W], 0..1, within 1/131070 of what was written.

    Raises:
        UserError: the file is unreadable, or not of 16 bits.
    """
    array = read_gray(path)
    if array.dtype != np.uint16:
        raise UserError(f"{path}: {array.dtype} pixels; expected a 16-bit grey PNG of probabilities")
    return (array.astype(np.float32) / np.float32(65535)).astype(np.float32)


def _write(path: Path, array: npt.NDArray[np.unsignedinteger]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", compress_level=_PNG_COMPRESSION)
    path.write_bytes(buffer.getvalue())


def _decode(path: Path) -> Image.Image:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image file") from error
    try:
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        image = Image.open(io.BytesIO(content))
        image.load()
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: no image, or cut off early ({len(content)} bytes); expected PNG, TIFF, JPEG, GIF, "
            "BMP or PPM; fetch the file again or convert it"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{path}: truncated or damaged image ({error}); fetch the file again") from error
    return image


def _as_uint16(image: Image.Image, path: Path) -> npt.NDArray[np.uint16]:
    array = np.asarray(image)
    if array.min() < 0 or array.max() > 65535:
        raise UserError(f"{path}: pixels from {array.min()} to {array.max()}; expected 8 or 16 bits")
    return array.astype(np.uint16)
