"""Training images for a GAN: square, all of one size."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.prepared import Sample


def load_square_images(samples: Sequence[Sample], resolution: int) -> NDArray[np.uint8]:
    """Load photographs, pad each to a square with black and scale it.

    Args:
        samples: at least one.
        resolution: side of the result in pixels.

    Returns:
        uint8 [N, resolution, resolution, 3], in the order of the samples.

    Raises:
        UserError: without samples, or when an image cannot be read.
    """
    if not samples:
        raise UserError("no training images for the GAN: the train split is empty; prepare a larger one")
    return np.stack([square(sample.load().image, resolution) for sample in samples])


def square(image: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Put an image in the middle of a black square and scale that to `resolution`.

    Shrinking averages over areas, so that thin vessels fade instead of breaking up.

    Args:
        image: uint8 [H, W, 3].
        resolution: side of the result in pixels.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padded = np.zeros((side, side, 3), np.uint8)
    padded[top : top + height, left : left + width] = image
    if side == resolution:
        return padded
    method = cv2.INTER_AREA if side > resolution else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(padded, (resolution, resolution), interpolation=method), np.uint8)
