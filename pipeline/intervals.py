"""Every figure of an evaluation with its 95% bootstrap interval over the test images.

    intervals.csv   model, region, average, figure, value, low, high

`average` says how images are put together: `pooled` counts all pixels as one picture, `mean` is the mean of
the images' own figures. A figure that no test image has (recall of thick vessels where there are none) is
left out; where only some images have it, the draws are of these (a draw of the others has no such recall).
A figure of a single image has no interval: `low` and `high` are empty in the file, NaN in the table.
Equal seeds give every model the same draws.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from pipeline.evaluation import DECIMALS, Evaluation, ImageScore
from pipeline.metrics import topology
from pipeline.metrics.bootstrap import Statistic, draw_images, draw_weights, interval, of_mean, of_pooled
from pipeline.metrics.calibration import expected_calibration_error
from pipeline.metrics.pixel import METRIC_NAMES
from pipeline.metrics.pooling import pooled_auc, pooled_average_precision
from pipeline.metrics.rates import RATES

COLUMNS = ("model", "region", "average", "figure", "value", "low", "high")

FEW_IMAGES = 8
"""Intervals over fewer images are too short: so few do not show how far images differ."""

HEADLINES: Mapping[str, Sequence[tuple[str, str]]] = {
    "topology": (
        ("mean", "cldice"),
        ("pooled", "thin_recall"),
        ("pooled", "thick_recall"),
        ("mean", "components"),
        ("mean", "beta0_error"),
    ),
    "agreement": (
        ("pooled", "mcc"),
        ("pooled", "iou"),
        ("pooled", "ece"),
        ("mean", "mean_surface_distance"),
        ("mean", "hausdorff_95"),
    ),
}
"""Folder of metrics → (average, figure) of its files: the few that `dvc metrics` shows."""

_MEAN_PIXEL_FIGURES = (*METRIC_NAMES, "mcc", "iou", "ece")
_MEAN_SHAPE_FIGURES = (
    "cldice",
    "topology_precision",
    "topology_sensitivity",
    "components",
    "components_truth",
    "beta0_error",
    "mean_surface_distance",
    "hausdorff_95",
)


def interval_table(evaluation: Evaluation, model: str, samples: int, seed: int) -> pd.DataFrame:
    """Compute every figure with its interval in every region.

    Args:
        evaluation: of one model.
        model: its name.
        samples: number of bootstrap draws.
        seed: of the draws.

    Returns:
        Columns `COLUMNS`, one row per region, average and figure.
    """
    rows = []
    for region in evaluation.pooled:
        scores = [score for score in evaluation.images if score.region == region]
        weights = cache(lambda images: draw_weights(draw_images(images, samples, seed)))
        for average, figure, images, statistic in _statistics(scores):
            found = interval(statistic, weights(images))
            rows.append((model, region, average, figure, found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def headlines(table: pd.DataFrame, region: str) -> dict[str, dict[str, dict[str, float]]]:
    """Pick the figures of one model for its files of metrics; those that the table lacks are left out.

    Args:
        table: of one model, see `interval_table`.
        region: one of its regions.

    Returns:
        Folder → {average: {figure: value, figure_lo: …, figure_hi: …}}, rounded to six decimals; without
        figure_lo and figure_hi where there is no interval.
    """
    rows = table[table["region"] == region]
    names = list(zip(rows["average"], rows["figure"], strict=True))
    bounds = dict(zip(names, rows[["value", "low", "high"]].to_numpy().round(DECIMALS).tolist(), strict=True))
    files: dict[str, dict[str, dict[str, float]]] = {folder: {} for folder in HEADLINES}
    for folder, figures in HEADLINES.items():
        for average, figure in figures:
            if (average, figure) in bounds:
                keys = (figure, f"{figure}_lo", f"{figure}_hi")
                numbers = zip(keys, bounds[average, figure], strict=True)
                found = {key: number for key, number in numbers if not math.isnan(number)}
                files[folder].setdefault(average, {}).update(found)
    return files


def write_intervals(path: Path, tables: Sequence[pd.DataFrame]) -> None:
    """Write the tables of several models as one CSV, six decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.concat(tables, ignore_index=True)
    table.to_csv(path, index=False, float_format=f"%.{DECIMALS}f", lineterminator="\n")


def read_intervals(path: Path) -> pd.DataFrame:
    """Read what `write_intervals` wrote.

    Raises:
        UserError: when columns are missing.
    """
    table = pd.read_csv(path)
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; run `evaluate` again")
    return table


def figure_cells(
    table: pd.DataFrame, models: Sequence[str], region: str, average: str, figure: str, decimals: int
) -> list[tuple[str, str]]:
    """Write a figure and its interval for every model, as (`0.763`, `[0.747, 0.779]`).

    Args:
        table: see `interval_table`; of several models.
        models: in the order wanted.
        region: one of the table's regions.
        average: `pooled` or `mean`.
        figure: its name.
        decimals: of the numbers.

    Returns:
        (`–`, ``) where no image has the figure, (`0.763`, ``) where it has no interval.

    Raises:
        UserError: when the table knows nothing of a model.
    """
    missing = [model for model in models if model not in set(table["model"])]
    if missing:
        raise UserError(f"intervals.csv has no row for model {missing[0]!r}; run `evaluate` again")
    wanted = table[(table["region"] == region) & (table["average"] == average) & (table["figure"] == figure)]
    cells = {
        model: (f"{value:.{decimals}f}", _bounds(low, high, decimals))
        for model, (value, low, high) in zip(
            wanted["model"], wanted[["value", "low", "high"]].to_numpy(), strict=True
        )
    }
    return [cells.get(model, ("–", "")) for model in models]


def _bounds(low: float, high: float, decimals: int) -> str:
    return "" if math.isnan(low) else f"[{low:.{decimals}f}, {high:.{decimals}f}]"


def _statistics(scores: Sequence[ImageScore]) -> list[tuple[str, str, int, Statistic]]:
    """Give (average, figure, number of images that have it, how to compute it from their weights)."""
    count = len(scores)
    confusion = np.stack([score.confusion.as_array() for score in scores])
    skeletons = np.stack([score.topology.as_array() for score in scores])
    levels = [score.levels for score in scores]
    bins = np.stack([score.calibration for score in scores])
    statistics = [("pooled", name, count, of_pooled(rate, confusion)) for name, rate in RATES.items()]
    statistics += [
        ("pooled", "auc", count, pooled_auc(levels)),
        ("pooled", "average_precision", count, pooled_average_precision(levels)),
        ("pooled", "ece", count, of_pooled(expected_calibration_error, bins)),
    ]
    for name, recall, place in (
        ("thin_recall", topology.thin_recall, topology.COLUMNS.index("thin_centreline")),
        ("thick_recall", topology.thick_recall, topology.COLUMNS.index("thick_centreline")),
    ):
        having = skeletons[skeletons[:, place] > 0]  # the others would add draws without a recall
        if len(having):
            statistics.append(("pooled", name, len(having), of_pooled(recall, having)))
    figures = pd.DataFrame([score.figures() for score in scores])
    for name in (*_MEAN_PIXEL_FIGURES, *_MEAN_SHAPE_FIGURES):
        statistics.append(("mean", name, count, of_mean(figures[name].to_numpy())))
    return statistics
