"""Masks from probabilities, against scikit-image's labels and hand-made cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage.measure import label

from pipeline.binarise import Binarisation, Parts

ROW = np.array([[0.9, 0.5, 0.5, 0.1, 0.5, 0.5, 0.1, 0.9]], np.float32)


def test_a_threshold_alone_marks_what_reaches_it() -> None:
    plain = Binarisation(threshold=0.5)
    assert plain.is_plain
    assert plain.mask(ROW)[0].tolist() == [True, True, True, False, True, True, False, True]


def test_hysteresis_keeps_what_hangs_on_to_a_certain_pixel() -> None:
    found = Binarisation(threshold=0.8, hysteresis_low=0.4).mask(ROW)
    assert found[0].tolist() == [True, True, True, False, False, False, False, True]


def test_small_parts_go_after_hysteresis() -> None:
    found = Binarisation(threshold=0.8, hysteresis_low=0.4, min_size=3).mask(ROW)
    assert found[0].tolist() == [True, True, True, False, False, False, False, False]
    found = Binarisation(threshold=0.5, min_size=2).mask(ROW)
    assert found[0].tolist() == [True, True, True, False, True, True, False, False]


def test_diagonal_neighbours_are_connected() -> None:
    diagonal = np.eye(4, dtype=np.float32) * np.array([0.9, 0.5, 0.5, 0.5], np.float32)
    assert Binarisation(threshold=0.8, hysteresis_low=0.4, min_size=4).mask(diagonal).sum() == 4


def test_limits_are_inclusive_in_single_precision() -> None:
    exact = np.full((1, 1), 0.7, np.float32)  # a little below 0.7 in double
    for setting in (Binarisation(threshold=0.7), Binarisation(threshold=0.7, hysteresis_low=0.7, min_size=1)):
        assert setting.mask(exact).all()
    assert Parts.of(exact, 0.7).reach(exact, 0.7).tolist() == [False, True]


@given(
    seed=st.integers(0, 2**32 - 1),
    low=st.integers(1, 60),
    gap=st.integers(0, 39),
    min_size=st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_masks_follow_the_definition_part_by_part(seed: int, low: int, gap: int, min_size: int) -> None:
    rng = np.random.default_rng(seed)
    probability = (rng.integers(0, 101, rng.integers(1, 25, 2)) / 100).astype(np.float32)
    setting = Binarisation(threshold=(low + gap) / 100, hysteresis_low=low / 100, min_size=min_size)
    parts = label(probability >= np.float32(setting.low), connectivity=2)
    certain = probability >= np.float32(setting.threshold)
    expected = np.zeros(probability.shape, bool)
    for number in range(1, parts.max() + 1):
        part = parts == number
        expected |= part & ((part & certain).any() and part.sum() >= min_size)
    found = setting.mask(probability)
    assert found.dtype == np.bool_
    assert np.array_equal(found, expected)


def test_nothing_certain_and_everything_certain() -> None:
    setting = Binarisation(threshold=0.8, hysteresis_low=0.4, min_size=5)
    assert not setting.mask(np.full((4, 4), 0.5, np.float32)).any()
    assert not setting.mask(np.zeros((4, 4), np.float32)).any()
    assert setting.mask(np.ones((4, 4), np.float32)).all()
    # a size of 0 does not let the background in
    assert not Binarisation(threshold=0.8, hysteresis_low=0.4).mask(np.zeros((2, 2), np.float32)).any()


def test_parts_count_pixels_of_a_mask() -> None:
    parts = Parts.of(ROW, 0.4)
    assert parts.sizes.tolist() == [0, 3, 2, 1]
    assert parts.count(ROW > 0.8).tolist() == [0, 1, 0, 1]
    assert parts.count(np.ones(ROW.shape, bool)).tolist() == [0, 3, 2, 1]
    assert np.flatnonzero(parts.select(np.array([True, False, True, False]))).tolist() == [4, 5]


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": 0},
        {"threshold": 1},
        {"threshold": 0.5, "hysteresis_low": 0.6},
        {"threshold": 0.5, "hysteresis_low": 0},
        {"threshold": 0.5, "min_size": -1},
        {"threshold": 0.5, "low": 0.4},
        {},
    ],
)
def test_what_makes_no_mask_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Binarisation.model_validate(values)
