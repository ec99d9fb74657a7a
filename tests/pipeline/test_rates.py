import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from pipeline.metrics.rates import RATES, harmonic_mean, iou, mcc, ratio

SKLEARN = {
    "sensitivity": lambda y, p: sklearn_metrics.recall_score(y, p, zero_division=0),
    "specificity": lambda y, p: sklearn_metrics.recall_score(~y, ~p, zero_division=0),
    "precision": lambda y, p: sklearn_metrics.precision_score(y, p, zero_division=0),
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": lambda y, p: sklearn_metrics.f1_score(y, p, zero_division=0),
    "mcc": sklearn_metrics.matthews_corrcoef,
    "iou": lambda y, p: sklearn_metrics.jaccard_score(y, p, zero_division=0),
}


def counts_of(truth, marked):
    return np.array([np.sum(a & b) for a, b in pairs(truth, marked)])


def pairs(truth, marked):
    return [(truth, marked), (~truth, marked), (~truth, ~marked), (truth, ~marked)]


@pytest.mark.parametrize("name", SKLEARN)
def test_agrees_with_sklearn(name):
    rng = np.random.default_rng(0)
    truths = rng.random((5, 3000)) < 0.13
    masks = truths ^ (rng.random((5, 3000)) < np.linspace(0.01, 0.6, 5)[:, None])
    stacked = np.stack([counts_of(truth, mask) for truth, mask in zip(truths, masks, strict=True)])
    expected = [SKLEARN[name](truth, mask) for truth, mask in zip(truths, masks, strict=True)]
    np.testing.assert_allclose(RATES[name](stacked), expected, atol=1e-12)


def test_hand_made_case():
    counts = np.array([6, 1, 90, 3])
    assert iou(counts) == 0.6
    assert mcc(counts) == pytest.approx((6 * 90 - 1 * 3) / np.sqrt(7 * 9 * 91 * 93))
    assert mcc(np.array([5, 0, 7, 0])) == pytest.approx(1)
    assert mcc(np.array([0, 7, 0, 5])) == pytest.approx(-1)


def test_undefined_is_0():
    for counts in ([0, 0, 9, 4], [0, 0, 0, 0], [0, 5, 0, 0], [7, 0, 0, 0]):
        for name, rate in RATES.items():
            assert 0 <= rate(np.array(counts)) <= 1, name
    assert mcc(np.array([0, 0, 9, 4])) == 0  # nothing is marked
    assert ratio(3, 0) == 0
    assert harmonic_mean(0, 0) == 0


def test_large_counts_do_not_overflow():
    counts = np.array([6, 1, 90, 3], np.int64)
    np.testing.assert_allclose(mcc(counts * 10**12), mcc(counts), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_every_figure_stays_in_its_range(values):
    stacked = np.array(values).reshape(2, 4)
    for name, rate in RATES.items():
        got = rate(stacked)
        assert got.shape == (2,)
        assert np.isfinite(got).all()
        assert (got >= (-1 - 1e-12 if name == "mcc" else 0)).all()
        assert (got <= 1 + 1e-12).all()
    f1 = RATES["f1"](stacked)
    np.testing.assert_allclose(iou(stacked), f1 / (2 - f1), atol=1e-12)
