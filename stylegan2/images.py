"""Pictures as arrays and tensors: value ranges, grids, PNG files."""

import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.files import write_atomically


def from_uint8(images: Tensor) -> Tensor:
    """Map 0..255 to −1..1 (float32)."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Map −1..1 to the nearest of 0..255; values beyond are clamped."""
    # Dropping the fraction of x + ½ rounds x to the nearest integer, the same way on every device.
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def image_grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Lay images out in rows.

    Args:
        images: [N, H, W, C].
        columns: images per row; the last row may be filled up with black.

    Returns:
        [rows · H, columns · W, C].
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[:count] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)  # [rows, H, columns, W, C]
    return grid.reshape(rows * height, columns * width, channels)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write [H, W, 1 or 3] as PNG: the same picture gives the same bytes, and no half-written file stays.

    Raises:
        StyleGAN2Error: for another number of channels.
    """
    channels = image.shape[2]
    if channels not in (1, 3):
        raise StyleGAN2Error(f"{path.name}: got {channels} channels, expected 1 or 3")
    encoded = io.BytesIO()
    Image.fromarray(image[:, :, 0] if channels == 1 else image).save(encoded, "PNG", compress_level=6)
    write_atomically(path, encoded.getvalue())
