"""Reading and writing images: colour, grey, masks, and probabilities as 16-bit PNG.

Every file is opened by Python's own `open`, so that an audit hook sees which files a stage reads, and decoded
from memory. What is taken from it:

- The pixels as stored. EXIF and TIFF orientation is ignored for photographs, labels and masks alike: labels
  are drawn on the stored pixels, and not every tool that writes them keeps the tag.
- The first frame of an animation, the first page of a TIFF.
- The colours of transparent pixels: alpha (RGBA, LA, transparent palettes) is dropped, nothing is blended.
- No more than `MOST_PIXELS`.

What cannot be interpreted surely (floating-point numbers, CMYK, Lab) is refused rather than guessed.
"""

import gzip
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.errors import UserError

MOST_PIXELS = (
    100_000_000  # several times the largest fundus cameras; a bigger file is a mistake, or an attack
)

_MOST_UNPACKED = 2**30  # bytes of a gzip'd file; uncompressed, 100 megapixels of 16-bit colours have 600 MB
_CHUNK = 2**20
# Whatever a file is named. Of other kinds Pillow may start programs: Ghostscript.
_FORMATS = ("PNG", "TIFF", "JPEG", "GIF", "BMP", "PPM")
_PNG_COMPRESSION = 6  # fixed: equal pixels give equal bytes
_GZIP_MAGIC = b"\x1f\x8b"
_LEAST_PEAK = 0.25  # of the range; a 16-bit file whose brightest pixel is darker holds 12- or 14-bit data
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
_REFUSED = {
    "F": "floating-point pixels, whose range is not known",
    "CMYK": "CMYK colours, which depend on a printer's profile",
}
_BROKEN = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)
# Pillow turns TIFFs upright, but nothing else; these turn them back.
_UNTURN = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}

Array8 = npt.NDArray[np.uint8]
ArrayBool = npt.NDArray[np.bool_]
ArrayFloat = npt.NDArray[np.float32]


def read_rgb(path: Path) -> Array8:
    """Read an image as colour.

    Grey images are repeated over the three channels, one-bit images become 0 and 255, 16 bits (of which
    65535 is white) are scaled to 8, an alpha channel is dropped. A gzip-compressed file (`.ppm.gz`) is
    unpacked first.

    Returns:
        uint8 [H, W, 3], 0..255.

    Raises:
        UserError: the file is missing, truncated, too large, or no image; or its brightness cannot be told:
            a 16-bit file that uses less than a quarter of its range (12-bit data, say), 32 bits, or what
            this module refuses.
    """
    image, is_deep = _decode(path)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two are 16 bits, handed out as 32
        raise UserError(
            f"{path}: signed or 32-bit integers, whose range is not known; expected 8 or 16 bits; scale the "
            "brightest possible value to 255 and save 8 bits"
        )
    if image.mode in _SIXTEEN_BIT:
        levels = _as_uint16(image, path)
        _check_range(path, int(levels.max()))
        grey = (levels // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    colours = np.array(image.convert("RGB"))
    if is_deep:  # of 16-bit colours Pillow hands out the higher byte
        _check_range(path, int(colours.max()) * 257)
    return colours


def read_gray(path: Path) -> Array8 | npt.NDArray[np.uint16]:
    """Read an image of one channel.

    A colour file passes when its three channels are equal. A palette of greys gives the greys, a palette of
    colours gives the indices (as segmentation tools write class maps). One-bit files give 0 and 255.

    Returns:
        [H, W], uint8, or uint16 for a 16-bit file.

    Raises:
        UserError: the file is missing, truncated, too large, no image, coloured, or of floating-point pixels.
    """
    image, _ = _decode(path)
    if image.mode in _SIXTEEN_BIT:
        return _as_uint16(image, path)
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


def _decode(path: Path) -> tuple[Image.Image, bool]:
    """Decode a file; also tell whether it stores more than 8 bits, which the decoded mode may hide."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected an image file") from error
    try:
        if content.startswith(_GZIP_MAGIC):
            content = _unpack(path, content)
        opened = _open(path, content)
        is_deep = _stores_more_than_8_bits(opened)
        image = _load_as_stored(opened)
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path}: no image, cut off early ({len(content)} bytes), or of an uncommon pixel type (such as "
            "floating-point colours); expected PNG, TIFF, JPEG, GIF, BMP or PPM of 8 or 16 bits; fetch the "
            "file again or convert it"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{path}: truncated or damaged image ({error}); fetch the file again") from error
    if image.mode not in (*_EIGHT_BIT, *_SIXTEEN_BIT):
        what = _REFUSED.get(image.mode, f"{image.mode} colours")
        raise UserError(f"{path}: {what}; expected grey or RGB of 8 or 16 bits; convert it to PNG")
    image.info.pop("transparency", None)  # dropped like every alpha; Pillow would warn
    return image, is_deep


def _unpack(path: Path, content: bytes) -> bytes:
    """Unpack gzip up to a limit: a small file may hold any number of zeros."""
    unpacked = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while chunk := file.read(_CHUNK):
            unpacked += chunk
            if len(unpacked) > _MOST_UNPACKED:
                raise UserError(
                    f"{path}: gzip that unpacks to more than {_MOST_UNPACKED:,} bytes; expected an image "
                    "below that; save it as PNG or TIFF"
                )
    return bytes(unpacked)


def _open(path: Path, content: bytes) -> ImageFile:
    """Read the header; what is too large is refused before memory is taken for it."""
    expected = f"expected at most {MOST_PIXELS // 1_000_000} megapixels; scale it down or cut it into parts"
    with warnings.catch_warnings():
        # Pillow warns below this module's limit and fails above it; the limit below stands for both.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise UserError(f"{path}: too large an image; {expected}") from error
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{path}: {image.width}×{image.height} pixels; {expected}")
    return image


def _stores_more_than_8_bits(image: ImageFile) -> bool:
    """Look at how the decoder is told to read the file (such as `RGB;16B`); known before loading only."""
    arguments = [tile[3] for tile in image.tile]
    if image.format == "PPM":  # (mode, largest value)
        return any(isinstance(given, tuple) and given[-1] > 255 for given in arguments)
    return any(";16" in str(given) for given in arguments)


def _load_as_stored(image: ImageFile) -> Image.Image:
    tag = ExifTags.Base.Orientation
    orientation = image.getexif().get(tag) if isinstance(image, TiffImageFile) else None
    image.load()
    if orientation in _UNTURN and tag not in image.getexif():  # Pillow removes the tag when it turns
        turned = image.transpose(_UNTURN[orientation])
        turned.format = image.format
        return turned
    return image


def _check_range(path: Path, peak: int) -> None:
    if peak < _LEAST_PEAK * 65536:
        raise UserError(
            f"{path}: 16-bit pixels of which the brightest is about {peak}; expected 65535 for white, and "
            f"some pixel of {_LEAST_PEAK * 65536:.0f} or more; it seems to hold data of fewer bits, such as "
            "12: scale them to the full range (12 bits: times 16) or save 8 bits"
        )


def _as_uint16(image: Image.Image, path: Path) -> npt.NDArray[np.uint16]:
    array = np.asarray(image)
    if array.min() < 0 or array.max() > 65535:
        raise UserError(f"{path}: pixels from {array.min()} to {array.max()}; expected 8 or 16 bits")
    return array.astype(np.uint16)
