import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from pipeline.metrics.boundary import BoundaryDistance, boundary, boundary_distance, distance_to


def blobs(seed, shape=(50, 70), level=0.1):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3) > level


def naive(first, second):
    """All pairs of boundary pixels."""
    pairs = cdist(np.argwhere(first), np.argwhere(second))
    there, back = pairs.min(axis=1), pairs.min(axis=0)
    mean = (there.sum() + back.sum()) / (len(there) + len(back))
    return mean, max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_all_pairs(seed):
    first, second = boundary(blobs(seed)), boundary(blobs(seed + 100, level=0.16))
    got = boundary_distance(first, second, 1e9)
    mean, hausdorff = naive(first, second)
    assert got.mean == pytest.approx(mean, rel=1e-12)
    assert got.hausdorff_95 == pytest.approx(hausdorff, rel=1e-12)
    assert 0 < got.mean < got.hausdorff_95
    back = boundary_distance(second, first, 1e9)
    assert back.mean == pytest.approx(got.mean)
    assert back.hausdorff_95 == got.hausdorff_95


def test_two_squares():
    first, second = (np.zeros((30, 40), bool) for _ in range(2))
    first[10:15, 5:10] = True
    second[10:15, 25:30] = True  # moved by 20
    assert boundary(first).sum() == 16  # 5 × 5 without the inner 3 × 3
    got = boundary_distance(boundary(first), boundary(second), 99)
    # columns 0…4 of the first lie 20, 19, …, 16 from the second's first column: 5, 2, 2, 2, 5 pixels
    expected = (5 * 20 + 2 * 19 + 2 * 18 + 2 * 17 + 5 * 16) / 16
    assert got == BoundaryDistance(expected, 20.0)


def test_the_percentile_forgives_five_in_a_hundred():
    line = np.zeros((60, 120), bool)
    line[10, 10:110] = True  # 100 pixels
    few, more = line.copy(), line.copy()
    few[50, 10:14] = True
    more[50, 10:20] = True
    assert boundary_distance(boundary(few), boundary(line), 1).hausdorff_95 == 0
    assert boundary_distance(boundary(more), boundary(line), 1).hausdorff_95 == 40
    assert boundary_distance(boundary(line), boundary(more), 1).hausdorff_95 == 40  # both directions


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 1))
def test_boundary_and_distances_agree_with_scipy(seed, share):
    mask = np.random.default_rng(seed).random((19, 31)) < share
    assert np.array_equal(boundary(mask), mask & ~ndimage.binary_erosion(mask))
    if mask.any():
        expected = ndimage.distance_transform_edt(~mask)
        np.testing.assert_allclose(distance_to(mask), expected, rtol=1e-15)


def test_distances_are_exact_over_a_long_way():
    point = np.zeros((600, 1200), bool)
    point[7, 3] = True
    assert distance_to(point)[599, 1199] == pytest.approx(math.hypot(592, 1196), rel=1e-12)


def test_empty_masks():
    empty, some = np.zeros((9, 9), bool), np.eye(9, dtype=bool)
    assert boundary_distance(empty, some, 12.5) == BoundaryDistance(12.5, 12.5)
    assert boundary_distance(some, empty, 12.5) == BoundaryDistance(12.5, 12.5)
    assert boundary_distance(empty, empty, 12.5) == BoundaryDistance(0, 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="different shapes"):
        boundary_distance(np.eye(3, dtype=bool), np.eye(4, dtype=bool), 1)
