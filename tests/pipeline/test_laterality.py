"""Which side the optic disc is on: pinned to drawn eyes, whose side is known, and to real photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.laterality import disc_contrast, turn_disc
from pipeline.phantom import draw_phantom

# Of DRIVE's photographs, by eye: all that show a left eye's disc (on the left) and are centred on the macula.
DRIVE_LEFT = {"training": (21, 26, 35, 39), "test": (1, 3, 5, 9, 11, 12, 15)}


def disc_by_colour(image: np.ndarray) -> float:
    """Give the median column of the brightest green pixels, a fraction of the width: an independent look."""
    pixels = image.astype(float)
    inside = pixels.max(axis=2) > 60
    yellow = np.where(inside, pixels[:, :, 1], 0)
    columns = np.nonzero(yellow >= np.quantile(yellow[inside], 0.995))[1]
    return float(np.median(columns) / image.shape[1])


@pytest.fixture(scope="module")
def eyes() -> list[np.ndarray]:
    return [draw_phantom(9, index, 128).image for index in range(24)]


def test_the_drawn_disc_is_found(eyes: list[np.ndarray]) -> None:
    sides = [disc_by_colour(image) > 0.5 for image in eyes]
    assert 4 < sum(sides) < 20  # both kinds of eye are drawn
    found = [disc_contrast(image) > 0 for image in eyes]
    # The independent look is the cruder one: it may err on an eye or two, and then on its own account.
    assert sum(a == b for a, b in zip(found, sides, strict=True)) >= 22


def test_a_mirrored_eye_has_its_disc_on_the_other_side(eyes: list[np.ndarray]) -> None:
    for image in eyes:
        assert disc_contrast(image[:, ::-1]) == pytest.approx(-disc_contrast(image), abs=0.5)


def test_turning(eyes: list[np.ndarray]) -> None:
    for image in eyes:
        right, left = turn_disc(image, "right"), turn_disc(image, "left")
        assert disc_contrast(right) > 0 > disc_contrast(left)
        assert np.array_equal(right, left[:, ::-1])
        assert np.array_equal(turn_disc(left, "left"), left)  # nothing to do the second time


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (200, 180), (1, 1), (2, 8), (8, 1)])
def test_without_retina_there_is_no_side(size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert disc_contrast(image) == 0
    assert turn_disc(image, "right") is image


def test_a_bright_rim_is_no_disc() -> None:
    y, x = np.mgrid[:128, :128]
    radius = np.hypot(x - 63.5, y - 63.5)
    image = np.zeros((128, 128, 3), np.uint8)
    image[radius < 60] = (180, 90, 60)
    image[np.hypot(x - 90, y - 64) < 7] = (230, 190, 120)  # the disc, right
    image[(radius > 57) & (radius < 60) & (x < 30)] = 255  # a reflex at the left rim
    assert disc_contrast(image) > 20


def test_drive(shared_dir: Path) -> None:
    for split, left in DRIVE_LEFT.items():
        for path in sorted((shared_dir / "data" / "DRIVE" / split / "images").glob("*.tif")):
            number = int(path.name[:2])
            if number == 34:
                continue  # a diseased retina, its disc in the middle
            contrast = disc_contrast(np.asarray(Image.open(path).convert("RGB")))
            assert (contrast < 0) == (number in left), path.name
