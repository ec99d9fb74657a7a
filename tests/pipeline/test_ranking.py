"""AUC, average precision and the fitted threshold against scikit-learn and hand-made cases."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from pipeline.metrics.ranking import average_precision, roc_auc
from pipeline.threshold import best_f1_threshold


@pytest.mark.parametrize("decimals", [1, 2, 6])
def test_equals_scikit_learn_with_and_without_ties(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    labels = rng.random(5000) < 0.2
    scores = np.round(rng.random(5000) + 0.3 * labels, decimals).astype(np.float32)
    assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


def test_equal_scores_rank_nothing() -> None:
    labels = np.array([True, False, False, False])
    assert roc_auc(np.full(4, 0.5), labels) == 0.5
    assert average_precision(np.full(4, 0.5), labels) == 0.25


def test_best_threshold_beats_every_other_thousandth() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(800) < 0.3
    scores = (rng.random(800) * 0.6 + 0.2 * labels).astype(np.float32)
    found = best_f1_threshold(scores, labels)
    every = [f1_score(labels, scores >= k / 1000) for k in range(1, 1000)]
    assert f1_score(labels, scores >= found) == max(every)
    assert found == pytest.approx(round(found, 3))


def test_best_threshold_prefers_the_middle_among_equals() -> None:
    assert best_f1_threshold(np.array([0.1, 0.2, 0.8, 0.9]), np.array([False, False, True, True])) == 0.5


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        (np.zeros(3), np.zeros(3, bool)),
        (np.zeros(3), np.ones(3, bool)),
        (np.zeros(3), np.zeros(4, bool)),
        (np.array([0.0, np.nan]), np.array([True, False])),
        (np.zeros(2), np.array([0, 1])),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores: np.ndarray, labels: np.ndarray) -> None:
    with pytest.raises(ValueError):
        roc_auc(scores, labels)
