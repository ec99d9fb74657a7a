"""Left and right eyes: on which side of a fundus photograph the optic disc lies, and turning it over.

In a photograph centred on the macula the optic disc lies on the nasal side: to the right in a right eye, to
the left in a left one. A generator that is shown both has to learn two mirror-image retinas; shown one, it
spends all it has on that one, and mirroring its images afterwards gives the other back.
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Side = Literal["left", "right"]

_WIDTH = 128
# In fractions of the image width: the disc is about 0.1 to 0.2 wide, vessels and noise are far finer.
_DISC_SIGMA, _SURROUNDINGS_SIGMA = 0.03, 0.15
_RIM = 0.1  # kept clear of: the edge of the field of view is bright in some photographs
_BAND = (0.3, 0.7)  # of the height: where the disc lies in a macula-centred photograph
_DARKEST_RETINA = 25  # of 255, brightest channel: below it lies the camera's black surround


def disc_contrast(image: NDArray[np.uint8]) -> float:
    """How much better the right half of a photograph shows an optic disc than the left one.

    The measure is the largest difference between the green light of a disc-sized neighbourhood and of a wide
    one, both averaged inside the field of view, in the middle band of the image.

    Args:
        image: uint8 [H, W, 3], RGB, of a retina centred about the macula.

    Returns:
        Grey levels: > 0 when the disc is on the right, < 0 when it is on the left; 0 where neither half shows
        any retina away from the rim.
    """
    if image.shape[1] > _WIDTH:  # a disc is to be seen at any size, and wide blurs are slow
        size = (_WIDTH, max(1, round(image.shape[0] * _WIDTH / image.shape[1])))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    height, width = image.shape[:2]
    fov = (image.max(axis=2) > _DARKEST_RETINA).astype(np.float32)
    green = image[:, :, 1].astype(np.float32) * fov
    excess = _local_mean(green, fov, _DISC_SIGMA * width) - _local_mean(
        green, fov, _SURROUNDINGS_SIGMA * width
    )
    rim = max(3, int(_RIM * width) | 1)
    inside = cv2.erode(fov, np.ones((rim, rim), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    top, bottom = (round(part * height) for part in _BAND)
    excess = np.where(inside, excess, -np.inf)[top:bottom]
    halves = excess[:, : width // 2], excess[:, (width + 1) // 2 :]  # empty ones in images of 1 or 2 pixels
    left, right = (float(half.max(initial=-np.inf)) for half in halves)
    if left == right:  # no retina in either: −∞ twice
        return 0.0
    return float(np.clip(right - left, -255, 255))


def turn_disc(image: NDArray[np.uint8], side: Side) -> NDArray[np.uint8]:
    """Mirror a photograph, if need be, so that its optic disc comes to lie on the wanted side.

    Args:
        image: uint8 [H, W, 3], RGB.
        side: where the disc shall lie.

    Returns:
        uint8 [H, W, 3]: the image, or its mirror image.
    """
    contrast = disc_contrast(image)
    turned = contrast < 0 if side == "right" else contrast > 0
    return np.ascontiguousarray(image[:, ::-1]) if turned else image


def _local_mean(
    values: NDArray[np.float32], weights: NDArray[np.float32], sigma: float
) -> NDArray[np.float32]:
    """Average values, already multiplied by their weights, over a Gaussian neighbourhood."""
    total = cv2.GaussianBlur(values, (0, 0), sigma)
    weight = cv2.GaussianBlur(weights, (0, 0), sigma)
    return np.asarray(total / np.maximum(weight, 0.01), np.float32)
