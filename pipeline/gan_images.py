"""Training images for a GAN: all of one size."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.laterality import Side, turn_disc
from pipeline.prepared import Sample


def load_images(
    samples: Sequence[Sample], size: tuple[int, int], disc_side: Side | None = None
) -> NDArray[np.uint8]:
    """Load photographs, pad each with black to one aspect ratio and scale it.

    Args:
        samples: at least one.
        size: height and width of the result in pixels.
        disc_side: mirror those photographs whose optic disc lies on the other side; None mirrors none.

    Returns:
        uint8 [N, height, width, 3], in the order of the samples.

    Raises:
        UserError: without samples, or when an image cannot be read.
    """
    if not samples:
        raise UserError("no training images for the GAN: the train split is empty; prepare a larger one")
    images = [fit(sample.load().image, size) for sample in samples]
    if disc_side is not None:
        images = [turn_disc(image, disc_side) for image in images]
    return np.stack(images)


def fit(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Put an image in the middle of a black one of the wanted aspect ratio and scale that.

    Shrinking averages over areas, so that thin vessels fade instead of breaking up.

    Args:
        image: uint8 [H, W, 3].
        size: height and width of the result in pixels.
    """
    height, width = image.shape[:2]
    # The smallest canvas of the ratio size[0] : size[1] that holds the image.
    canvas_height = max(height, -(-width * size[0] // size[1]))
    canvas_width = max(width, -(-height * size[1] // size[0]))
    top, left = (canvas_height - height) // 2, (canvas_width - width) // 2
    padded = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    padded[top : top + height, left : left + width] = image
    if padded.shape[:2] == size:
        return padded
    method = cv2.INTER_AREA if canvas_height > size[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(padded, (size[1], size[0]), interpolation=method), np.uint8)
