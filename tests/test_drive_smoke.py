"""The page on DRIVE at 128 pixels: what it says of the models follows from the kept figures."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.metrics.bootstrap import draw_images
from pipeline.verdict import Comparison, compare, f1_counts, model_rows

PAGE = Path(__file__).resolve().parent.parent / "docs/results/drive-smoke"
SAMPLES, SEED = 2000, 0  # report.bootstrap_samples and seed of presets/drive-smoke.yaml
COLUMNS = ("f1", "sensitivity", "specificity", "precision", "accuracy")


@pytest.fixture(scope="module")
def models() -> pd.DataFrame:
    """Every image's figures by the four models: those of the run, and the control."""
    run, control = (
        pd.read_csv(PAGE / f"figures/{name}.csv", dtype={"id": str}) for name in ("run", "control")
    )
    base = [model_rows(table, "base", "fov").drop(columns="model") for table in (run, control)]
    pd.testing.assert_frame_equal(*base)  # or the control would be compared with another base model
    retrained = control[control.model == "retrained"]
    return pd.concat([run, retrained.assign(model="control")], ignore_index=True)


def row_of(table: str, model: str) -> str:
    """The one line of a table that is a model's."""
    (row,) = [line for line in table.splitlines() if line.startswith(f"| {model} |")]
    return row


def f1(rows: pd.DataFrame) -> float:
    """Of all images together."""
    hits, alarms, misses = f1_counts(rows).sum(axis=0)
    return float(2 * hits / (2 * hits + alarms + misses))


def test_the_page_says_what_the_comparisons_give(models: pd.DataFrame) -> None:
    page = " ".join((PAGE / "README.md").read_text(encoding="utf-8").replace("−", "-").split())

    def of(model: str, reference: str) -> Comparison:
        return compare(models, model, reference, "fov", draw_images(20, SAMPLES, SEED), SEED)

    def interval(found: Comparison) -> str:
        return f"{found.difference.low:.4f} to {found.difference.high:.4f}"

    retrained, ensemble = of("retrained", "base"), of("ensemble", "base")
    control, against = of("control", "base"), of("retrained", "control")
    for sentence in (
        f"is {-retrained.difference.value:.4f} below the base model's (95% interval {interval(retrained)}, "
        f"paired permutation p = {retrained.p:.3f};",
        f"the ensemble's {ensemble.difference.value:.4f} above ({interval(ensemble)}, p = {ensemble.p:.2f})",
        f"{control.difference.value:.4f} above the base model ({interval(control)}, p < 0.001)",
        f"the retrained model is {-against.difference.value:.4f} below it** ({interval(against)}, p < 0.001)",
    ):
        assert sentence in page
    assert max(control.p, against.p) < 0.001
    assert f"reaches F1 {f1(model_rows(models, 'control', 'fov')):.4f}, AUC" in page


@pytest.mark.parametrize(
    ("title", "region"), [("inside the field of view", "fov"), ("full frame", "full_frame")]
)
def test_the_pages_rows_follow_from_the_kept_figures(models: pd.DataFrame, title: str, region: str) -> None:
    page = (PAGE / "README.md").read_text(encoding="utf-8")
    table = page.split(f"| {title} | {' | '.join(COLUMNS)}", 1)[1].split("\n\n")[0]
    for model in ("base", "retrained", "ensemble"):
        rows = model_rows(models, model, region)
        hits, alarms, misses = f1_counts(rows).sum(axis=0)
        others = rows["true_negative"].sum()
        specificity, precision = others / (others + alarms), hits / (hits + alarms)
        accuracy = (hits + others) / (hits + alarms + misses + others)
        expected = (f1(rows), hits / (hits + misses), specificity, precision, accuracy)
        row = row_of(table, model)
        assert row.startswith(f"| {model} | {' | '.join(f'{value:.4f}' for value in expected)} |")
        assert row.endswith(f"| {2 * precision * specificity / (precision + specificity):.4f} |")


def test_the_pages_shapes_follow_from_the_kept_figures(models: pd.DataFrame) -> None:
    page = (PAGE / "README.md").read_text(encoding="utf-8")
    table = page.split("| inside the field of view | clDice", 1)[1].split("\n\n")[0]
    for model in ("base", "retrained", "ensemble"):
        rows = model_rows(models, model, "fov")
        thin = rows["thin_found"].sum() / rows["thin_centreline"].sum()
        thick = rows["thick_found"].sum() / rows["thick_centreline"].sum()
        found = [cell.split(" [")[0] for cell in row_of(table, model).strip("| ").split(" | ")[1:]]
        expected = [rows["cldice"].mean(), thin, thick, rows["components"].mean()]
        assert found == [f"{value:.{n}f}" for value, n in zip(expected, (3, 3, 3, 1), strict=True)]
