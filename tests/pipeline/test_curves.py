import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from pipeline.curves import precision_recall_curve, roc_curve, thin, write_curve
from pipeline.errors import UserError
from pipeline.metrics import pixel
from pipeline.metrics.pixel import LevelCounts


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(5)
    truth = rng.random((100, 200)) < 0.12
    score = 1 / (1 + np.exp(-rng.normal(-3 + 5 * truth, 1.5)))
    stored = np.round(score * 65535).astype(np.uint16)
    return stored, truth, LevelCounts.count(stored, truth, np.ones_like(truth))


def test_roc_is_that_of_sklearn(case):
    stored, truth, counts = case
    curve = roc_curve(counts)
    fpr, tpr, _ = sklearn_metrics.roc_curve(truth.ravel(), stored.ravel(), drop_intermediate=False)
    assert np.allclose(curve["fpr"], fpr, atol=1e-12)
    assert np.allclose(curve["tpr"], tpr, atol=1e-12)
    assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(pixel.auc(counts), abs=1e-12)


def test_precision_recall_is_that_of_sklearn(case):
    stored, truth, counts = case
    curve = precision_recall_curve(counts)
    precision, recall, thresholds = sklearn_metrics.precision_recall_curve(truth.ravel(), stored.ravel())
    # sklearn rises in threshold and adds the made-up point (recall 0, precision 1)
    assert np.allclose(curve["precision"], precision[:-1][::-1], atol=1e-12)
    assert np.allclose(curve["recall"], recall[:-1][::-1], atol=1e-12)
    assert np.allclose(curve["threshold"], thresholds[::-1] / 65535, atol=1e-12)


def test_thinned_curves_keep_their_shape(case):
    *_, counts = case
    thinned, whole = roc_curve(counts, 200), roc_curve(counts)
    assert len(thinned) == 200 < len(whole)
    assert np.trapezoid(thinned["tpr"], thinned["fpr"]) == pytest.approx(pixel.auc(counts), abs=1e-4)
    assert distance(whole[["fpr", "tpr"]], thinned[["fpr", "tpr"]]) < 0.001
    assert tuple(thinned.iloc[0][["fpr", "tpr"]]) == (0, 0)
    assert tuple(thinned.iloc[-1][["fpr", "tpr"]]) == (1, 1)

    thinned, whole = precision_recall_curve(counts, 200), precision_recall_curve(counts)
    assert len(thinned) == 200 < len(whole)
    assert distance(whole[["recall", "precision"]], thinned[["recall", "precision"]]) < 0.002


def distance(points, line):
    """Largest distance of a point from a line of segments."""
    points, line = points.to_numpy()[:, None], line.to_numpy()
    start, chord = line[:-1], np.diff(line, axis=0)
    along = np.clip(((points - start) * chord).sum(-1) / (chord**2).sum(-1).clip(min=1e-300), 0, 1)
    return np.linalg.norm(points - start - along[..., None] * chord, axis=-1).min(axis=1).max()


def test_thinned_points_are_points_of_the_curve(case):
    *_, counts = case
    whole, thinned = roc_curve(counts), roc_curve(counts, 50)
    merged = thinned.merge(whole, on=["threshold", "fpr", "tpr"])
    assert len(merged) == len(thinned)


def test_short_curves_are_left_alone():
    x = np.array([0.0, 0.5, 1.0])
    assert list(thin(x, x, 3)) == [0, 1, 2]
    assert list(thin(x, x, None)) == [0, 1, 2]
    with pytest.raises(ValueError, match="at least 2"):
        thin(x, x, 1)


def test_one_class_has_no_curve():
    truth = np.zeros((2, 2), bool)
    counts = LevelCounts.count(np.zeros((2, 2), np.uint16), truth, ~truth)
    with pytest.raises(UserError, match="no vessel pixel"):
        roc_curve(counts)


def test_files_hold_finite_numbers_only(case, tmp_path):
    *_, counts = case
    write_curve(tmp_path / "roc.csv", roc_curve(counts, 200))
    write_curve(tmp_path / "pr.csv", precision_recall_curve(counts, 200))
    for name, columns in (("roc", ["threshold", "fpr", "tpr"]), ("pr", ["threshold", "recall", "precision"])):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        assert list(table.columns) == columns
        assert np.isfinite(table.to_numpy()).all()
        assert table["threshold"].is_monotonic_decreasing
    again = tmp_path / "again.csv"
    write_curve(again, roc_curve(counts, 200))
    assert again.read_bytes() == (tmp_path / "roc.csv").read_bytes()
