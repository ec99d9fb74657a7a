"""Evaluation of a segmenter on labelled images, from predictions as they are stored on disk.

Predicting and scoring are two steps with files in between: `write_predictions` stores 16-bit probabilities
at native size, `evaluate_predictions` reads those files and nothing else of the model. Whoever has the
files and the labels can recompute every figure, bit for bit.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.binarise import Binarisation
from pipeline.errors import Problems, UserError
from pipeline.images import read_gray, write_png, write_probability
from pipeline.metrics import rates, topology
from pipeline.metrics.boundary import BoundaryDistance
from pipeline.metrics.calibration import bin_sums, expected_calibration_error
from pipeline.metrics.pixel import (
    LEVEL_PROBABILITIES,
    METRIC_NAMES,
    Confusion,
    LevelCounts,
    PixelMetrics,
    threshold_level,
)
from pipeline.metrics.topology import TopologyCounts, TruthShape
from pipeline.prepared import Frame, Sample

FIELD_OF_VIEW = "fov"
FULL_FRAME = "full_frame"
REGIONS = (FIELD_OF_VIEW, FULL_FRAME)
"""The two regions in which everything is reported.

The full frame adds the black border, which every model gets right: it flatters accuracy and AUC.
"""

DECIMALS = 6
CONFUSION_COLUMNS = tuple(Confusion.__dataclass_fields__)
SHAPE_COLUMNS = (
    "mcc",
    "iou",
    "ece",
    "cldice",
    "topology_precision",
    "topology_sensitivity",
    "thin_recall",
    "thick_recall",
    "beta0_error",
    "mean_surface_distance",
    "hausdorff_95",
)
PER_IMAGE_COLUMNS = (
    "model",
    "id",
    "region",
    *METRIC_NAMES,
    *CONFUSION_COLUMNS,
    *SHAPE_COLUMNS,
    *topology.COLUMNS,
)


class ProbabilityModel(Protocol):
    """What is evaluated: anything that maps a photograph to vessel probabilities."""

    def predict(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 [H, W, 3] to float32 [H, W] in 0..1."""
        ...


TruthShapes = MutableMapping[tuple[str, str], TruthShape]
"""Shapes of the truths by image id and region: measured once, used for every model."""


@dataclass(frozen=True, eq=False)
class ImageScore:
    """One image in one region; what judges a mask judges that of the model's threshold or binarisation.

    Attributes:
        levels: vessel and background pixels per level of probability.
        calibration: int64 [15, 3], see `pipeline.metrics.calibration.bin_sums`.
        topology: counts on centrelines and of components.
        boundary: distances between the outlines of mask and truth.
    """

    id: str
    region: str
    confusion: Confusion
    metrics: PixelMetrics
    levels: LevelCounts
    calibration: NDArray[np.int64]
    topology: TopologyCounts
    boundary: BoundaryDistance

    def figures(self) -> dict[str, float]:
        """Give all figures and counts by name; NaN for the recall of a calibre that the image lacks."""
        confusion, counts = self.confusion.as_array(), self.topology.as_array()
        thin, thick = topology.thin_recall(counts), topology.thick_recall(counts)
        shape = {
            "mcc": rates.mcc(confusion),
            "iou": rates.iou(confusion),
            "ece": expected_calibration_error(self.calibration),
            "cldice": topology.cldice(counts),
            "topology_precision": topology.topology_precision(counts),
            "topology_sensitivity": topology.topology_sensitivity(counts),
            "thin_recall": thin if self.topology.thin_centreline else math.nan,
            "thick_recall": thick if self.topology.thick_centreline else math.nan,
            "beta0_error": topology.beta0_error(counts),
            "mean_surface_distance": self.boundary.mean,
            "hausdorff_95": self.boundary.hausdorff_95,
        }
        return (
            self.metrics.as_dict()
            | asdict(self.confusion)
            | {name: float(value) for name, value in shape.items()}
            | asdict(self.topology)
        )


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of one model over a set of labelled images.

    Attributes:
        threshold: probability from which on a pixel is marked.
        binarisation: how masks were made instead; None where it was the threshold alone.
        images: one score per image and region.
        pooled: level counts of all images together, by region.
    """

    threshold: float
    images: tuple[ImageScore, ...]
    pooled: Mapping[str, LevelCounts]
    binarisation: Binarisation | None = None

    def summary(self, region: str) -> dict[str, dict[str, float]]:
        """Give the figures of one region: `pooled` over all pixels, and `mean`, each image alike.

        Returns:
            {"pooled": {metric: value}, "mean": {metric: value}}, rounded to six decimals.
        """
        scores = [score for score in self.images if score.region == region]
        rows = [score.metrics.as_dict() for score in scores]
        means = {name: float(np.mean([row[name] for row in rows])) for name in METRIC_NAMES}
        confusion = sum((score.confusion for score in scores), Confusion(0, 0, 0, 0))
        pooled = self.pooled[region].metrics_of(confusion).as_dict()
        return {"pooled": _rounded(pooled), "mean": _rounded(means)}

    def per_image(self, model: str) -> pd.DataFrame:
        """Tabulate every image and region: model, id, region, all figures, and the counts behind them."""
        rows = [
            {"model": model, "id": score.id, "region": score.region} | score.figures()
            for score in self.images
        ]
        return pd.DataFrame(rows, columns=list(PER_IMAGE_COLUMNS))


def prediction_path(folder: Path, image_id: str) -> Path:
    """Name the file that holds the probabilities of one image."""
    return folder / f"{image_id}.png"


def write_predictions(model: ProbabilityModel, samples: Iterable[Sample], folder: Path) -> None:
    """Predict every sample at native size and store `<id>.png`, 16-bit gray, 65535 = probability 1.

    Args:
        model: predicts one image at a time.
        samples: may be wrapped in a progress bar.
        folder: created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for sample in samples:
        write_probability(prediction_path(folder, sample.id), model.predict(sample.load().image))


def read_levels(folder: Path, frame: Frame) -> NDArray[np.uint16]:
    """Read one stored prediction as levels, uint16 [H, W].

    Raises:
        UserError: when the file is not 16-bit gray of the image's size.
    """
    path = prediction_path(folder, frame.id)
    levels = read_gray(path)
    if levels.dtype != np.uint16 or levels.shape != frame.image.shape[:2]:
        raise UserError(
            f"{path}: got {levels.dtype} {levels.shape}, expected a 16-bit gray PNG of the image's size "
            f"{frame.image.shape[:2]}; run `evaluate` again"
        )
    return levels.astype(np.uint16, copy=False)


def mark(
    levels: NDArray[np.uint16], threshold: float, binarisation: Binarisation | None
) -> NDArray[np.bool_]:
    """Make the mask of one stored prediction.

    Args:
        levels: uint16 [H, W], see `read_levels`.
        threshold: probability from which on a pixel is marked.
        binarisation: how the mask is made instead; None for the threshold alone.

    Returns:
        bool [H, W].
    """
    if binarisation is None:
        return levels >= threshold_level(threshold)
    return binarisation.mask(LEVEL_PROBABILITIES[levels])


def evaluate_predictions(
    folder: Path,
    samples: Sequence[Sample],
    threshold: float,
    shapes: TruthShapes | None = None,
    binarisation: Binarisation | None = None,
) -> Evaluation:
    """Score stored predictions against the untouched labels, in every region.

    Args:
        folder: holds `<id>.png` for every sample.
        samples: labelled; at least one.
        threshold: a pixel is marked when its probability is >= threshold.
        shapes: starts empty and is filled here; give it again with the next model on the same samples.
        binarisation: how masks are made instead, from the whole image; None for the threshold alone. AUC,
            average precision and calibration judge the probabilities and do not depend on it.

    Raises:
        UserError: when there is no sample, a label is missing or has one class only, or a prediction does
            not fit.
    """
    if not samples:
        raise UserError(
            "no labelled test image to evaluate; expected at least one: check the prepared test split"
        )
    problems = Problems("the test images cannot be evaluated")
    scores: list[ImageScore] = []
    pooled = dict.fromkeys(REGIONS, LevelCounts.zero())
    shapes = {} if shapes is None else shapes
    for sample in samples:
        frame = sample.load()
        if frame.vessels is None:
            problems.add(f"{frame.id}: has no label; only labelled images can be evaluated")
            continue
        levels = read_levels(folder, frame)
        marked = mark(levels, threshold, binarisation)
        for region, mask in region_masks(frame).items():
            counts = LevelCounts.count(levels, frame.vessels, mask)
            confusion = Confusion.count(marked, frame.vessels, mask)
            try:
                metrics = counts.metrics_of(confusion)
            except UserError as error:
                problems.add(f"{frame.id} ({region}): {error}")
                continue
            if (frame.id, region) not in shapes:
                shapes[frame.id, region] = TruthShape.of(frame.vessels, mask)
            topology_counts, boundary = shapes[frame.id, region].judge(marked)
            scores.append(
                ImageScore(
                    id=frame.id,
                    region=region,
                    confusion=confusion,
                    metrics=metrics,
                    levels=counts,
                    calibration=bin_sums(counts),
                    topology=topology_counts,
                    boundary=boundary,
                )
            )
            pooled[region] += counts
    problems.raise_if_any()
    return Evaluation(threshold, tuple(scores), pooled, binarisation)


def region_masks(frame: Frame) -> dict[str, NDArray[np.bool_]]:
    """Give the pixels that count in each region, bool [H, W]."""
    return {FIELD_OF_VIEW: frame.fov, FULL_FRAME: np.ones_like(frame.fov)}


def write_metrics(path: Path, summary: Mapping[str, Mapping[str, float]]) -> None:
    """Write a summary as JSON; refuses NaN and infinity with ValueError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_per_image(path: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write the per-image tables of several models as one CSV, six decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(path, index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n")


def read_per_image(path: Path) -> pd.DataFrame:
    """Read what `write_per_image` wrote; ids stay text (`01` is no number).

    Raises:
        UserError: when columns are missing.
    """
    table = pd.read_csv(path, dtype={"model": str, "id": str, "region": str})
    missing = [name for name in PER_IMAGE_COLUMNS if name not in table]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; run `evaluate` again")
    return table


def write_submission(
    folder: Path,
    predictions: Path,
    samples: Sequence[Sample],
    threshold: float,
    binarisation: Binarisation | None = None,
) -> None:
    """Write binary masks in the format of the DRIVE challenge: `<number>.png`, 0/255 gray, native size.

    The number is the one that the image's file name begins with, without leading zeros (`01_test.tif` →
    `1.png`); a name that begins otherwise keeps the image's id. The format follows the challenge's page as
    known to us; no submission was made to verify it.

    Args:
        folder: created if it does not exist.
        predictions: folder that holds `<id>.png` of every sample.
        samples: the unlabelled test images.
        threshold: as in `evaluate_predictions`.
        binarisation: as in `evaluate_predictions`.

    Raises:
        UserError: when two images would get the same name.
    """
    names = [_submission_name(sample) for sample in samples]
    problems = Problems("the unlabelled test images cannot be numbered for a submission")
    for name in sorted({name for name in names if names.count(name) > 1}):
        clashing = ", ".join(
            sample.source for sample, other in zip(samples, names, strict=True) if other == name
        )
        problems.add(
            f"{clashing} would all be written as {name}; expected distinct numbers: rename the files"
        )
    problems.raise_if_any()
    folder.mkdir(parents=True, exist_ok=True)
    for sample, name in zip(samples, names, strict=True):
        levels = read_levels(predictions, sample.load())
        write_png(folder / name, mark(levels, threshold, binarisation))


def _submission_name(sample: Sample) -> str:
    number = re.match(r"\d+", Path(sample.source).name)
    return f"{int(number.group())}.png" if number else f"{sample.id}.png"


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, DECIMALS) for name, value in values.items()}
