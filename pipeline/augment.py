"""Augmentation on the fly: geometry of image and target together, colours and noise of the image.

All draws come from the generator that is passed in, the same number of them whatever the settings, so that
switching one effect off leaves the others as they were.
"""

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.frames import Array8, ArrayFloat
from pipeline.schema import Strict
from pipeline.training_data import TrainingFrame

Strength = Annotated[float, Field(ge=0, lt=1)]

# Luma of ITU-R BT.601
_LUMA = np.array([0.299, 0.587, 0.114])


class Augmentation(Strict):
    """Ranges of the random changes. A strength s of 0 turns an effect off.

    Attributes:
        flips: mirror horizontally and vertically, each with probability ½.
        rotation: largest angle in degrees, either way.
        scale: zoom by a factor in 1 ± s.
        brightness: add a value in ± s to intensities in 0..1.
        contrast: stretch about the image's mean by a factor in 1 ± s.
        saturation: move away from or towards grey by a factor in 1 ± s.
        gamma: raise intensities to exp(± s).
        colour: multiply each channel by a factor of its own in 1 ± s.
        noise: standard deviation of Gaussian noise; drawn anew between 0 and s for each image.
    """

    flips: bool = True
    rotation: Annotated[float, Field(ge=0, le=180)] = 180.0
    scale: Strength = 0.15
    brightness: Strength = 0.1
    contrast: Strength = 0.2
    saturation: Strength = 0.2
    gamma: Strength = 0.2
    colour: Strength = 0.05
    noise: Strength = 0.02


@dataclass(frozen=True, eq=False)
class Example:
    """What the network is shown: image float32 [H, W, 3] and target float32 [H, W], both 0..1."""

    image: ArrayFloat
    target: ArrayFloat


def make_example(
    frame: TrainingFrame, crop: int | None, settings: Augmentation | None, rng: np.random.Generator
) -> Example:
    """Cut out and augment one example.

    Args:
        frame: the source.
        crop: side of a square whose centre is drawn uniformly from the field of view (it may reach beyond
            the frame; black follows there); None for the full frame.
        settings: None for no augmentation.
        rng: source of all randomness.

    Returns:
        An example of crop × crop pixels, or of the frame's size.
    """
    height, width = frame.target.shape
    centre = ((width - 1) / 2, (height - 1) / 2)
    size = (width, height)
    if crop is not None:
        inside = np.flatnonzero(frame.fov)
        y, x = divmod(int(rng.choice(inside)), width) if len(inside) else (height // 2, width // 2)
        # An even crop has its centre between pixels: half a pixel off keeps the cut on the pixel grid.
        offset = 0.5 * (1 - crop % 2)
        centre, size = (x + offset, y + offset), (crop, crop)
    if settings is None:
        matrix = affine_matrix(centre, size, mirror=(False, False), angle=0.0, zoom=1.0)
        return Example(
            to_unit(warp(frame.image, matrix, size)),
            to_unit(warp(frame.target, matrix, size)),
        )
    left_right, up_down = rng.random() < 0.5, rng.random() < 0.5
    mirror = (settings.flips and left_right, settings.flips and up_down)
    angle = settings.rotation * rng.uniform(-1, 1)
    zoom = 1 + settings.scale * rng.uniform(-1, 1)
    matrix = affine_matrix(centre, size, mirror, angle, zoom)
    image = change_colours(warp(frame.image, matrix, size), settings, rng)
    return Example(image, to_unit(warp(frame.target, matrix, size)))


# ----------------------------------------------------------------------------------------------------------
# From output to source coordinates:  s = c + M (o − (size − 1)/2),   M = F R(angle) / zoom,
# with c the centre in the source, F the mirror images, R a rotation.
def affine_matrix(
    centre: tuple[float, float],
    size: tuple[int, int],
    mirror: tuple[bool, bool],
    angle: float,
    zoom: float,
) -> NDArray[np.float64]:
    """Compose the map from output to source coordinates.

    Args:
        centre: x, y in the source that becomes the output's centre.
        size: width and height of the output.
        mirror: horizontally, vertically.
        angle: degrees.
        zoom: above 1 enlarges.

    Returns:
        [2, 3], for pixel coordinates x, y.
    """
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    signs = np.where(mirror, -1.0, 1.0)
    linear = signs[:, None] * np.array([[cosine, -sine], [sine, cosine]]) / zoom
    shift = np.asarray(centre) - linear @ ((np.asarray(size) - 1) / 2)
    return np.column_stack([linear, shift])


def warp(array: Array8, matrix: NDArray[np.float64], size: tuple[int, int]) -> Array8:
    """Resample uint8 [H, W(, 3)], bilinear; 0 where the source ends.

    Image and target go through this same function: a target is a fraction of vessel per pixel, and a
    fraction interpolates like an intensity.
    """
    warped = cv2.warpAffine(
        array,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    return np.asarray(warped, np.uint8)


def change_colours(image: Array8, settings: Augmentation, rng: np.random.Generator) -> ArrayFloat:
    """Vary gamma, colour balance, contrast, brightness and saturation, and add noise.

    Args:
        image: uint8 [H, W, 3].
        settings: ranges.
        rng: source of all randomness.

    Returns:
        float32 [H, W, 3], 0..1.
    """
    gamma = np.exp(settings.gamma * rng.uniform(-1, 1))
    gains = 1 + settings.colour * rng.uniform(-1, 1, 3)
    contrast = 1 + settings.contrast * rng.uniform(-1, 1)
    brightness = settings.brightness * rng.uniform(-1, 1)
    saturation = 1 + settings.saturation * rng.uniform(-1, 1)
    noise_std = settings.noise * rng.random()

    # All of it but saturation and noise works on single intensities, so one table of 256 × 3 does it.
    mean = np.asarray(cv2.mean(image)[:3]) / 255
    levels = np.linspace(0, 1, 256)[:, None]  # [256, 1]
    table = (levels**gamma * gains - mean) * contrast + mean + brightness
    changed = cv2.LUT(image, table.astype(np.float32)[None])  # table as [1, 256, 3]
    to_grey = np.broadcast_to(_LUMA, (3, 3))
    changed = cv2.transform(changed, saturation * np.eye(3) + (1 - saturation) * to_grey)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    result: ArrayFloat = (changed + np.float32(noise_std) * noise).clip(0, 1)
    return result


def to_unit(array: Array8) -> ArrayFloat:
    """Turn 0..255 into float32 0..1."""
    return array.astype(np.float32) / np.float32(255)
