"""Bootstrap intervals over test images: how far a figure moves when other images are drawn.

The image is the unit that is drawn, never the pixel: neighbouring pixels are not independent (Efron &
Tibshirani 1993, chapters 6 and 13). Two models are compared on the same draws (paired), which removes the
difficulty of the images from the difference. The randomness of training is not in these intervals.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its 95% interval (2.5th and 97.5th percentile of the bootstrap)."""

    value: float
    low: float
    high: float


def pooled_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the F1 of pooled pixels.

    Args:
        counts: int64 [..., images, 3]: true positives, false positives, false negatives of each image.

    Returns:
        float64 [...]: 2 TP / (2 TP + FP + FN) of the sums over images; 0 where the sums are all 0.
    """
    total = counts.sum(axis=-2)
    whole = 2 * total[..., 0] + total[..., 1] + total[..., 2]
    return 2 * total[..., 0] / np.maximum(whole, 1)


def draw_images(images: int, samples: int, seed: int) -> NDArray[np.int64]:
    """Draw `samples` times `images` image indices with replacement: int64 [samples, images]."""
    return np.random.default_rng(seed).integers(images, size=(samples, images))


def f1_interval(counts: NDArray[np.int64], draws: NDArray[np.int64]) -> Interval:
    """Interval of the pooled F1 of one model.

    Args:
        counts: int64 [images, 3], see `pooled_f1`.
        draws: int64 [samples, images], see `draw_images`.
    """
    return _interval(float(pooled_f1(counts)), pooled_f1(counts[draws]))


def f1_difference(
    counts: NDArray[np.int64], reference: NDArray[np.int64], draws: NDArray[np.int64]
) -> Interval:
    """Interval of the difference in pooled F1, model − reference, on the same images and the same draws.

    Args:
        counts: int64 [images, 3] of the model.
        reference: int64 [images, 3] of the model to compare with, in the same order of images.
        draws: int64 [samples, images], see `draw_images`.

    Raises:
        ValueError: when the two do not cover the same number of images.
    """
    if counts.shape != reference.shape:
        raise ValueError(f"paired comparison needs the same images; got {counts.shape} and {reference.shape}")
    value = float(pooled_f1(counts) - pooled_f1(reference))
    return _interval(value, pooled_f1(counts[draws]) - pooled_f1(reference[draws]))


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
