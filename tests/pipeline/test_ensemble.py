"""Rules of the ensemble and the fitted weight."""

import numpy as np
import pytest

from pipeline.ensemble import Rule, combine, fit_weight
from pipeline.metrics.ranking import average_precision

BASE = np.array([[0.2, 0.9, 0.4]], np.float32)
RETRAINED = np.array([[0.6, 0.7, 0.1]], np.float32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [0.4, 0.8, 0.25]),
        ("weighted", [0.3, 0.85, 0.325]),
        ("max", [0.6, 0.9, 0.4]),
        ("vote", [(1 + 0.4) / 3, (2 + 0.8) / 3, 0.25 / 3]),
    ],
)
def test_rules_by_hand(rule: Rule, expected: list[float]) -> None:
    combined = combine([BASE, RETRAINED], rule, weight=0.75, thresholds=[0.5, 0.5])
    assert combined.dtype == np.float32
    assert combined == pytest.approx(np.array([expected]), abs=1e-6)


def test_votes_are_cast_at_each_models_own_threshold() -> None:
    rng = np.random.default_rng(0)
    base, retrained = rng.random((2, 10_000), dtype=np.float32)
    vessel = combine([base, retrained], "vote", weight=0.5, thresholds=[0.3, 0.8]) >= 0.5
    votes = (base >= 0.3).astype(int) + (retrained >= 0.8)
    assert vessel[votes == 2].all()
    assert not vessel[votes == 0].any()
    tied = votes == 1
    assert np.array_equal(vessel[tied], ((base + retrained) / 2 >= 0.5)[tied])


def test_every_rule_stays_a_probability() -> None:
    ones = np.ones((4, 4), np.float32)
    for rule in ("mean", "weighted", "vote", "max"):
        for value in (0 * ones, ones):
            combined = combine([value, value], rule, weight=0.35, thresholds=[0.5, 0.5])  # type: ignore[arg-type]
            assert np.array_equal(combined >= 0.5, value >= 0.5)
            assert combined.min() >= 0 and combined.max() <= 1


def test_the_weight_goes_to_the_better_model() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(4000) < 0.1
    good = (0.5 * labels + 0.5 * rng.random(4000)).astype(np.float32)
    noise = rng.random(4000, dtype=np.float32)
    assert fit_weight([good, noise], labels) > 0.8
    assert fit_weight([noise, good], labels) < 0.2


def test_the_weight_maximises_average_precision() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(3000) < 0.2
    maps = [(0.2 * labels + 0.8 * rng.random(3000)).astype(np.float32) for _ in range(2)]
    scores = {k / 20: average_precision(k / 20 * maps[0] + (1 - k / 20) * maps[1], labels) for k in range(21)}
    assert scores[fit_weight(maps, labels)] == max(scores.values())


def test_equal_models_share_the_weight() -> None:
    labels = np.array([True, False, False, True])
    maps = [np.array([0.9, 0.1, 0.2, 0.8], np.float32)] * 2
    assert fit_weight(maps, labels) == 0.5
