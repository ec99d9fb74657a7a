"""Distances of image sets: against double loops, closed forms, cases made by hand, and simulation."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import stylegan2.metrics as metrics
from stylegan2.errors import StyleGAN2Error
from stylegan2.metrics import (
    compare_image_sets,
    coverage,
    coverage_of_equals,
    frechet_distance,
    kid,
    kid_floor,
    precision_recall,
)

Matrix = NDArray[np.float64]
OTHER = "inception"  # any network but the default one: features are taken as they are


def normal(count: int, dim: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, dim))


def unit(features: Matrix) -> Matrix:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def column(*values: float) -> Matrix:
    """Features of one dimension."""
    return np.array(values, np.float64)[:, None]


# ---- KID ---------------------------------------------------------------------------------------------------


def kid_by_loops(x: Matrix, y: Matrix) -> float:
    def kernel(a: Matrix, b: Matrix) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def pairs(of: Matrix) -> float:
        return float(np.mean([kernel(a, b) for a, b in itertools.permutations(of, 2)]))

    return pairs(x) + pairs(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 9), n=st.integers(2, 9), dim=st.integers(1, 6), block=st.integers(1, 5))
def test_kid_by_its_definition(m: int, n: int, dim: int, block: int) -> None:
    x, y = normal(m, dim), normal(n, dim, seed=1) + 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        assert kid(x, y, network_name=OTHER).value == pytest.approx(kid_by_loops(x, y), rel=1e-9, abs=1e-9)
        scaled = kid_by_loops(unit(x) * math.sqrt(dim), unit(y) * math.sqrt(dim))
        assert kid(unit(x), unit(y)).value == pytest.approx(scaled, rel=1e-9, abs=1e-9)


def test_kid_by_hand() -> None:
    """One dimension, k(x, y) = (xy + 1)³: k(0, 1) = 1, k(1, 1) = 8, k(0, 0) = 1."""
    result = kid(column(0, 0), column(1, 1), network_name=OTHER)
    assert result.value == 1 + 8 - 2
    assert (result.lo, result.hi, result.standard_error) == (None, None, None)


def test_kid_of_known_distributions() -> None:
    """The mean of many estimates is the distance itself: N(0, 1) against N(s, 1) in one dimension.

    E (xy + 1)³ = E[x³] E[y³] + 3 E[x²] E[y²] + 3 E[x] E[y] + 1, with E[y²] = 1 + s² and E[y³] = s³ + 3s.
    """
    shift = 0.5
    mean, square, cube = shift, 1 + shift**2, shift**3 + 3 * shift
    expected = cube**2 + 3 * (square - 1) ** 2 + 3 * mean**2
    rng = np.random.default_rng(0)
    values = [
        kid(rng.standard_normal((6, 1)), rng.standard_normal((9, 1)) + shift, network_name=OTHER).value
        for _ in range(8000)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error
    assert error < 0.1 * expected


def test_standard_error_is_the_jackknifes() -> None:
    x, y = unit(normal(7, 4)), unit(normal(5, 4, seed=1))
    result = kid(x, y)
    parts = []
    for without in (
        [kid(np.delete(x, i, axis=0), y).value for i in range(7)],
        [kid(x, np.delete(y, i, axis=0)).value for i in range(5)],
    ):
        parts.append((len(without) - 1) * np.var(without))
    assert result.standard_error == pytest.approx(math.sqrt(sum(parts)))
    assert result.standard_error_fake == pytest.approx(math.sqrt(parts[1]))
    assert result.lo is not None
    assert result.hi is not None
    assert result.hi - result.value == pytest.approx(result.value - result.lo)


@pytest.mark.parametrize(
    ("m", "n", "shift", "least"),
    [(16, 16, 0.0, 0.95), (16, 60, 0.8, 0.93), (60, 60, 0.8, 0.93), (60, 60, 2.0, 0.92)],
)
def test_interval_covers_the_true_distance(m: int, n: int, shift: float, least: float) -> None:
    """Simulated coverage of the 95% interval: unit vectors around two directions.

    With 600 repetitions, 8 and 64 dimensions, 16 to 200 images per set and shifts from 0 to 3, it was 94.0%
    to 99.0%; the mean estimated error was 1.01 to 1.48 times the true one, most for equal distributions.
    """
    rng = np.random.default_rng(0)

    def draw(count: int, by: float) -> Matrix:
        features = rng.standard_normal((count, 8))
        features[:, 0] += by
        return unit(features)

    truth = kid(draw(8000, 0), draw(8000, shift)).value if shift else 0.0
    results = [kid(draw(m, 0), draw(n, shift)) for _ in range(400)]
    covered = [r.lo <= truth <= r.hi for r in results if r.lo is not None and r.hi is not None]
    assert len(covered) == 400
    assert np.mean(covered) >= least
    errors = [r.standard_error for r in results if r.standard_error is not None]
    assert 0.95 < np.mean(errors) / np.std([r.value for r in results]) < 1.7


def test_a_wider_confidence_is_a_wider_interval() -> None:
    x, y = unit(normal(20, 8)), unit(normal(20, 8, seed=1) + 0.2)
    narrow, wide = kid(x, y, confidence=0.5), kid(x, y, confidence=0.99)
    assert narrow.lo is not None
    assert wide.lo is not None
    assert wide.lo < narrow.lo < narrow.value == wide.value


def test_more_than_means_are_compared() -> None:
    """The reason for scaling: both means are 0, and only how the vectors spread differs."""

    def draw(directions: int, seed: int) -> Matrix:
        features = np.zeros((100, 1280))
        features[:, :directions] = unit(normal(100, directions, seed))
        return features

    wide, narrow = draw(20, 0), draw(5, 1)
    result = kid(wide, narrow)
    assert result.lo is not None
    assert result.lo > kid_floor(wide).upper > 0
    unscaled = kid(wide, narrow, network_name=OTHER)
    assert unscaled.lo is not None
    assert unscaled.lo < 0


def test_floor_over_all_halves() -> None:
    """Random halves of six images agree with the mean and spread over all 20 halves."""
    x = unit(normal(6, 3))
    values = [
        kid(x[list(first)], x[[i for i in range(6) if i not in first]]).value
        for first in itertools.combinations(range(6), 3)
    ]
    assert np.mean(values) == pytest.approx(0, abs=1e-12)
    floor = kid_floor(x, repeats=4000)
    assert floor.mean == pytest.approx(0, abs=4 * np.std(values) / math.sqrt(4000))
    assert floor.standard_deviation == pytest.approx(np.std(values), rel=0.05)
    assert min(values) - 1e-12 <= floor.upper <= max(values) + 1e-12
    assert (floor.half_count, floor.repeats) == (3, 4000)


def test_floor_of_two_and_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd set is split unevenly: each value is one of the ten possible, whatever the blocks."""
    monkeypatch.setattr(metrics, "BLOCK", 2)
    x = unit(normal(5, 3))
    possible = [
        kid(x[list(first)], x[[i for i in range(5) if i not in first]]).value
        for first in itertools.combinations(range(5), 2)
    ]
    floor = kid_floor(x, repeats=300, confidence=0.999)
    assert floor.upper == pytest.approx(max(possible))
    assert floor == kid_floor(x, repeats=300, confidence=0.999)
    assert floor != kid_floor(x, repeats=300, confidence=0.999, seed=1)


# ---- Fréchet distance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "dim"), [(40, 60, 5), (40, 3, 5), (5, 60, 8)])
def test_frechet_by_matrix_roots(m: int, n: int, dim: int) -> None:
    x, y = normal(m, dim) @ normal(dim, dim, 5), normal(n, dim, 1) @ normal(dim, dim, 6) + 0.5
    first, second = (np.cov(of, rowvar=False) for of in (x, y))
    rest = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + np.trace(first + second)
    # The eigenvalues of C C' are those of a root; scipy's root itself is precise for regular matrices only.
    root = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    assert frechet_distance(x, y) == pytest.approx(rest - 2 * root, rel=1e-6)
    if min(m, n) > dim:
        root = np.trace(scipy.linalg.sqrtm(first @ second)).real
        assert frechet_distance(x, y) == pytest.approx(rest - 2 * root, rel=1e-9)


def test_frechet_in_one_dimension() -> None:
    """(μ − μ')² + (σ − σ')²: means 1 and 5, deviations √2 and 3√2."""
    assert frechet_distance(column(0, 2), column(2, 8)) == pytest.approx(16 + 8)


def test_frechet_of_axes() -> None:
    """Independent axes add up: each as in one dimension."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    x, y = signs * [1, 2, 3], signs * [2, 2, 7] + [0, 1, 0]
    assert frechet_distance(x, y) == pytest.approx(1 + (1 + 0 + 16) * 8 / 7)


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 12), n=st.integers(2, 12), dim=st.integers(1, 8), seed=st.integers(0, 99))
def test_frechet_properties(m: int, n: int, dim: int, seed: int) -> None:
    x, y = normal(m, dim, seed), normal(n, dim, seed + 100)
    value = frechet_distance(x, y)
    rotation = scipy.linalg.qr(normal(dim, dim, seed + 200))[0]
    assert value >= 0
    assert frechet_distance(y, x) == pytest.approx(value, abs=1e-9)
    assert frechet_distance(x @ rotation + 3, y @ rotation + 3) == pytest.approx(value, abs=1e-9)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 1) == pytest.approx(dim, abs=1e-9)


def test_frechet_with_fewer_images_than_dimensions() -> None:
    x = unit(normal(16, 1280))
    assert frechet_distance(x, x) < 1e-12
    assert frechet_distance(x, unit(normal(20, 1280, 1))) > 0.1


# ---- neighbours --------------------------------------------------------------------------------------------


def neighbours_by_loops(real: Matrix, fake: Matrix, k: int) -> dict[str, float]:
    def radius(of: Matrix, i: int) -> float:
        return sorted(math.dist(of[i], other) for j, other in enumerate(of) if j != i)[k - 1]

    in_real = [[math.dist(y, x) <= radius(real, i) for i, x in enumerate(real)] for y in fake]
    in_fake = [[math.dist(x, y) <= radius(fake, i) for i, y in enumerate(fake)] for x in real]
    return {
        "precision": float(np.mean([any(row) for row in in_real])),
        "recall": float(np.mean([any(row) for row in in_fake])),
        "density": sum(map(sum, in_real)) / (k * len(fake)),
        "coverage": float(np.mean([any(row[i] for row in in_real) for i in range(len(real))])),
    }


@settings(deadline=None, max_examples=30)
@given(
    m=st.integers(4, 12),
    n=st.integers(4, 12),
    k=st.integers(1, 3),
    seed=st.integers(0, 99),
    block=st.integers(1, 6),
)
def test_neighbours_by_their_definition(m: int, n: int, k: int, seed: int, block: int) -> None:
    real, fake = normal(m, 3, seed), normal(n, 3, seed + 100) + 0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        shares, densities = precision_recall(real, fake, k), coverage(real, fake, k)
    expected = neighbours_by_loops(real, fake, k)
    assert {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": densities.density,
        "coverage": densities.coverage,
    } == pytest.approx(expected)
    assert (shares.k, densities.k) == (k, k)


def test_neighbours_by_hand() -> None:
    """Balls with k = 1: real 0 ± 1, 1 ± 1, 10 ± 9; generated 0.5 ± 1, 1.5 ± 1, 30 ± 28.5."""
    real, fake = column(0, 1, 10), column(0.5, 1.5, 30)
    shares, densities = precision_recall(real, fake, 1), coverage(real, fake, 1)
    assert shares.precision == pytest.approx(2 / 3)  # 30 lies in none
    assert shares.recall == pytest.approx(1)
    assert densities.density == pytest.approx((2 + 2) / 3)  # 0.5: of 0 and 1; 1.5: of 1 and 10
    assert densities.coverage == 1
    far = coverage(real, column(50, 60), 1)
    assert (far.density, far.coverage) == (0, 0)


def test_equal_images_are_within_reach() -> None:
    """Twins among the real images have balls of radius 0, which their copies lie in."""
    twins = np.repeat(unit(normal(4, 1280)), 2, axis=0)
    assert precision_recall(twins, twins[::2].repeat(2, axis=0), 1).precision == 1
    assert coverage(twins, twins[::2].repeat(2, axis=0), 1).coverage == 1


@pytest.mark.parametrize(("n", "m", "k"), [(10, 10, 3), (16, 40, 5), (30, 8, 2)])
def test_coverage_of_equal_distributions(n: int, m: int, k: int) -> None:
    rng = np.random.default_rng(0)
    values = [
        coverage(rng.standard_normal((n, 2)), rng.standard_normal((m, 2)), k).coverage for _ in range(600)
    ]
    assert np.mean(values) == pytest.approx(
        coverage_of_equals(n, m, k), abs=4 * np.std(values) / math.sqrt(600)
    )


# ---- all together ------------------------------------------------------------------------------------------


def test_comparison_is_plain_json() -> None:
    real, fake = unit(normal(16, 1280)), unit(normal(20, 1280, 1))
    result = compare_image_sets(real.astype(np.float32), fake.astype(np.float32), "efficientnet-lite0", k=3)
    values: dict[str, Any] = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values["network_name"] == values["kid"]["network_name"] == "efficientnet-lite0"
    assert (values["real_count"], values["fake_count"]) == (16, 20)
    assert values["precision_recall"]["k"] == values["density_coverage"]["k"] == 3
    assert values["kid"]["lo"] < values["kid"]["value"] < values["kid"]["hi"]
    assert values["frechet_distance"] == pytest.approx(frechet_distance(real, fake), rel=1e-5)
    assert "fid" not in values
    assert result == compare_image_sets(
        real.astype(np.float32), fake.astype(np.float32), "efficientnet-lite0", k=3
    )


def test_only_inceptions_distance_is_called_fid() -> None:
    x, y = normal(10, 4), normal(10, 4, 1)
    assert compare_image_sets(x, y, "inception").as_dict()["fid"] == frechet_distance(x, y)
    assert "fid" not in compare_image_sets(x, y, "another").as_dict()
    assert "frechet_distance" not in compare_image_sets(x, y, "inception").as_dict()


def test_smallest_sets() -> None:
    x = unit(normal(2, 8))
    result = compare_image_sets(x, unit(normal(2, 8, 1)), "efficientnet-lite0", k=1)
    assert result.kid_floor is None
    assert result.kid.lo is None
    assert math.isfinite(result.kid.value + result.frechet_distance)


def test_equal_vectors_give_an_interval_of_no_width() -> None:
    x = np.tile(unit(normal(1, 8)), (5, 1))
    result = kid(x, x)
    assert (result.value, result.lo, result.hi) == pytest.approx((0, 0, 0), abs=1e-7)


def test_all_problems_are_named_together() -> None:
    broken = normal(6, 5)
    broken[2, 1] = np.nan
    with pytest.raises(StyleGAN2Error) as caught:
        compare_image_sets(normal(1, 4), broken, "inception", k=0, confidence=2, floor_repeats=0)
    message = str(caught.value)
    for part in (
        "got 1 images",
        "1 of 6",
        "4 and 5 dimensions",
        "k: got 0",
        "confidence: got 2",
        "repeats: got 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("real", "message"),
    [
        (normal(5, 4) * 3, "expected 1 as of efficientnet-lite0"),
        (normal(5, 4)[0], "expected \\[images, dimensions\\]"),
        (unit(normal(1, 4)), "expected at least 2"),
    ],
)
def test_unusable_features_are_refused(real: Matrix, message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        kid(real, unit(normal(5, 4)))


def test_k_needs_more_images() -> None:
    for function in (precision_recall, coverage):
        with pytest.raises(StyleGAN2Error, match="got 5 images, expected at least 6"):
            function(normal(5, 2), normal(9, 2), 5)
    with pytest.raises(StyleGAN2Error, match="expected at least 4"):
        kid_floor(unit(normal(3, 2)))
