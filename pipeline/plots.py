"""Figures of the report as inline SVG.

Text and axes take the colour of the page (`currentColor`), so that one figure serves light, dark and print.
Equal data give equal bytes: no date and a fixed salt for ids. Ids begin with the figure's name, so that
several figures can stand in one page.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe & Ito (2008), in the order in which series take them."""

MARKERS = ("o", "s", "D", "^", "v", "P")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), "-.")
_INK = "#010203"  # stands for the page's text colour until the figure is written
_STYLE: Any = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vesselforge",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def roc_figure(curves: Mapping[str, pd.DataFrame]) -> str:
    """Draw ROC curves with a magnified upper left corner.

    Args:
        curves: model → columns fpr, tpr.

    Returns:
        SVG.
    """

    def draw(axes: Axes) -> None:
        for index, (model, curve) in enumerate(curves.items()):
            axes.plot(curve["fpr"], curve["tpr"], label=model, **_line(index))
        axes.plot([0, 1], [0, 1], color=_INK, alpha=0.3, linewidth=1, linestyle=":")
        axes.set(xlabel="false-positive rate", ylabel="true-positive rate (sensitivity)", title="ROC")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
        corner = axes.inset_axes((0.42, 0.16, 0.54, 0.5), xlim=(0, 0.15), ylim=(0.6, 1.0))
        for index, curve in enumerate(curves.values()):
            corner.plot(curve["fpr"], curve["tpr"], **_line(index))
        corner.set_xticks([0, 0.05, 0.1, 0.15])
        corner.tick_params(labelsize=8)
        corner.set_facecolor("none")
        corner.grid(True)

    return _figure("roc", draw, legend="outside")


def precision_recall_figure(
    curves: Mapping[str, pd.DataFrame], working_points: Mapping[str, Sequence[float]]
) -> str:
    """Draw precision–recall curves, with each model's working point as a marker.

    Args:
        curves: model → columns recall, precision.
        working_points: model → (recall, precision) at the model's threshold.

    Returns:
        SVG.
    """

    def draw(axes: Axes) -> None:
        for index, (model, curve) in enumerate(curves.items()):
            axes.plot(curve["recall"], curve["precision"], label=model, **_line(index))
            recall, precision = working_points[model]
            axes.plot(recall, precision, MARKERS[index % len(MARKERS)], color=_colour(index), markersize=7)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision–recall")
        axes.set(xlim=(0, 1), ylim=(0, 1.01))

    return _figure("pr", draw, legend="outside")


def per_image_figure(scores: Mapping[str, Mapping[str, float]], label: str) -> str:
    """Draw one dot per image and model, images in rising order of the first model's score.

    Args:
        scores: model → image id → score in 0..1; every model has the same ids.
        label: name of the score.

    Returns:
        SVG.
    """
    reference = next(iter(scores.values()))
    ids = sorted(reference, key=lambda image_id: (reference[image_id], image_id))

    def draw(axes: Axes) -> None:
        places = np.arange(len(ids))
        axes.vlines(
            places,
            [min(row[image_id] for row in scores.values()) for image_id in ids],
            [max(row[image_id] for row in scores.values()) for image_id in ids],
            color=_INK,
            alpha=0.25,
            linewidth=1,
        )
        for index, (model, row) in enumerate(scores.items()):
            values = [row[image_id] for image_id in ids]
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(places, values, marker, color=_colour(index), label=model, markersize=6, alpha=0.9)
        names = ids if len(ids) <= 60 else [""] * len(ids)
        axes.set_xticks(places, names, rotation=90 if len(ids) > 8 else 0, fontsize=8)
        axes.set(ylabel=label, title=f"{label} of every test image", xlim=(-0.7, len(ids) - 0.3))

    return _figure("per_image", draw, size=(10.4, 3.6), legend="outside")


def segmenter_history_figures(histories: Mapping[str, pd.DataFrame]) -> list[str]:
    """Draw the training of the segmenters: losses of each, and validation AUC of all.

    Args:
        histories: model → columns phase, train_loss, validation_loss, validation_auc and kept, one row per
            epoch. Epochs are counted on over the phases; a dotted line marks where a phase begins, a marker
            the epoch whose weights were kept.

    Returns:
        One SVG per model with its losses, then one with the AUC of all.
    """
    figures = [
        _figure(f"loss_{index}", partial(_draw_losses, model=model, history=history, colour=_colour(index)))
        for index, (model, history) in enumerate(histories.items())
    ]

    def draw_auc(axes: Axes) -> None:
        for index, (model, history) in enumerate(histories.items()):
            epochs, values = _validated(history, "validation_auc")
            axes.plot(epochs, values, label=model, **_line(index))
            kept = np.flatnonzero(history["kept"].to_numpy(dtype=bool))
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(kept + 1, history["validation_auc"].iloc[kept], marker, color=_colour(index))
        axes.set(xlabel="epoch", ylabel="AUC", title="Validation AUC")

    return [*figures, _figure("validation_auc", draw_auc)]


def series_figures(table: pd.DataFrame, x: str, columns: Sequence[str], name: str) -> list[str]:
    """Draw each column of a table over another one, a figure per column.

    Args:
        table: holds `x` and `columns`, all numbers; missing values are passed over.
        x: name of the abscissa.
        columns: names of the ordinates.
        name: beginning of the figures' ids, unique in their page.

    Returns:
        One SVG per column.
    """

    def draw(axes: Axes, column: str) -> None:
        known = table.dropna(subset=[x, column])
        marker = "o" if len(known) == 1 else None
        axes.plot(known[x], known[column], marker=marker, **_line(0))
        axes.set(xlabel=x, title=column)

    return [
        _figure(f"{name}_{index}", partial(draw, column=column), size=(3.6, 2.4), legend=None)
        for index, column in enumerate(columns)
    ]


def _draw_losses(axes: Axes, *, model: str, history: pd.DataFrame, colour: str) -> None:
    for column, style, label in (("train_loss", "-", "training"), ("validation_loss", "--", "validation")):
        epochs, values = _validated(history, column)
        marker = "o" if len(values) == 1 else None
        axes.plot(epochs, values, style, color=colour, label=label, marker=marker)
    _mark_phases(axes, history)
    axes.set(xlabel="epoch", ylabel="loss", title=f"Loss: {model}")


def _validated(history: pd.DataFrame, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give epochs and values where there is a value: not every epoch is validated."""
    values = history[column].to_numpy(dtype=np.float64)
    known = np.isfinite(values)
    return np.flatnonzero(known) + 1, values[known]


def _mark_phases(axes: Axes, history: pd.DataFrame) -> None:
    phases = history["phase"].tolist()
    for row, phase in enumerate(phases):
        if row == 0 or phase != phases[row - 1]:
            if row:
                axes.axvline(row + 0.5, color=_INK, alpha=0.4, linewidth=1, linestyle=":")
            axes.text(
                row + 0.7,
                0.99,
                f" {phase}",
                transform=axes.get_xaxis_transform(),
                fontsize=8,
                va="top",
                alpha=0.7,
            )


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _line(index: int) -> dict[str, Any]:
    return {"color": _colour(index), "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 1.8}


def _figure(
    name: str,
    draw: Callable[[Axes], None],
    size: tuple[float, float] = (5.1, 3.9),
    legend: Literal["best", "outside"] | None = "best",
) -> str:
    """Make one figure; `draw` fills its axes."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(True)
        axes.set_axisbelow(True)
        draw(axes)
        if legend == "outside":
            figure.legend(loc="outside upper right", ncols=4)
        elif legend is not None:
            axes.legend(loc=legend)
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    return _for_page(buffer.getvalue(), name)


def _for_page(svg: str, name: str) -> str:
    """Cut the XML head, make ids unique in the page, and let the page decide ink and width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL
    )  # would reach the page
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = svg.replace(PALETTE[0], f"var(--accent, {PALETTE[0]})")  # too dark for a dark page
    return svg.replace(_INK, "currentColor")
