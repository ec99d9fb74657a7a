import numpy as np
import pytest

from pipeline.metrics.calibration import BINS, bin_sums, expected_calibration_error
from pipeline.metrics.pixel import LEVELS, LevelCounts


def count(levels, truth):
    levels, truth = np.atleast_2d(np.asarray(levels, np.uint16)), np.atleast_2d(truth)
    return LevelCounts.count(levels, truth, np.ones_like(truth))


def case(seed, size=5000, bias=0.0):
    rng = np.random.default_rng(seed)
    probability = rng.beta(0.3, 1.2, size)
    truth = rng.random(size) < np.clip(probability + bias, 0, 1)
    return np.round(probability * 65535).astype(np.uint16), truth


def naive(levels, truth):
    """Bin by bin and pixel by pixel, from the definition."""
    probability = levels.ravel() / 65535
    total = 0.0
    for m in range(1, BINS + 1):
        inside = (probability > (m - 1) / BINS) & (probability <= m / BINS)
        if m == 1:
            inside |= probability == 0
        if inside.any():
            gap = abs(truth.ravel()[inside].mean() - probability[inside].mean())
            total += inside.mean() * gap
    return total


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bias", [0.0, 0.2, -0.3])
def test_agrees_with_the_definition(seed, bias):
    levels, truth = case(seed, bias=bias)
    got = expected_calibration_error(bin_sums(count(levels, truth)))
    assert got == pytest.approx(naive(levels, truth), abs=1e-12)


def test_hand_made_cases():
    half = np.array([True, False])
    assert expected_calibration_error(bin_sums(count([65535, 0], half))) == 0
    assert expected_calibration_error(bin_sums(count([0, 65535], half))) == 1
    # three pixels at .2 of which one is vessel, one at .8 that is none: (3 · |1/3 − .2| + |0 − .8|) / 4
    got = expected_calibration_error(
        bin_sums(count([13107, 13107, 13107, 52428], [True, False, False, False]))
    )
    assert got == pytest.approx((0.4 + 0.8) / 4)


def test_over_and_under_do_not_cancel():
    # at .1 one in five is vessel, at .9 all are: the confidence of the predicted class would look perfect
    levels = [6554] * 5 + [58982] * 5
    truth = [True] + [False] * 4 + [True] * 5
    got = expected_calibration_error(bin_sums(count(levels, truth)))
    assert got == pytest.approx(0.1, abs=1e-4)


def test_bins_are_closed_above():
    step = 65535 // BINS  # 65535 = 15 · 4369
    levels = np.array([0, 1, step, step + 1, 2 * step, 65535])
    sums = bin_sums(count(levels, np.zeros(6, bool)))
    assert sums[:, 0].tolist() == [3, 2, *[0] * 12, 1]
    assert sums[:, 2].sum() == levels.sum()
    assert bin_sums(LevelCounts(np.ones(LEVELS, np.int64), np.zeros(LEVELS, np.int64)))[:, 0].tolist() == [
        step + 1,
        *[step] * 14,
    ]


def test_a_calibrated_model_is_near_0_and_pooling_is_adding():
    parts = [count(*case(seed, size=200_000)) for seed in range(2)]
    sums = [bin_sums(part) for part in parts]
    assert expected_calibration_error(sums[0]) < 0.004
    assert np.array_equal(bin_sums(parts[0] + parts[1]), sums[0] + sums[1])
    both = expected_calibration_error(np.stack(sums))
    assert both.tolist() == [float(expected_calibration_error(part)) for part in sums]


def test_no_pixels_is_0():
    assert expected_calibration_error(bin_sums(LevelCounts.zero())) == 0
