"""The report: one self-contained HTML page with figures, pictures, and what they allow to say.

Everything the page needs is inside it: no script, no web font, no link to another server. Equal inputs give
equal bytes. The module is told what to show (`ReportInputs`); it reads neither parameters nor the graph.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pipeline.binarise import Binarisation
from pipeline.diagram import Stage, stage_graph
from pipeline.errors import UserError
from pipeline.evaluation import FIELD_OF_VIEW, mark, read_levels
from pipeline.images import read_rgb
from pipeline.intervals import figure_cells
from pipeline.metrics.bootstrap import draw_images
from pipeline.overlay import LEGEND, comparison_overlay
from pipeline.plots import (
    per_image_figure,
    precision_recall_figure,
    roc_figure,
    segmenter_history_figures,
    series_figures,
)
from pipeline.prepared import Sample
from pipeline.verdict import (
    SIGNIFICANCE,
    Comparison,
    compare,
    model_rows,
    unequal_training,
    unfinished_training,
)

Summary = Mapping[str, Mapping[str, float]]
"""`pooled` and `mean`, each metric → value, as `pipeline.evaluation.write_metrics` wrote it."""

COLUMNS = {
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "accuracy": "Accuracy",
    "auc": "AUC",
    "average_precision": "Average precision",
    "paper_f1": "paper’s “F1”",
}
SHAPE_ROWS = (
    ("mean", "cldice", "clDice", 3),
    ("mean", "topology_precision", "Topology precision", 3),
    ("mean", "topology_sensitivity", "Topology sensitivity", 3),
    ("pooled", "thin_recall", "Recall on centrelines, thin vessels (≤ 3 px)", 3),
    ("pooled", "thick_recall", "Recall on centrelines, thick vessels", 3),
    ("mean", "components", "Connected components per mask", 1),
    ("mean", "components_truth", "– of the truth", 1),
    ("mean", "beta0_error", "β₀ error: difference in components", 1),
    ("mean", "mean_surface_distance", "Mean boundary distance, px", 2),
    ("mean", "hausdorff_95", "Hausdorff distance, 95th percentile, px", 2),
    ("pooled", "mcc", "Matthews correlation", 3),
    ("pooled", "iou", "Intersection over union", 3),
    ("pooled", "ece", "Expected calibration error", 4),
)
"""Rows of “Topology and calibration”: how images are averaged, figure, title, decimals."""

_OVERLAY_SIDE = 560
_SNAPSHOT_SIDE = 520
_SNAPSHOTS = 4
_REAL_IMAGES = 8
Item = TypeVar("Item")
_PNG_UP_TO = 200  # pixels of the long side; larger pictures are stored as JPEG


@dataclass(frozen=True)
class SyntheticExample:
    """A generated image with the probabilities that the base model gave it.

    Attributes:
        image: uint8 [H, W, 3].
        probability: float32 [H, W] in 0..1.
    """

    image: NDArray[np.uint8]
    probability: NDArray[np.float32]


@dataclass(frozen=True)
class ModelResults:
    """What is shown of one model.

    Attributes:
        name: as in the per-image table.
        threshold: probability from which on a pixel is marked.
        binarisation: how masks are made instead; None for the threshold alone.
        fov: figures inside the field of view.
        full_frame: figures over the whole frame.
        roc: columns fpr, tpr.
        precision_recall: columns recall, precision.
        predictions: folder of `<id>.png`, 16-bit probabilities.
        history: columns phase, epoch, learning_rate, train_loss, validation_loss, validation_auc, kept (true
            in the one row whose weights the model has); None for an ensemble.
    """

    name: str
    threshold: float
    binarisation: Binarisation | None
    fov: Summary
    full_frame: Summary
    roc: pd.DataFrame
    precision_recall: pd.DataFrame
    predictions: Path
    history: pd.DataFrame | None


@dataclass(frozen=True)
class ReportInputs:
    """All that the page shows.

    Attributes:
        dataset: one line on the test images.
        models: in the order of the tables; the first is the reference of the comparisons.
        per_image: the table of `pipeline.evaluation.write_per_image`.
        intervals: the table of `pipeline.intervals.write_intervals`.
        test_samples: labelled test images.
        synthetic: generated images with their pseudo-labels.
        gan_history: one row per tick; None when the generator was not trained here.
        gan_progress: the column of `gan_history` to draw the others over.
        gan_snapshots: sample grids by rising training time.
        stages: the graph, parents before children.
        params: parameters as text.
        versions: package → version.
        git_commit: None outside a repository.
        commands: how to make this page again, one line each.
        bootstrap_samples: number of bootstrap draws of the comparisons; `intervals` holds all other bounds.
        seed: of the bootstrap and the permutation test.
    """

    dataset: str
    models: Sequence[ModelResults]
    per_image: pd.DataFrame
    intervals: pd.DataFrame
    test_samples: Sequence[Sample]
    synthetic: Sequence[SyntheticExample]
    gan_history: pd.DataFrame | None
    gan_progress: str
    gan_snapshots: Sequence[Path]
    stages: Sequence[Stage]
    params: str
    versions: Mapping[str, str]
    git_commit: str | None
    commands: Sequence[str]
    bootstrap_samples: int
    seed: int


@dataclass(frozen=True)
class Picture:
    """An image inside the page."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """One table of models × metrics.

    Attributes:
        rows: model, threshold, cells in the order of `COLUMNS`.
    """

    title: str
    note: str
    rows: Sequence[tuple[str, str, Sequence[str]]]


def write_report(path: Path, inputs: ReportInputs) -> None:
    """Write the page.

    Raises:
        UserError: when the inputs do not fit together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(inputs), encoding="utf-8")


def render(inputs: ReportInputs) -> str:
    """Make the page as HTML text; equal inputs give equal text."""
    _check_images(inputs)
    draws = draw_images(len(inputs.test_samples), inputs.bootstrap_samples, inputs.seed)
    reference = inputs.models[0].name
    comparisons = [
        compare(inputs.per_image, model.name, reference, FIELD_OF_VIEW, draws, inputs.seed)
        for model in inputs.models[1:]
    ]
    histories = {model.name: model.history for model in inputs.models if model.history is not None}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        inputs=inputs,
        headline=_headline(comparisons),
        comparisons=comparisons,
        significance=SIGNIFICANCE,
        unequal_training=unequal_training(reference, histories) if reference in histories else None,
        unfinished_training=unfinished_training(histories),
        kept=[_kept_epoch(name, history) for name, history in histories.items()],
        columns=COLUMNS,
        tables=_tables(inputs),
        shape_rows=_shape_rows(inputs),
        figures=_figures(inputs, histories),
        legend=LEGEND,
        overlays={model.name: _overlays(inputs, model) for model in inputs.models},
        real=_real_pictures(inputs),
        synthetic=[_synthetic_pictures(index, example) for index, example in enumerate(inputs.synthetic)],
        snapshots=[_snapshot(path) for path in _spread(inputs.gan_snapshots, _SNAPSHOTS)],
        graph=Markup(stage_graph(inputs.stages)),
    )


def _check_images(inputs: ReportInputs) -> None:
    for model in inputs.models:
        rows = model_rows(inputs.per_image, model.name, FIELD_OF_VIEW)
        if list(rows["id"]) != sorted(sample.id for sample in inputs.test_samples):
            raise UserError(
                f"per_image.csv: the images of {model.name!r} are not those of the test split; "
                "run `evaluate` again"
            )


def _cut(model: ModelResults) -> str:
    """Say how masks were made: the threshold, and what else was fitted."""
    fitted = model.binarisation
    if fitted is None:
        return f"{model.threshold:.3f}"
    low = "" if fitted.hysteresis_low is None else f", down to {fitted.hysteresis_low:.3f}"
    size = f", ≥ {fitted.min_size} px" if fitted.min_size > 1 else ""
    return f"{fitted.threshold:.3f}{low}{size}"


def _headline(comparisons: Sequence[Comparison]) -> Comparison:
    if not comparisons:
        raise UserError("the report compares at least two models; got one")
    return comparisons[0]


def _tables(inputs: ReportInputs) -> list[Table]:
    images = len(inputs.test_samples)
    names = [model.name for model in inputs.models]
    intervals = figure_cells(inputs.intervals, names, FIELD_OF_VIEW, "pooled", "f1", 3)

    def table(title: str, note: str, region: str, mean: str, with_interval: bool = False) -> Table:
        lines = []
        for model, (_, bounds) in zip(inputs.models, intervals, strict=True):
            figures = (model.fov if region == FIELD_OF_VIEW else model.full_frame)[mean]
            cells = [f"{figures[name]:.4f}" for name in COLUMNS]
            if with_interval:
                cells[0] += f" {bounds}"
            lines.append((model.name, _cut(model), cells))
        return Table(title, note, lines)

    return [
        table(
            "Inside the field of view, all pixels pooled",
            f"The figures to quote. In brackets: 95% bootstrap interval over {images} test images.",
            FIELD_OF_VIEW,
            "pooled",
            with_interval=True,
        ),
        table(
            "Inside the field of view, mean of images",
            "Each image counts alike, whatever its size and vessel density.",
            FIELD_OF_VIEW,
            "mean",
        ),
        table(
            "Full frame, all pixels pooled",
            "Includes the black border, which every model gets right: accuracy, specificity and AUC "
            "look better than inside the field of view. For comparison with such papers only.",
            "full_frame",
            "pooled",
        ),
        table(
            "Full frame, mean of images",
            "As above, each image alike.",
            "full_frame",
            "mean",
        ),
    ]


def _shape_rows(inputs: ReportInputs) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Give title, averaging and, for every model, figure and interval: “–” where no image has the figure."""
    rows = []
    for average, figure, title, decimals in SHAPE_ROWS:
        models = [model.name for model in inputs.models]
        cells = figure_cells(inputs.intervals, models, FIELD_OF_VIEW, average, figure, decimals)
        rows.append((title, average, cells))
    return rows


def _kept_epoch(model: str, history: pd.DataFrame) -> tuple[str, str, str, str]:
    """Give model, phase, epoch and validation AUC of the weights that were kept."""
    kept = history[history["kept"].astype(bool)]
    if len(kept) != 1:
        raise UserError(
            f"history.csv of {model!r} marks {len(kept)} epochs as kept; expected one; train the model again"
        )
    row = kept.iloc[0]
    epoch = f"{row['epoch']} of {len(history)}"
    return model, str(row["phase"]), epoch, f"{row['validation_auc']:.4f}"


def _figures(inputs: ReportInputs, histories: Mapping[str, pd.DataFrame]) -> dict[str, list[Markup]]:
    scores = {}
    for model in inputs.models:
        rows = model_rows(inputs.per_image, model.name, FIELD_OF_VIEW)
        scores[model.name] = dict(zip(rows["id"].astype(str), rows["f1"], strict=True))
    points = {
        model.name: (model.fov["pooled"]["sensitivity"], model.fov["pooled"]["precision"])
        for model in inputs.models
    }
    curves = [
        roc_figure({model.name: model.roc for model in inputs.models}),
        precision_recall_figure({model.name: model.precision_recall for model in inputs.models}, points),
    ]
    figures = {
        "per_image": [per_image_figure(scores, "F1")],
        "curves": curves,
        "training": segmenter_history_figures(histories) if histories else [],
        "gan": _gan_figures(inputs),
    }
    return {name: [Markup(svg) for svg in drawn] for name, drawn in figures.items()}


def _gan_figures(inputs: ReportInputs) -> list[str]:
    history, progress = inputs.gan_history, inputs.gan_progress
    if history is None or history.empty:
        return []
    if progress not in history:
        columns = ", ".join(history.columns.astype(str))
        raise UserError(f"history.csv of the GAN has no column {progress!r}; it has {columns}")
    numbers = history.select_dtypes("number").columns
    return series_figures(history, progress, [name for name in numbers if name != progress], "gan")


def _overlays(inputs: ReportInputs, model: ModelResults) -> list[Picture]:
    """Best, median and worst test image of a model by F1 inside the field of view (fewer with few images)."""
    rows = model_rows(inputs.per_image, model.name, FIELD_OF_VIEW)
    ranked = rows.sort_values(["f1", "id"], ascending=[False, True], ignore_index=True)
    samples = {sample.id: sample for sample in inputs.test_samples}
    picks = {0: "best", (len(ranked) - 1) // 2: "median", len(ranked) - 1: "worst"}
    pictures = []
    for place, rank in sorted(picks.items()):
        row = ranked.iloc[place]
        frame = samples[str(row["id"])].load()
        assert frame.vessels is not None  # test_samples are labelled
        marked = mark(read_levels(model.predictions, frame), model.threshold, model.binarisation)
        overlay = comparison_overlay(frame.image, marked, frame.vessels, frame.fov)
        figures = f"F1 {row['f1']:.3f} · Se {row['sensitivity']:.3f} · Pr {row['precision']:.3f}"
        caption = f"{rank}: {frame.id} · {figures}"
        pictures.append(
            Picture(
                data_uri(overlay, _OVERLAY_SIDE), f"{model.name} on test image {frame.id}, {rank}", caption
            )
        )
    return pictures


def _real_pictures(inputs: ReportInputs) -> list[Picture]:
    """Test photographs at the size of the generated images, to compare like with like."""
    side = max(inputs.synthetic[0].image.shape[:2]) if inputs.synthetic else _SNAPSHOT_SIDE
    return [
        Picture(data_uri(read_rgb(sample.image), side), f"test photograph {sample.id}", sample.id)
        for sample in _spread(inputs.test_samples, _REAL_IMAGES)
    ]


def _synthetic_pictures(index: int, example: SyntheticExample) -> tuple[Picture, Picture]:
    label = (example.probability * 255).round().astype(np.uint8)
    return (
        Picture(data_uri(example.image, _SNAPSHOT_SIDE), f"synthetic image {index}"),
        Picture(data_uri(label, _SNAPSHOT_SIDE), f"pseudo-label of synthetic image {index}"),
    )


def _snapshot(path: Path) -> Picture:
    return Picture(data_uri(read_rgb(path), _SNAPSHOT_SIDE), f"sample grid {path.stem}", path.stem)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Choose up to `count` items at even steps, the first and the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(step * (len(items) - 1) / (count - 1))] for step in range(count)]


def data_uri(image: NDArray[np.uint8], max_side: int) -> str:
    """Encode a picture for the page, reduced to `max_side` pixels when larger.

    Args:
        image: uint8 [H, W, 3] or [H, W].
        max_side: largest side in the page, in pixels.

    Returns:
        `data:` URI: PNG for small pictures, else JPEG, whose colours keep full resolution for thin lines.
    """
    height, width = image.shape[:2]
    if max(height, width) > max_side:
        scale = max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    buffer = io.BytesIO()
    if max(image.shape[:2]) <= _PNG_UP_TO:
        kind = "png"
        Image.fromarray(image).save(buffer, "PNG", compress_level=9)
    else:
        kind = "jpeg"
        Image.fromarray(image).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
