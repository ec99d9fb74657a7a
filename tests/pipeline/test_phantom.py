import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.errors import UserError
from pipeline.phantom import Phantom, draw_phantom, draw_phantoms
from pipeline.phantom_vessels import (
    MIN_RADIUS,
    Anatomy,
    Vessel,
    fork_angles,
    fork_radii,
    grow_vessels,
    random_anatomy,
)

SEED = 5


def same(a: Phantom, b: Phantom) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("image", "vessels", "fov"))


@pytest.fixture(scope="module")
def samples() -> list[Phantom]:
    return [draw_phantom(SEED, index, 128) for index in range(12)]


@pytest.fixture(scope="module")
def trees() -> list[tuple[Anatomy, list[Vessel]]]:
    grown = []
    for index in range(6):
        rng = np.random.default_rng([SEED, index])
        anatomy = random_anatomy(rng)
        grown.append((anatomy, grow_vessels(rng, anatomy)))
    return grown


# -- photographs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 64, 97, 128])
def test_shapes_and_types(size: int) -> None:
    phantom = draw_phantom(SEED, 0, size)
    assert phantom.image.shape == (size, size, 3)
    assert phantom.vessels.shape == phantom.fov.shape == (size, size)
    assert phantom.image.dtype == np.uint8
    assert phantom.vessels.dtype == phantom.fov.dtype == np.bool_


def test_deterministic(samples: list[Phantom]) -> None:
    assert same(draw_phantom(SEED, 3, 128), samples[3])


def test_seed_and_index_matter(samples: list[Phantom]) -> None:
    masks = [sample.vessels for sample in samples] + [draw_phantom(SEED + 1, 0, 128).vessels]
    assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_processes_do_not_change_the_result() -> None:
    indices = [4, 0, 7, 2, 1, 11, 10, 9, 8, 3, 5]  # two chunks, unordered
    alone = list(draw_phantoms(SEED, indices, 64))
    together = list(draw_phantoms(SEED, indices, 64, processes=2))
    assert len(alone) == len(together) == len(indices)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert same(alone[2], draw_phantom(SEED, 7, 64))


def test_progress_bar_is_optional(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(draw_phantoms(SEED, range(2), 32))) == 2
    assert capsys.readouterr().err == ""
    assert len(list(draw_phantoms(SEED, range(2), 32, progress=True))) == 2
    assert "drawing phantoms" in capsys.readouterr().err


def test_no_phantoms() -> None:
    assert list(draw_phantoms(SEED, [], 64)) == []
    assert list(draw_phantoms(SEED, [], 64, processes=2)) == []


def test_vessels_lie_inside_the_field_of_view(samples: list[Phantom]) -> None:
    for sample in samples:
        assert not (sample.vessels & ~sample.fov).any()


def test_field_of_view(samples: list[Phantom]) -> None:
    for sample in samples:
        assert 0.6 < sample.fov.mean() < 0.78  # a disc within a square covers at most π/4
        assert ndimage.label(sample.fov)[1] == 1
        rim = cv2.dilate(sample.fov.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        assert sample.image[~rim].max() < 25
        assert sample.image[sample.fov].mean() > 50


def test_vessel_density_is_that_of_drive() -> None:
    # the 20 training images of DRIVE: mean .125, standard deviation .018, range .087 to .168
    density = [phantom.vessels[phantom.fov].mean() for phantom in draw_phantoms(SEED, range(8), 584)]
    assert 0.10 < np.mean(density) < 0.14
    assert min(density) > 0.08
    assert max(density) < 0.17


def test_vessel_density_at_128_px(samples: list[Phantom]) -> None:
    # DRIVE reduced to 128 px: .105
    assert 0.075 < np.mean([sample.vessels[sample.fov].mean() for sample in samples]) < 0.125


def test_colour_is_that_of_drive(samples: list[Phantom]) -> None:
    # DRIVE: (183, 98, 58) on average
    red, green, blue = np.mean([sample.image[sample.fov].mean(axis=0) for sample in samples], axis=0)
    assert 150 < red < 215
    assert 80 < green < 125
    assert 40 < blue < 80


def test_vessels_are_darker_than_what_surrounds_them(samples: list[Phantom]) -> None:
    for sample in samples:
        green = sample.image[..., 1].astype(float)
        inside = ndimage.binary_erosion(sample.fov, iterations=3)
        beside = ndimage.binary_dilation(sample.vessels, iterations=3) & inside
        beside &= ~ndimage.binary_dilation(sample.vessels, iterations=1)
        assert np.median(green[sample.vessels & inside]) < 0.96 * np.median(green[beside])


def test_blood_darkens_the_vessels_and_nothing_else(samples: list[Phantom]) -> None:
    usual = samples[0]
    (bold,) = draw_phantoms(SEED, [0], usual.image.shape[0], blood=2.5)
    assert np.array_equal(bold.vessels, usual.vessels)
    core = usual.vessels & ~ndimage.binary_dilation(~usual.vessels)
    core = core if core.any() else usual.vessels
    far = usual.fov & ~ndimage.binary_dilation(usual.vessels, iterations=6)
    darker = usual.image.astype(int) - bold.image
    assert darker[core][:, 1].mean() > 10
    assert np.median(np.abs(darker[far])) <= 1  # capillaries too thin for the mask are darker, too


def test_mask_and_photograph_are_aligned() -> None:
    phantom = draw_phantom(SEED, 1, 256)
    green = phantom.image[..., 1].astype(np.float32)
    detail = green - cv2.GaussianBlur(green, (0, 0), 6)
    inside = ndimage.binary_erosion(phantom.fov, iterations=8)
    darkness = {
        (dy, dx): -detail[np.roll(phantom.vessels, (dy, dx), (0, 1)) & inside].mean()
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    assert max(darkness, key=darkness.__getitem__) == (0, 0)


@pytest.mark.parametrize("index", range(2))
def test_same_eye_at_two_sizes(index: int) -> None:
    small, large = draw_phantom(SEED, index, 128), draw_phantom(SEED, index, 1024)
    shape = (128, 128)
    # 8 × 8 mask pixels to one: at 2 × 2 ties (two of four) would decide most of the thin vessels
    reduced = cv2.resize(large.vessels.astype(np.float32), shape, interpolation=cv2.INTER_AREA) >= 0.5
    dice = 2 * (reduced & small.vessels).sum() / (reduced.sum() + small.vessels.sum())
    assert dice > 0.92
    image = cv2.resize(large.image, shape, interpolation=cv2.INTER_AREA).astype(float)
    inside = ndimage.binary_erosion(small.fov, iterations=3)
    assert np.abs(image - small.image)[inside].mean() < 6


@pytest.mark.parametrize(
    ("seed", "index", "size", "message"),
    [
        (-1, 0, 64, "seed: got -1"),
        (0, -2, 64, "index: got -2"),
        (0, 0, 8, "size: got 8 px; expected at least 32"),
    ],
)
def test_bad_argument(seed: int, index: int, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw_phantom(seed, index, size)


def test_all_bad_arguments_are_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        draw_phantoms(-1, [0, -3], 4, processes=0, blood=0.0)  # not even iterated
    names = ("seed", "index", "size", "processes", "blood")
    assert all(f"{name}: got" in str(caught.value) for name in names)
    assert "5 problems" in str(caught.value)


# -- vessel trees ------------------------------------------------------------------------------------


@given(radius=st.floats(1e-3, 1.0), asymmetry=st.floats(0.05, 1.0))
def test_fork_obeys_murray(radius: float, asymmetry: float) -> None:
    larger, smaller = fork_radii(radius, asymmetry)
    assert larger**3 + smaller**3 == pytest.approx(radius**3)
    angle1, angle2 = fork_angles(radius, larger, smaller)
    assert 0 <= angle1 <= angle2 + 1e-6 <= math.pi / 2 + 1e-6  # the smaller daughter turns more


def test_symmetric_fork_opens_by_75_degrees() -> None:
    # Murray (1926): cos θ = 2^(-1/3) for each daughter of an even fork
    angle1, angle2 = fork_angles(1.0, *fork_radii(1.0, 1.0))
    assert angle1 == pytest.approx(angle2) == pytest.approx(math.acos(2 ** (-1 / 3)))


def test_trees_obey_murray(trees: list[tuple[Anatomy, list[Vessel]]]) -> None:
    for _, vessels in trees:
        children: dict[int, list[Vessel]] = {}
        for vessel in vessels:
            children.setdefault(vessel.parent, []).append(vessel)
        forks = {parent: pair for parent, pair in children.items() if parent >= 0}
        assert len(forks) > 50
        for parent, pair in forks.items():
            assert len(pair) == 2
            radius, heading = vessels[parent].radii[-1], vessels[parent].final_heading
            smaller, larger = sorted(pair, key=lambda vessel: vessel.radii[0])
            assert larger.radii[0] ** 3 + smaller.radii[0] ** 3 == pytest.approx(radius**3)
            turns = [math.remainder(daughter.heading - heading, math.tau) for daughter in (larger, smaller)]
            assert np.abs(turns) == pytest.approx(fork_angles(radius, larger.radii[0], smaller.radii[0]))
            assert turns[0] * turns[1] <= 0


def test_trees_are_connected_taper_and_stay_of_one_kind(trees: list[tuple[Anatomy, list[Vessel]]]) -> None:
    for _, vessels in trees:
        for index, vessel in enumerate(vessels):
            assert vessel.parent < index
            assert (np.diff(vessel.radii) <= 0).all()
            if vessel.parent >= 0:
                parent = vessels[vessel.parent]
                assert vessel.kind == parent.kind
                assert np.array_equal(vessel.points[0], parent.points[-1])
                assert vessel.radii[0] < parent.radii[-1]


def test_trees_start_in_the_disc_and_spare_the_fovea(trees: list[tuple[Anatomy, list[Vessel]]]) -> None:
    for anatomy, vessels in trees:
        for vessel in vessels:
            assert np.hypot(*(vessel.points - anatomy.fovea).T).min() > 0.08
            if vessel.parent < 0:
                assert np.hypot(*(vessel.points[0] - anatomy.disc)) < anatomy.disc_radius


def test_calibres(trees: list[tuple[Anatomy, list[Vessel]]]) -> None:
    for _, vessels in trees:
        widest = {kind: max(v.radii[0] for v in vessels if v.kind == kind) for kind in ("artery", "vein")}
        assert widest["artery"] < widest["vein"]
        assert 0.012 < widest["vein"] < 0.02  # 6.5 to 10.5 px across in DRIVE
        assert min(vessel.radii.min() for vessel in vessels) > 0.85 * MIN_RADIUS
