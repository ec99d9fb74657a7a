import numpy as np
import pytest
from scipy.stats import bootstrap

from pipeline.metrics import rates
from pipeline.metrics.bootstrap import (
    _corrected_share,
    difference_of,
    draw_images,
    draw_weights,
    f1_difference,
    interval,
    of_mean,
    of_pooled,
)
from pipeline.metrics.calibration import expected_calibration_error


def skewed(seed, images=14):
    return np.random.default_rng(seed).lognormal(1, 0.8, images)


def confusion(seed, images=14):
    rng = np.random.default_rng(seed)
    vessels = rng.integers(600, 1400, images)
    hits = (vessels * rng.uniform(0.6, 0.9, images)).astype(np.int64)
    alarms = rng.integers(50, 400, images)
    return np.stack([hits, alarms, 9000 - alarms, vessels - hits], axis=1)


def test_weights_count_the_draws():
    draws = np.array([[0, 0, 2], [1, 2, 0]])
    assert draw_weights(draws).tolist() == [[2, 0, 1], [1, 1, 1]]
    draws = draw_images(9, 50, 3)
    assert draw_weights(draws).tolist() == [[np.sum(row == i) for i in range(9)] for row in draws]


@pytest.mark.parametrize("name", rates.RATES)
def test_pooled_figures_equal_those_of_the_drawn_images(name):
    counts, draws = confusion(0), draw_images(14, 30, 1)
    got = of_pooled(rates.RATES[name], counts)(draw_weights(draws))
    expected = [float(rates.RATES[name](sum(counts[image] for image in draw))) for draw in draws]
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_pooled_sums_may_have_more_axes():
    sums = np.random.default_rng(0).integers(1, 99, (6, 15, 3))
    draws = draw_images(6, 20, 1)
    got = of_pooled(expected_calibration_error, sums)(draw_weights(draws))
    expected = [float(expected_calibration_error(sums[draw].sum(axis=0))) for draw in draws]
    np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_means_equal_those_of_the_drawn_images():
    values, draws = skewed(0), draw_images(14, 30, 1)
    np.testing.assert_allclose(of_mean(values)(draw_weights(draws)), values[draws].mean(axis=1))
    without = of_mean(values)(1 - np.eye(14))
    np.testing.assert_allclose(without, [np.delete(values, i).mean() for i in range(14)])


CASES = {
    "mean of a skewed figure": of_mean(skewed(3)),
    "pooled mcc": of_pooled(rates.mcc, confusion(1)),
    "pooled iou": of_pooled(rates.iou, confusion(2)),
    "difference in precision": difference_of(
        of_pooled(rates.precision, confusion(1)), of_pooled(rates.precision, confusion(2))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bca_is_scipys(name):
    """Equal seeds give equal draws, so nothing random is left: percentiles, bias and acceleration agree."""
    statistic = CASES[name]
    got = interval(statistic, draw_weights(draw_images(14, 2000, 4)))

    def of_draws(index, axis=-1):
        weights = (np.asarray(index)[..., None] == np.arange(14)).sum(axis=-2).astype(float)
        return statistic(weights)

    expected = bootstrap(
        (np.arange(14),), of_draws, n_resamples=2000, method="BCa", vectorized=True, rng=4
    ).confidence_interval
    assert got.low == pytest.approx(expected.low, rel=1e-9)
    assert got.high == pytest.approx(expected.high, rel=1e-9)
    assert got.value == pytest.approx(float(statistic(np.ones(14))))


def test_a_skewed_figure_has_a_skewed_interval():
    got = interval(of_mean(skewed(3)), draw_weights(draw_images(14, 4000, 0)))
    assert got.high - got.value > 1.2 * (got.value - got.low)


def test_a_bias_beyond_the_pole_leaves_the_bounds_in_order():
    """Of z₀ ± 1.96 times a > 1 the formula alone would make the lower bound the highest percentile."""
    for bias, acceleration, bound in ((-4.5, -1 / 6, 0.0), (4.5, 1 / 6, 1.0)):
        low, high = (_corrected_share(z, bias, acceleration) for z in (-1.96, 1.96))
        assert low <= high
        assert bound in (low, high)


def test_the_same_draws_give_the_same_as_f1_difference():
    counts, draws = confusion(4), draw_images(14, 500, 2)
    named = f1_difference(counts[:, [0, 1, 3]], np.zeros((14, 3), np.int64), draws)
    assert interval(of_pooled(rates.f1, counts), draw_weights(draws)) == named


def test_a_constant_has_no_width():
    got = interval(of_mean(np.full(8, 0.7)), draw_weights(draw_images(8, 100, 0)))
    assert (got.low, got.high) == pytest.approx((0.7, 0.7))


def test_one_image_has_no_interval_and_two_have_one():
    got = interval(of_mean(np.array([3.0])), draw_weights(draw_images(1, 100, 0)))
    assert got.value == 3 and np.isnan([got.low, got.high]).all()
    got = interval(of_mean(np.array([3.0, 5.0])), draw_weights(draw_images(2, 100, 0)))
    assert (got.value, got.low, got.high) == (4, 3, 5)


def test_about_95_of_100_intervals_hold_the_true_figure():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        got = interval(of_mean(rng.normal(2, 1, 20)), draw_weights(draw_images(20, 500, seed)))
        held += got.low <= 2 <= got.high
    assert 0.88 < held / 300 < 0.97  # few images make the interval a little short
