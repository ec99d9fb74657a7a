"""Combining the probability maps of a base and a retrained segmenter."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.binarise import Binarisation
from pipeline.metrics.ranking import average_precision
from pipeline.model_folder import write_config
from pipeline.schema import Strict

Rule = Literal["mean", "weighted", "vote", "max"]
Member = Literal["base", "retrained"]
MEMBERS: tuple[Member, Member] = ("base", "retrained")
MEMBERS_FOLDER = "members"

_WEIGHTS = np.arange(21) / 20


class EnsembleConfig(Strict):
    """The config.json of an ensemble's folder, which holds copies of its members.

    Attributes:
        kind: tells it from a single model's folder.
        rule: see `combine`.
        weight: of the base model, for the rule `weighted`; 0.5 for the others.
        threshold: probability from which on a pixel is vessel.
        binarisation: see `ModelConfig`; of the combined map. Members vote at their thresholds alone.
        members: in the order of `combine`'s arguments; the folders lie in `members/`.
        versions, git_commit, data_sha256: see `ModelConfig`.
    """

    kind: Literal["ensemble"] = "ensemble"
    rule: Rule
    weight: Annotated[float, Field(ge=0, le=1)]
    threshold: float
    binarisation: Binarisation | None = None
    members: tuple[Member, Member] = MEMBERS
    versions: dict[str, str]
    git_commit: str | None
    data_sha256: str


def combine(
    maps: Sequence[NDArray[np.float32]], rule: Rule, *, weight: float, thresholds: Sequence[float]
) -> NDArray[np.float32]:
    """Combine two probability maps into one.

    Rules: `mean`; `weighted` (weight · base + (1 − weight) · retrained); `max`; and `vote`, where each model
    votes vessel at its own threshold and the mean probability is a third, soft voter that breaks ties:
    (votes + mean) / 3, so that 0.5 is the majority and the map still ranks pixels.

    Args:
        maps: of base and retrained, any equal shape, 0..1.
        rule: see above.
        weight: of the base model, for `weighted`.
        thresholds: of base and retrained, for `vote`.

    Returns:
        float32, the maps' shape, 0..1.
    """
    base, retrained = maps
    if rule == "weighted":
        combined = weight * base + (1 - weight) * retrained
    elif rule == "max":
        combined = np.maximum(base, retrained)
    elif rule == "vote":
        votes = np.add(base >= thresholds[0], retrained >= thresholds[1], dtype=np.float32)
        combined = (votes + (base + retrained) / 2) / 3
    else:
        combined = (base + retrained) / 2
    return combined.astype(np.float32, copy=False).clip(0, 1)


def fit_weight(maps: Sequence[NDArray[np.float32]], labels: NDArray[np.bool_]) -> float:
    """Find the base model's weight in 0, 0.05, …, 1 with the largest average precision.

    Average precision needs no threshold and, unlike the AUC, is not carried by the easy background. Among
    equals the weight nearest to 0.5 wins.

    Args:
        maps: of base and retrained, float32 [n], probabilities of validation pixels.
        labels: bool [n].
    """
    base, retrained = maps
    scores = np.array(
        [average_precision(weight * base + (1 - weight) * retrained, labels) for weight in _WEIGHTS]
    )
    best = _WEIGHTS[scores == scores.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def save_ensemble(folder: Path, config: EnsembleConfig, members: Sequence[Path]) -> None:
    """Write an ensemble's folder, members copied into it, so that it works alone.

    Args:
        folder: must not exist.
        config: see `EnsembleConfig`.
        members: model folders of base and retrained.
    """
    for name, source in zip(config.members, members, strict=True):
        shutil.copytree(source, folder / MEMBERS_FOLDER / name)
    write_config(folder, config)
