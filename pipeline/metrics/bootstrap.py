"""How far a figure moves when other test images are drawn, and whether two models differ beyond chance.

The image is the unit that is drawn or swapped, never the pixel: neighbouring pixels are not independent.
Two models are compared on the same images (paired), which removes the difficulty of the images from the
difference. The randomness of training is not in these figures.

Every figure is a function of how often each image is taken (`Statistic`): once each gives the figure itself,
the multiplicities of a draw give the figure of the draw, and one image left out gives what BCa needs. Figures
of pooled pixels and means over images differ in that function alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 16
"""So many images are swapped in all 2^n ways; of more, ways are drawn at random."""

_RANDOM_SWAPS = 10_000
_ROUNDING = 1e-12  # differences that are equal but for rounding count as equal
_NORMAL = NormalDist()

Weights = NDArray[np.float64]
"""How often each image is taken: float64 [..., images]."""

Statistic = Callable[[Weights], NDArray[np.float64]]
"""A figure of a test set: weights [..., images] → float64 [...]. No weights sum to 0."""


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its 95% bootstrap interval, bias-corrected and accelerated.

    Both bounds are NaN where there is no interval: one image says nothing about others.
    """

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
    return _f1(counts.sum(axis=-2))


def draw_images(images: int, samples: int, seed: int) -> NDArray[np.int64]:
    """Draw `samples` times `images` image indices with replacement: int64 [samples, images]."""
    return np.random.default_rng(seed).integers(images, size=(samples, images))


def draw_weights(draws: NDArray[np.int64]) -> Weights:
    """Count how often every draw takes each image: float64 [samples, images], rows sum to images.

    Args:
        draws: int64 [samples, images], see `draw_images`.
    """
    samples, images = draws.shape
    places = draws + images * np.arange(samples)[:, None]  # [samples, images] → cells of the result
    return np.bincount(places.ravel(), minlength=draws.size).reshape(samples, images).astype(np.float64)


def of_pooled(
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]], counts: NDArray[np.number]
) -> Statistic:
    """Make a figure of sums over images: every pixel weighs the same.

    Args:
        figure: sums [..., *] → [...].
        counts: [images, *], what is summed, one axis or more after that of images.
    """
    values = np.asarray(counts, np.float64)
    return lambda weights: figure(np.tensordot(weights, values, axes=1))


def of_mean(values: NDArray[np.number]) -> Statistic:
    """Make the mean over images of a figure of each: every image weighs the same. `values`: [images]."""
    numbers = np.asarray(values, np.float64)
    return lambda weights: (weights @ numbers) / weights.sum(axis=-1)


def difference_of(model: Statistic, reference: Statistic) -> Statistic:
    """Make model − reference, on the same images."""
    return lambda weights: model(weights) - reference(weights)


def interval(statistic: Statistic, weights: Weights) -> Interval:
    """Interval of any figure.

    Args:
        statistic: the figure; 0 where it is undefined, as all of `pipeline.metrics.rates` are.
        weights: float64 [samples, images], see `draw_weights`.

    Returns:
        Bounds NaN for a single image.
    """
    images = weights.shape[-1]
    value = float(statistic(np.ones(images)))
    if images == 1:  # every draw is the one image, and without it there is none
        return Interval(value, math.nan, math.nan)
    return _interval(value, statistic(weights), statistic(1 - np.eye(images)))


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
    _check_paired(counts, reference)
    difference = difference_of(of_pooled(_f1, counts), of_pooled(_f1, reference))
    return interval(difference, draw_weights(draws))


# ----------------------------------------------------------------------------------------------------------
# Paired permutation test (Ernst 2004, "Permutation Methods: A Basis for Exact Inference"): if the models were
# alike, it would be chance which of an image's two results belongs to which model. p is the share of all ways
# to swap them whose |difference| reaches the observed one. With m random ways, p = (1 + reached) / (1 + m)
# (Phipson & Smyth 2010, "Permutation P-values Should Never Be Zero").
def f1_permutation_p(counts: NDArray[np.int64], reference: NDArray[np.int64], seed: int) -> float:
    """Two-sided p of the difference in pooled F1 under random swaps of the two models on each image.

    Args:
        counts: int64 [images, 3] of the model.
        reference: int64 [images, 3] of the model to compare with, in the same order of images.
        seed: of the random swaps; not used for up to `EXACT_UP_TO` images, where p is exact.

    Returns:
        In 0..1, more than 0; at least 2 / 2^images.

    Raises:
        ValueError: when the two do not cover the same number of images.
    """
    _check_paired(counts, reference)
    images = len(counts)
    exact = images <= EXACT_UP_TO
    if exact:
        swaps = (np.arange(2**images)[:, None] >> np.arange(images)) & 1  # [2^images, images]
    else:
        swaps = np.random.default_rng(seed).integers(2, size=(_RANDOM_SWAPS, images))
    moved = swaps @ (reference - counts)  # [ways, 3]: what the swaps bring from the reference to the model
    differences = _f1(counts.sum(axis=0) + moved) - _f1(reference.sum(axis=0) - moved)
    observed = abs(float(pooled_f1(counts) - pooled_f1(reference)))
    reached = int(np.count_nonzero(np.abs(differences) >= observed - _ROUNDING))
    return reached / len(swaps) if exact else (1 + reached) / (1 + len(swaps))


# ----------------------------------------------------------------------------------------------------------
# BCa interval (Efron 1987, "Better Bootstrap Confidence Intervals"; Efron & Tibshirani 1993, eq. 14.9–14.15):
# the bounds are the percentiles Φ(z₀ + (z₀ + z) / (1 − a (z₀ + z))), z = ∓1.96, of the drawn figures, where
# z₀ = Φ⁻¹(share of draws below the figure) corrects the bias and a = Σ dᵢ³ / 6 (Σ dᵢ²)^1.5 the skewness, with
# dᵢ = mean − figure without image i. Draws equal to the figure count half.
def _interval(value: float, drawn: NDArray[np.float64], without_each: NDArray[np.float64]) -> Interval:
    below = np.count_nonzero(drawn < value - _ROUNDING)
    equal = np.count_nonzero(np.abs(drawn - value) <= _ROUNDING)
    edge = 0.5 / len(drawn)  # keeps z₀ finite when every draw lies on one side
    bias = _NORMAL.inv_cdf(float(np.clip((below + equal / 2) / len(drawn), edge, 1 - edge)))
    change = without_each.mean() - without_each
    spread = float((change**2).sum()) ** 1.5
    acceleration = float((change**3).sum()) / (6 * spread) if spread > 0 else 0.0
    shares = [
        _corrected_share(z, bias, acceleration) for z in (_NORMAL.inv_cdf(0.025), _NORMAL.inv_cdf(0.975))
    ]
    low, high = np.quantile(drawn, shares)
    return Interval(value, float(low), float(high))


def _corrected_share(z: float, bias: float, acceleration: float) -> float:
    shifted = bias + z
    stretch = 1 - acceleration * shifted
    if stretch <= 0:  # a strong bias on a skewed figure: beyond the pole the bounds would change places
        return float(shifted > 0)
    return _NORMAL.cdf(bias + shifted / stretch)


def _f1(total: NDArray[np.number]) -> NDArray[np.float64]:
    """F1 of summed counts [..., 3]; 0 where they are all 0."""
    whole = 2 * total[..., 0] + total[..., 1] + total[..., 2]
    return 2 * total[..., 0] / np.maximum(whole, 1)


def _check_paired(counts: NDArray[np.int64], reference: NDArray[np.int64]) -> None:
    if counts.shape != reference.shape:
        raise ValueError(f"paired comparison needs the same images; got {counts.shape} and {reference.shape}")
