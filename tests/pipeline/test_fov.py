import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.fov import estimate_fov
from pipeline.images import read_mask, read_rgb


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def disc_photograph(size=200, radius=80, level=150, surround=8, cut=0):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    fov = (np.hypot(x, y) <= radius) & (np.abs(y) <= radius - cut)
    noise = np.random.default_rng(0).normal(0, 3, (size, size))
    shade = level * (1 - 0.6 * np.hypot(x, y) / radius)  # the rim is darker
    red = np.clip(np.where(fov, shade, surround) + noise, 0, 255)
    return np.dstack([red, red * 0.5, red * 0.3]).astype(np.uint8), fov


@pytest.mark.parametrize("settings", [{}, {"cut": 25}, {"level": 70}, {"surround": 0}, {"radius": 97}])
def test_a_disc_is_found(settings):
    image, fov = disc_photograph(**settings)
    assert dice(estimate_fov(image), fov) > 0.98


def test_dark_lesions_stay_inside_and_captions_outside():
    image, fov = disc_photograph()
    image[90:140, 60:100] = 5
    image[4:12, 70:130:4] = 255
    estimate = estimate_fov(image)
    assert dice(estimate, fov) > 0.98
    assert estimate[90:140, 60:100].all() and not estimate[:14].any()


def test_a_frame_without_dark_corners_is_all_field_of_view():
    image = np.random.default_rng(0).integers(60, 200, (80, 120, 3), dtype=np.uint8)
    assert estimate_fov(image).all()
    assert estimate_fov(image).shape == (80, 120)


def test_a_black_image_is_refused():
    with pytest.raises(UserError, match="no field of view"):
        estimate_fov(np.full((80, 80, 3), 4, np.uint8))


def test_lit_stripes_thinner_than_a_vessel_are_refused():
    image = np.full((400, 400, 3), 3, np.uint8)
    image[:, [x for x in range(100, 300) if x % 9 < 6]] = 200  # two thirds of the middle, 6 pixels wide each
    with pytest.raises(UserError, match=r"no field of view.*nothing lit is wider than 8 pixels"):
        estimate_fov(image)


@pytest.mark.shared
def test_drives_own_masks_are_met(shared_dir):
    scores = []
    for path in sorted((shared_dir / "data" / "DRIVE").glob("*/images/*.tif")):
        mask = read_mask(path.parents[1] / "mask" / f"{path.stem}_mask.gif")
        scores.append(dice(estimate_fov(read_rgb(path)), mask))
    assert len(scores) == 40
    assert min(scores) > 0.985
    assert np.mean(scores) > 0.995


@pytest.mark.shared
def test_octa_is_all_field_of_view(shared_dir):
    paths = sorted((shared_dir / "data" / "OCTA").glob("*/img/*"))
    assert paths
    assert all(estimate_fov(read_rgb(path)).all() for path in paths[:40])
