"""Scores of a network on validation images: at native size, inside the field of view, all pixels pooled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.binarise import Binarisation
from pipeline.binarise_fit import LabelledMap, fit_binarisation
from pipeline.errors import Problems
from pipeline.frames import Statistics, Views, native_probability, predict_logits
from pipeline.losses import LossWeights, segmentation_loss
from pipeline.metrics.ranking import roc_auc
from pipeline.threshold import FitSet, Threshold, best_f1_threshold
from pipeline.training_data import ValidationFrame


@dataclass(frozen=True)
class ValidationScore:
    """Mean loss over the frames (at working resolution) and pooled area under the ROC curve."""

    loss: float
    auc: float


def check_validation(frames: Sequence[ValidationFrame]) -> None:
    """Make sure that the frames can be scored.

    Raises:
        UserError: there is none, or one lacks vessels or background inside its field of view.
    """
    problems = Problems("the validation images cannot be scored; run `prepare` again")
    if not frames:
        problems.add("there is none; expected at least one: raise the validation share in section `prepare`")
    for frame in frames:
        labels = frame.vessels[frame.fov]
        if labels.all() or not labels.any():
            found = "only vessels" if labels.any() else "no vessel"
            problems.add(f"{frame.working.id}: {found} inside the field of view; expected both classes")
    problems.raise_if_any()


def validate(
    network: nn.Module, frames: Sequence[ValidationFrame], statistics: Statistics, weights: LossWeights
) -> ValidationScore:
    """Score a network; leaves it in evaluation mode."""
    network.eval()
    logits = [predict_logits(network, frame.working.image, statistics) for frame in frames]
    losses = [
        float(segmentation_loss(z[None, None], _target(frame), weights))
        for z, frame in zip(logits, frames, strict=True)
    ]
    scores, labels = pooled_pixels(
        [_native(z, frame) for z, frame in zip(logits, frames, strict=True)], frames
    )
    return ValidationScore(float(np.mean(losses)), roc_auc(scores, labels))


def choose_threshold(
    network: nn.Module, frames: Sequence[ValidationFrame], statistics: Statistics, threshold: Threshold
) -> float:
    """Give the threshold that is named, or fit it: F1-maximal on the pooled validation pixels."""
    return choose_binarisation(network, {"validation": frames}, statistics, threshold, "none")[0]


def choose_binarisation(
    network: nn.Module,
    sets: Mapping[FitSet, Sequence[ValidationFrame]],
    statistics: Statistics,
    threshold: float | FitSet,
    postprocess: Literal["none"] | FitSet,
    views: Views = "none",
) -> tuple[float, Binarisation | None]:
    """Decide how masks are made; leaves the network in evaluation mode.

    Args:
        network: predicts what is fitted on.
        sets: labelled frames by name; those that `threshold` and `postprocess` name, checked by
            `check_validation`.
        statistics: of the training images.
        threshold: the cut, or a set, for the F1-maximal one on its pooled pixels.
        postprocess: a set to fit hysteresis and the smallest size on, see `pipeline.binarise_fit`.
        views: what predictions are averaged over.

    Returns:
        The cut for single pixels, and how masks are made; None where that is the cut alone, also when the fit
        found nothing better. The threshold of a fitted binarisation is that cut when it was named; else it is
        fitted as well and may lie above it.
    """
    network.eval()

    @cache
    def labelled(name: FitSet) -> list[LabelledMap]:
        return [
            LabelledMap(
                _native(predict_logits(network, frame.working.image, statistics, views=views), frame),
                frame.vessels,
                frame.fov,
            )
            for frame in sets[name]
        ]

    cut = threshold
    if isinstance(cut, str):
        maps = [found.probability for found in labelled(cut)]
        cut = best_f1_threshold(*pooled_pixels(maps, sets[cut]))
    if postprocess == "none":
        return cut, None
    return cut, fit_binarisation(labelled(postprocess), cut, fixed=not isinstance(threshold, str))


def pooled_pixels(
    probabilities: Sequence[NDArray[np.float32]], frames: Sequence[ValidationFrame]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Gather the pixels inside the fields of view.

    Args:
        probabilities: float32 [H, W] at native size, one per frame.
        frames: the labels.

    Returns:
        Scores float32 [n] and labels bool [n].
    """
    pairs = list(zip(probabilities, frames, strict=True))
    scores = np.concatenate([probability[frame.fov] for probability, frame in pairs])
    labels = np.concatenate([frame.vessels[frame.fov] for frame in frames])
    return scores, labels


def _native(logits: Tensor, frame: ValidationFrame) -> NDArray[np.float32]:
    return native_probability(logits, *frame.vessels.shape)


def _target(frame: ValidationFrame) -> Tensor:
    return torch.from_numpy(frame.working.target.astype(np.float32) / np.float32(255))[None, None]
