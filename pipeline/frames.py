"""Frames as a network sees them: scaled to the working resolution, padded, normalised; and the way back."""

from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.unet import SIZE_MULTIPLE
from pipeline.schema import Strict

Resolution = Annotated[int, Field(ge=16)] | Literal["native"]
"""Long side of a working frame in pixels, or `native`: frames keep their size."""

Views = Literal["none", "flips", "dihedral"]
"""Test-time augmentation: the image alone, its four mirror images, or all eight with the quarter turns."""

VIEW_COUNT: dict[Views, int] = {"none": 1, "flips": 4, "dihedral": 8}

Array8 = NDArray[np.uint8]
ArrayBool = NDArray[np.bool_]
ArrayFloat = NDArray[np.float32]


class Statistics(Strict):
    """Mean and standard deviation of red, green and blue, for intensities in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def working_size(height: int, width: int, resolution: Resolution) -> tuple[int, int]:
    """Give height and width at working resolution; the short side is at least one pixel."""
    if resolution == "native":
        return height, width
    factor = resolution / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def scale_frame(array: Array8, resolution: Resolution) -> Array8:
    """Scale uint8 [H, W(, 3)] so that its long side equals `resolution`: area average down, bilinear up."""
    height, width = working_size(array.shape[0], array.shape[1], resolution)
    if (height, width) == array.shape[:2]:
        return array
    shrinks = height < array.shape[0]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(array, (width, height), interpolation=interpolation), np.uint8)


def padded_length(length: int) -> int:
    """Round a side up to what the networks take."""
    return -(-length // SIZE_MULTIPLE) * SIZE_MULTIPLE


def network_input(images: list[ArrayFloat], statistics: Statistics) -> Tensor:
    """Make a batch: pad with black at the bottom and right to one common size, and normalise.

    Args:
        images: each float32 [H, W, 3], 0..1; sizes may differ.
        statistics: of the training images.

    Returns:
        float32 [N, 3, H', W'] in memory channels last, H' and W' the smallest multiples of 8 that hold every
        image.
    """
    batch = pad_together(images)  # [N, H', W', 3]
    mean = np.asarray(statistics.mean, np.float32)
    scale = 1 / np.asarray(statistics.std, np.float32)
    return torch.from_numpy((batch - mean) * scale).permute(0, 3, 1, 2)  # [N, 3, H', W']


def pad_together(arrays: list[ArrayFloat]) -> ArrayFloat:
    """Stack float32 [H, W(, C)] of different sizes, padded with zeros at the bottom and right.

    Returns:
        float32 [N, H', W'(, C)].
    """
    height = padded_length(max(array.shape[0] for array in arrays))
    width = padded_length(max(array.shape[1] for array in arrays))
    batch = np.zeros((len(arrays), height, width, *arrays[0].shape[2:]), np.float32)
    for row, array in zip(batch, arrays, strict=True):
        row[: array.shape[0], : array.shape[1]] = array
    return batch


def predict_logits(
    network: nn.Module, image: Array8, statistics: Statistics, *, views: Views = "none"
) -> Tensor:
    """Run a network on one image at working resolution.

    Args:
        network: in evaluation mode; the input goes to the device of its weights.
        image: uint8 [H, W, 3].
        statistics: of the network's training images.
        views: average the probabilities over these images of the image (test-time augmentation).

    Returns:
        Logits float32 [H, W], on the CPU.
    """
    height, width = image.shape[:2]
    device = next(network.parameters()).device
    batch = network_input([image.astype(np.float32) / np.float32(255)], statistics).to(device)
    with torch.inference_mode():
        logits = network(batch) if views == "none" else _average_of_views(network, batch, views)
        cropped: Tensor = logits[0, 0, :height, :width].float().cpu()
    return cropped


# ----------------------------------------------------------------------------------------------------------
# The square's symmetries (the dihedral group of order 8) are k quarter turns, each with or without a mirror;
# the four of them that keep height and width in their places are the flips: none, ↔, and both at k = 2.
#   z̄ = logit( 1/|G| Σ_g σ( g⁻¹ f(g x) ) )
def _average_of_views(network: nn.Module, batch: Tensor, views: Views) -> Tensor:
    """Average the probabilities over the views, one after the other to save memory; returns logits."""
    turns = (0, 2) if views == "flips" else (0, 1, 2, 3)
    total = torch.zeros_like(batch[:, :1])
    for turn in turns:
        for axes in ([], [3]):
            view = batch.flip(axes).rot90(turn, (2, 3))
            total += network(view).sigmoid().rot90(-turn, (2, 3)).flip(axes)
    return (total / (2 * len(turns))).logit(eps=1e-7)


def native_probability(logits: Tensor, height: int, width: int) -> ArrayFloat:
    """Turn logits [h, w] at working resolution into probabilities float32 [height, width], 0..1; bilinear."""
    probability: ArrayFloat = logits.sigmoid().numpy()
    if probability.shape != (height, width):
        resized = cv2.resize(probability, (width, height), interpolation=cv2.INTER_LINEAR)
        probability = np.asarray(resized, np.float32)
    return probability.clip(0, 1)
