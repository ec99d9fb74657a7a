"""Augmentation keeps image and target together, is reproducible, and does what its settings say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.augment import Augmentation, affine_matrix, change_colours, make_example, warp
from pipeline.training_data import TrainingFrame

OFF = Augmentation(
    flips=False, rotation=0, scale=0, brightness=0, contrast=0, saturation=0, gamma=0, colour=0, noise=0
)
GEOMETRY = OFF.model_copy(update={"flips": True, "rotation": 180.0, "scale": 0.3})


def frame(seed: int = 0, height: int = 40, width: int = 33) -> TrainingFrame:
    """A frame whose image is its target, in all channels."""
    target = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    fov = np.zeros((height, width), bool)
    fov[height // 4 : -height // 4, width // 4 : -width // 4] = True
    return TrainingFrame("x", np.repeat(target[..., None], 3, axis=2), target, fov)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), crop=st.sampled_from([None, 16, 24]), even=st.booleans())
def test_image_and_target_stay_aligned(seed: int, crop: int | None, even: bool) -> None:
    source = frame(seed, 40 if even else 41, 33)
    example = make_example(source, crop, GEOMETRY, np.random.default_rng(seed))
    assert example.target.shape == ((crop, crop) if crop else source.target.shape)
    for channel in range(3):
        assert np.allclose(example.image[..., channel], example.target, atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_values_stay_within_range_whatever_the_strength(seed: int) -> None:
    strong = Augmentation(
        brightness=0.9, contrast=0.9, saturation=0.9, gamma=0.9, colour=0.9, noise=0.9, scale=0.9
    )
    example = make_example(frame(), 16, strong, np.random.default_rng(seed))
    for array in (example.image, example.target):
        assert array.dtype == np.float32
        assert array.min() >= 0 and array.max() <= 1


def test_without_augmentation_the_frame_is_unchanged() -> None:
    source = frame()
    for chosen in (None, OFF):
        example = make_example(source, None, chosen, np.random.default_rng(0))
        assert np.allclose(example.image, source.image / 255, atol=1e-6)
        assert np.allclose(example.target, source.target / 255, atol=1e-6)


@pytest.mark.parametrize("crop", [15, 16])
def test_a_plain_crop_is_a_cut_centred_in_the_field_of_view(crop: int) -> None:
    source = frame()
    padded = np.pad(source.target, crop)
    for seed in range(20):
        cut = make_example(source, crop, None, np.random.default_rng(seed)).target * 255
        windows = np.lib.stride_tricks.sliding_window_view(padded, (crop, crop))
        places = np.argwhere((np.abs(windows - cut) < 0.01).all(axis=(2, 3)))
        assert len(places) == 1
        y, x = places[0] - crop + (crop - 1) // 2
        assert source.fov[y, x]


def test_equal_generators_give_equal_examples_and_others_differ() -> None:
    a, b, c = (
        make_example(frame(), 24, Augmentation(), np.random.default_rng([1, seed])).image
        for seed in (0, 0, 1)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_switching_an_effect_off_leaves_the_other_draws_alone() -> None:
    full = Augmentation(rotation=0, scale=0, noise=0)
    plain = full.model_copy(update={"gamma": 0.0, "flips": False})
    mirrored = Augmentation(**{**OFF.model_dump(), "flips": True})
    for seed in range(8):
        flipped = make_example(frame(), None, mirrored, np.random.default_rng(seed)).target
        with_colour = make_example(frame(), None, full, np.random.default_rng(seed)).target
        assert np.array_equal(flipped, with_colour)
        rest = make_example(frame(), None, plain, np.random.default_rng(seed)).target
        assert np.allclose(rest, frame().target / 255, atol=1e-6)


def test_mirror_images_and_quarter_turns_are_exact() -> None:
    target = frame(height=20, width=20).target
    size, centre = (20, 20), (9.5, 9.5)

    def turned(mirror: tuple[bool, bool], angle: float) -> np.ndarray:
        return warp(target, affine_matrix(centre, size, mirror, angle, 1.0), size)

    assert np.array_equal(turned((True, False), 0), target[:, ::-1])
    assert np.array_equal(turned((False, True), 0), target[::-1])
    assert np.array_equal(turned((True, True), 0), target[::-1, ::-1])
    assert np.abs(turned((False, False), 90).astype(int) - np.rot90(target)).max() <= 1


def test_zoom_enlarges() -> None:
    target = np.zeros((41, 41), np.uint8)
    target[18:23, 18:23] = 255
    zoomed = warp(target, affine_matrix((20, 20), (41, 41), (False, False), 0, 2.0), (41, 41))
    assert zoomed.mean() == pytest.approx(4 * target.mean(), rel=0.1)


def test_flips_come_in_all_four_kinds_alike() -> None:
    source = frame(height=16, width=16)
    only_flips = OFF.model_copy(update={"flips": True})
    kinds = [source.target, source.target[:, ::-1], source.target[::-1], source.target[::-1, ::-1]]
    counts = np.zeros(4, int)
    for seed in range(400):
        target = make_example(source, None, only_flips, np.random.default_rng(seed)).target * 255
        counts += [np.allclose(target, kind, atol=0.01) for kind in kinds]
    assert counts.sum() == 400
    assert counts.min() > 70


def test_colours_of_a_grey_image_stay_grey_without_colour_shift() -> None:
    settings = Augmentation(colour=0, noise=0, saturation=0.9)
    changed = change_colours(frame().image, settings, np.random.default_rng(3))
    assert np.allclose(changed[..., 0], changed[..., 1], atol=1e-5)


def test_noise_has_at_most_the_named_strength() -> None:
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = OFF.model_copy(update={"noise": 0.1})
    spreads = [change_colours(flat, noisy, np.random.default_rng(seed)).std() for seed in range(30)]
    assert max(spreads) <= 0.102
    assert max(spreads) > 0.08
    assert min(spreads) < 0.02
