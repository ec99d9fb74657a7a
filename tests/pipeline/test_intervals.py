import math

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.evaluation import (
    FIELD_OF_VIEW,
    FULL_FRAME,
    REGIONS,
    evaluate_predictions,
    write_metrics,
    write_predictions,
)
from pipeline.intervals import (
    COLUMNS,
    HEADLINES,
    figure_cells,
    headlines,
    interval_table,
    read_intervals,
    write_intervals,
)
from pipeline.metrics.bootstrap import draw_images, f1_difference
from pipeline.prepared import Entry, Frame, write_prepared
from pipeline.verdict import f1_counts, model_rows

IMAGES = 7


class Guess:
    """Knows the truth (the red channel), and blurs it by a noise that grows with the image's number."""

    def predict(self, image):
        number = int(image[0, 0, 2])
        rng = np.random.default_rng(number)
        noise = rng.random(image.shape[:2]) * (0.8 + 0.05 * number)
        return np.clip(image[..., 0] / 255 * 0.35 + noise * 0.6, 0, 1).astype(np.float32)


def frame(number, thick=True):
    rng = np.random.default_rng(number)
    vessels = np.zeros((36, 44), bool)
    vessels[8, 3 : 30 + number] = True
    vessels[20, 5:40] = True
    if thick:
        vessels[26:31, 4:40] = True
    image = rng.integers(0, 255, (36, 44, 3), dtype=np.uint8)
    image[..., 0] = vessels * 255
    image[..., 2] = number
    fov = np.zeros_like(vessels)
    fov[2:-2, 2:-2] = True
    return Frame(f"{number:02d}", image, vessels, fov)


def evaluation_of(folder, thick=range(IMAGES)):
    entries = [Entry(frame(number, number in thick), "test", f"{number}.tif") for number in range(IMAGES)]
    samples = write_prepared(folder / "test", entries)
    write_predictions(Guess(), samples, folder / "p")
    return evaluate_predictions(folder / "p", samples, 0.5)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return evaluation_of(tmp_path_factory.mktemp("intervals"))


@pytest.fixture(scope="module")
def table(evaluation):
    return interval_table(evaluation, "base", 300, 5)


def value(table, region, average, figure, column="value"):
    rows = table[(table["region"] == region) & (table["average"] == average) & (table["figure"] == figure)]
    assert len(rows) == 1, (average, figure)
    return float(rows.iloc[0][column])


@pytest.mark.parametrize("region", REGIONS)
def test_figures_are_those_of_the_summary_and_of_the_images(evaluation, table, region):
    for average, figures in evaluation.summary(region).items():
        for figure, expected in figures.items():
            assert value(table, region, average, figure) == pytest.approx(expected, abs=5e-7)
    rows = model_rows(evaluation.per_image("base"), "base", region)
    for figure in set(table["figure"][table["average"] == "mean"]):
        assert value(table, region, "mean", figure) == pytest.approx(rows[figure].mean(), abs=1e-12)
    found, length = rows["thin_found"].sum(), rows["thin_centreline"].sum()
    assert value(table, region, "pooled", "thin_recall") == found / length
    hits, errors = (rows[name].sum() for name in ("true_positive", "false_positive"))
    assert value(table, region, "pooled", "iou") == hits / (hits + errors + rows["false_negative"].sum())


def test_every_figure_has_an_interval_around_it(table):
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["model", "region", "average", "figure"]).any()
    assert np.isfinite(table[["value", "low", "high"]]).all(axis=None)
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    moving = table[~table["figure"].isin({"components_truth"})]
    assert (moving["low"] < moving["high"]).mean() > 0.9


def test_the_interval_of_f1_is_that_of_the_verdict(evaluation, table):
    rows = model_rows(evaluation.per_image("base"), "base", FIELD_OF_VIEW)
    counts = f1_counts(rows)
    expected = f1_difference(counts, np.zeros_like(counts), draw_images(IMAGES, 300, 5))
    got = [value(table, FIELD_OF_VIEW, "pooled", "f1", name) for name in ("value", "low", "high")]
    assert got == [expected.value, expected.low, expected.high]


def test_seeds_decide(evaluation, table):
    pd.testing.assert_frame_equal(interval_table(evaluation, "base", 300, 5), table)
    other = interval_table(evaluation, "base", 300, 6)
    assert (other["value"] == table["value"]).all()
    assert (other["low"] != table["low"]).any()


def test_files_of_metrics_hold_the_headlines(table, tmp_path):
    files = headlines(table, FIELD_OF_VIEW)
    assert list(files) == list(HEADLINES) == ["topology", "agreement"]
    for folder, content in files.items():
        wanted = {
            (average, f"{figure}{end}") for average, figure in HEADLINES[folder] for end in ("", "_lo", "_hi")
        }
        assert {(average, name) for average, part in content.items() for name in part} == wanted
        assert len(wanted) <= 15
        write_metrics(tmp_path / folder / "base.json", content)  # refuses NaN
        for part in content.values():
            assert all(number == round(number, 6) for number in part.values())
    expected = value(table, FIELD_OF_VIEW, "mean", "cldice", "high")
    assert files["topology"]["mean"]["cldice_hi"] == round(expected, 6)
    assert headlines(table, FULL_FRAME) != files


def test_what_no_image_has_is_left_out(tmp_path):
    table = interval_table(evaluation_of(tmp_path, thick=()), "base", 100, 0)
    assert "thick_recall" not in set(table["figure"])
    assert "thick_recall" not in headlines(table, FIELD_OF_VIEW)["topology"]["pooled"]
    assert "thin_recall" in headlines(table, FIELD_OF_VIEW)["topology"]["pooled"]
    assert figure_cells(table, ["base"], FIELD_OF_VIEW, "pooled", "thick_recall", 3) == [("–", "")]


def test_draws_without_any_thick_vessel_do_not_count(tmp_path):
    evaluation = evaluation_of(tmp_path, thick=(2, 5))
    table = interval_table(evaluation, "base", 200, 0)
    rows = model_rows(evaluation.per_image("base"), "base", FIELD_OF_VIEW)
    recalls = sorted(rows["thick_recall"].dropna())
    assert len(recalls) == 2
    bounds = [
        value(table, FIELD_OF_VIEW, "pooled", "thick_recall", name) for name in ("low", "value", "high")
    ]
    assert bounds == sorted(bounds)
    assert 0 < recalls[0] <= bounds[0] and bounds[2] <= recalls[1]  # not 0, as in a tenth of all draws
    alone = interval_table(evaluation_of(tmp_path / "one", thick=(2,)), "base", 200, 0)
    ends = [value(alone, FIELD_OF_VIEW, "pooled", "thick_recall", name) for name in ("low", "high")]
    assert np.isnan(ends).all()
    found = value(alone, FIELD_OF_VIEW, "pooled", "thick_recall")
    pooled = headlines(alone, FIELD_OF_VIEW)["topology"]["pooled"]
    assert {name: number for name, number in pooled.items() if "thick" in name} == {
        "thick_recall": round(found, 6)
    }


def test_a_single_image_has_figures_without_intervals(tmp_path):
    samples = write_prepared(tmp_path / "test", [Entry(frame(2), "test", "2.tif")])
    write_predictions(Guess(), samples, tmp_path / "p")
    table = interval_table(evaluate_predictions(tmp_path / "p", samples, 0.5), "base", 100, 0)
    assert table[["low", "high"]].isna().all(axis=None) and table["value"].notna().all()
    f1 = value(table, FIELD_OF_VIEW, "pooled", "f1")
    assert figure_cells(table, ["base"], FIELD_OF_VIEW, "pooled", "f1", 3) == [(f"{f1:.3f}", "")]
    for folder, content in headlines(table, FIELD_OF_VIEW).items():
        write_metrics(tmp_path / f"{folder}.json", content)  # refuses NaN
        assert content and all(
            not name.endswith(("_lo", "_hi")) for part in content.values() for name in part
        )
    write_intervals(tmp_path / "intervals.csv", [table])
    rows = (tmp_path / "intervals.csv").read_text().splitlines()
    assert len(rows) > 1 and all(row.endswith(",,") for row in rows[1:])
    again = read_intervals(tmp_path / "intervals.csv")
    assert figure_cells(again, ["base"], FIELD_OF_VIEW, "pooled", "f1", 3) == [(f"{f1:.3f}", "")]


def test_a_model_that_finds_nothing_has_figures(tmp_path):
    class Nothing:
        def predict(self, image):
            return np.zeros(image.shape[:2], np.float32)

    samples = write_prepared(tmp_path / "test", [Entry(frame(n), "test", f"{n}") for n in range(IMAGES)])
    write_predictions(Nothing(), samples, tmp_path / "p")
    table = interval_table(evaluate_predictions(tmp_path / "p", samples, 0.5), "base", 100, 0)
    assert np.isfinite(table[["value", "low", "high"]]).all(axis=None)
    for average, figure in (
        ("mean", "cldice"),
        ("pooled", "thin_recall"),
        ("pooled", "mcc"),
        ("mean", "components"),
    ):
        assert value(table, FIELD_OF_VIEW, average, figure) == 0
    assert value(table, FIELD_OF_VIEW, "mean", "beta0_error") == 3
    diagonal = math.hypot(36 - 5, 44 - 5)  # of the field of view
    assert value(table, FIELD_OF_VIEW, "mean", "hausdorff_95") == pytest.approx(diagonal)


def test_round_trip(table, tmp_path):
    path = tmp_path / "metrics" / "intervals.csv"
    write_intervals(path, [table, table.assign(model="retrained")])
    got = read_intervals(path)
    assert list(got["model"].unique()) == ["base", "retrained"]
    assert got["value"].tolist()[: len(table)] == table["value"].round(6).tolist()
    (cell,) = figure_cells(got, ["retrained"], FIELD_OF_VIEW, "mean", "cldice", 3)
    low, high = (value(table, FIELD_OF_VIEW, "mean", "cldice", name) for name in ("low", "high"))
    assert cell[1] == f"[{low:.3f}, {high:.3f}]"
    path.write_text("model,figure\nbase,f1\n")
    with pytest.raises(UserError, match="lacks the columns region, average, value, low, high"):
        read_intervals(path)
