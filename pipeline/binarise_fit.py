"""Fitting hysteresis and the smallest size on labelled images, and a table of what each setting gives.

The criterion: of all settings whose F1 is within 0.001 of the best one, the largest clDice. F1 says how many
pixels are right, and a difference of 0.001 is a fifth of what two draws of images differ by (the bootstrap
interval of DRIVE's 20 test images is ±.005); so settings that close count as equal there, and the shape of
the vessels decides. clDice weighs both mistakes of post-processing against each other: specks that stay lower
topology precision, capillaries that go lower topology sensitivity. The number of parts alone would reward to
remove too much. Among equals the setting that does least wins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.binarise import Binarisation, Parts
from pipeline.errors import Problems
from pipeline.images import read_probability
from pipeline.metrics import rates, topology
from pipeline.metrics.topology import TruthShape
from pipeline.prepared import Sample
from pipeline.threshold import Threshold, best_f1_threshold

F1_TOLERANCE = 0.001
"""Settings whose pooled F1 lies within this of the best one are equally good pixel by pixel."""

LOW_STEPS = (0.0, 0.125, 0.25, 0.5, 1.0)
"""How far below the cut the lower limit may lie, in logits; 0 is the cut itself."""

HIGH_STEPS = (0.0, 0.5, 1.0, 2.0)
"""How far above the cut a part's best pixel may have to lie, in logits; only where the cut is fitted, too."""

SIZES = (0, 8, 16, 32, 64, 128, 256, 512)
"""Smallest sizes that are tried, in pixels."""


@dataclass(frozen=True, eq=False)
class LabelledMap:
    """One image to fit on.

    Attributes:
        probability: float32 [H, W], 0..1, of the whole image at native size.
        vessels: bool [H, W], the truth.
        region: bool [H, W], the pixels that count; parts are measured beyond it, too.
    """

    probability: NDArray[np.float32]
    vessels: NDArray[np.bool_]
    region: NDArray[np.bool_]

    @cached_property
    def shape(self) -> TruthShape:
        """What masks are judged by."""
        return TruthShape.of(self.vessels, self.region)

    # ------------------------------------------------------------------------------------------------------
    # A part is kept or removed as a whole, so the confusion of every setting is a sum over parts.
    def confusions(self, settings: Sequence[Binarisation]) -> NDArray[np.int64]:
        """Count right and wrong pixels inside the region: int64 [settings, 4], TP FP TN FN."""
        parts = {low: Parts.of(self.probability, low) for low in {setting.low for setting in settings}}
        hits = {low: found.count(self.region & self.vessels) for low, found in parts.items()}
        alarms = {low: found.count(self.region & ~self.vessels) for low, found in parts.items()}
        cuts = {(setting.low, setting.threshold) for setting in settings}
        reached = {(low, cut): parts[low].reach(self.probability, cut) for low, cut in cuts}
        vessels = np.count_nonzero(self.region & self.vessels)
        background = np.count_nonzero(self.region) - vessels
        rows = []
        for setting in settings:
            low = setting.low
            kept = reached[low, setting.threshold] & (parts[low].sizes >= setting.min_size)
            hit, alarm = int(hits[low][kept].sum()), int(alarms[low][kept].sum())
            rows.append((hit, alarm, background - alarm, vessels - hit))
        return np.array(rows, np.int64)


def candidates(threshold: float, *, fixed: bool) -> list[Binarisation]:
    """List the settings that are tried, the one that does least first.

    Nearly every pixel beside a vessel is connected to it, so lowering the lower limit moves all outlines, as
    a lower threshold would. Where the threshold is fitted the grid therefore goes both ways: the F1-maximal
    cut is (nearly) the lower limit, and a part's best pixel has to lie above it.

    Args:
        threshold: the cut without post-processing.
        fixed: whether it was named, and has to stay what marks a pixel without help of its neighbours.
    """
    cuts = [
        (
            max(threshold, _shifted(threshold, up)),
            None if up == down == 0 else min(threshold, _shifted(threshold, -down)),
        )
        for up in ((0.0,) if fixed else HIGH_STEPS)
        for down in LOW_STEPS
    ]
    return [
        Binarisation(threshold=high, hysteresis_low=low, min_size=size)
        for high, low in dict.fromkeys(cuts)
        for size in SIZES
    ]


def fit_binarisation(maps: Sequence[LabelledMap], threshold: float, *, fixed: bool) -> Binarisation | None:
    """Choose among `candidates` by the criterion of this module.

    Args:
        maps: validation images, both classes present; pixels and centrelines of all are pooled.
        threshold: see `candidates`.
        fixed: see `candidates`.

    Returns:
        None where nothing is better than the threshold alone.
    """
    settings = candidates(threshold, fixed=fixed)
    f1 = rates.f1(_pooled_confusions(maps, settings))
    eligible = [settings[index] for index in np.flatnonzero(f1 >= f1.max() - F1_TOLERANCE)]
    cldice = [float(topology.cldice(_shapes(maps, setting).sum(axis=0))) for setting in eligible]
    chosen = eligible[int(np.argmax(cldice))]  # the first among equals
    return None if chosen.is_plain and chosen.threshold == threshold else chosen


def tabulate(maps: Sequence[LabelledMap], settings: Sequence[Binarisation]) -> pd.DataFrame:
    """Score settings on labelled images.

    Returns:
        One row per setting: threshold, hysteresis_low (NaN: none), min_size; pooled f1, precision,
        sensitivity, cldice, topology_precision, topology_sensitivity, thin_recall; components and beta0_error
        as means over images; `eligible` (F1 within `F1_TOLERANCE` of the best) and `chosen` (one row).
    """
    confusions = _pooled_confusions(maps, settings)
    shapes = np.stack([_shapes(maps, setting) for setting in settings])  # [settings, images, 8]
    pooled = shapes.sum(axis=1)
    table = pd.DataFrame([setting.model_dump() for setting in settings])
    table["hysteresis_low"] = table["hysteresis_low"].astype(float)
    for rate in (rates.f1, rates.precision, rates.sensitivity):
        table[rate.__name__] = rate(confusions)
    for figure in (
        topology.cldice,
        topology.topology_precision,
        topology.topology_sensitivity,
        topology.thin_recall,
    ):
        table[figure.__name__] = figure(pooled)
    table["components"] = shapes[:, :, topology.COLUMNS.index("components")].mean(axis=1)
    table["beta0_error"] = topology.beta0_error(shapes).mean(axis=1)
    table["eligible"] = table["f1"] >= table["f1"].max() - F1_TOLERANCE
    table["chosen"] = table.index == table["cldice"].where(table["eligible"]).idxmax()
    return table


def sweep(folder: Path, samples: Sequence[Sample], threshold: Threshold = "validation") -> pd.DataFrame:
    """Tabulate all settings that the fit would try, on stored predictions; see `tabulate`.

    Args:
        folder: holds the probabilities `<id>.png` of every sample, see `pipeline.evaluation`.
        samples: labelled; validation images, unless nothing is chosen by the result.
        threshold: the cut without post-processing, or `validation` for the F1-maximal one on these samples;
            then the threshold is part of what is tried.

    Raises:
        UserError: there is no sample, or a label or prediction is missing or of another size.
    """
    maps = read_maps(folder, samples)
    if threshold != "validation":
        return tabulate(maps, candidates(threshold, fixed=True))
    scores = np.concatenate([found.probability[found.region] for found in maps])
    labels = np.concatenate([found.vessels[found.region] for found in maps])
    return tabulate(maps, candidates(best_f1_threshold(scores, labels), fixed=False))


def read_maps(folder: Path, samples: Sequence[Sample]) -> list[LabelledMap]:
    """Read stored predictions with their labels; the region is the field of view.

    Raises:
        UserError: see `sweep`.
    """
    problems = Problems(f"the predictions in {folder} cannot be scored")
    if not samples:
        problems.add("there is no labelled image; expected at least one")
    maps = []
    for sample in samples:
        frame = sample.load()
        if frame.vessels is None:
            problems.add(f"{sample.id}: has no label; expected a labelled image")
            continue
        path = folder / f"{sample.id}.png"
        if not path.is_file():
            problems.add(f"{path}: missing; predict this image first")
            continue
        probability = read_probability(path)
        if probability.shape != frame.vessels.shape:
            problems.add(f"{path}: {probability.shape} pixels; the image has {frame.vessels.shape}")
            continue
        maps.append(LabelledMap(probability, frame.vessels, frame.fov))
    problems.raise_if_any()
    return maps


def _pooled_confusions(maps: Sequence[LabelledMap], settings: Sequence[Binarisation]) -> NDArray[np.int64]:
    total = np.zeros((len(settings), 4), np.int64)
    for found in maps:
        total += found.confusions(settings)
    return total


def _shapes(maps: Sequence[LabelledMap], setting: Binarisation) -> NDArray[np.int64]:
    """Counts on centrelines of each image, int64 [images, 8], see `TopologyCounts`."""
    return np.stack([found.shape.judge(setting.mask(found.probability))[0].as_array() for found in maps])


def _shifted(threshold: float, logits: float) -> float:
    """Move a probability on the logistic scale; whole thousandths, like fitted thresholds."""
    if logits == 0:
        return threshold
    moved = 1 / (1 + math.exp(-(math.log(threshold / (1 - threshold)) + logits)))
    return min(max(round(moved, 3), 0.001), 0.999)
