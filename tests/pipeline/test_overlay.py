import numpy as np
import pytest

from pipeline.overlay import (
    FALSE_ALARM,
    HIT,
    LEGEND,
    MISS,
    PREDICTION_COLOUR,
    comparison_overlay,
    prediction_overlay,
    with_legend,
)

# Machado, Oliveira & Fernandes (2009), severity 1.0, on linear RGB
SIMULATIONS = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture
def masks():
    marked = np.array([[1, 0, 1, 0], [1, 1, 0, 0]], dtype=bool)
    truth = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)
    fov = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    image = np.full((2, 4, 3), (200, 80, 20), np.uint8)
    return image, marked, truth, fov


def test_each_case_has_its_colour_inside_the_field_of_view(masks):
    overlay = comparison_overlay(*masks)
    assert overlay.dtype == np.uint8
    assert [tuple(pixel) for pixel in overlay[0, :3]] == [HIT.colour, MISS.colour, FALSE_ALARM.colour]
    rest = np.concatenate([overlay[0, 3:], overlay[1]])
    assert (rest == rest[0]).all()  # the photograph, outside included
    assert rest[0, 0] == rest[0, 1] == rest[0, 2] < 60  # gray and dimmed


def test_inputs_are_left_alone(masks):
    before = [array.copy() for array in masks]
    comparison_overlay(*masks)
    prediction_overlay(masks[0], masks[1])
    assert all(np.array_equal(a, b) for a, b in zip(before, masks, strict=True))


def test_prediction_is_tinted_and_the_rest_untouched(masks):
    image, marked, *_ = masks
    overlay = prediction_overlay(image, marked)
    assert np.array_equal(overlay[~marked], image[~marked])
    distance = np.abs(overlay[marked].astype(int) - PREDICTION_COLOUR)
    assert (distance < np.abs(image[marked].astype(int) - PREDICTION_COLOUR)).all()


def test_sizes_must_agree(masks):
    with pytest.raises(ValueError, match="differ in size"):
        prediction_overlay(masks[0], masks[1][:, :2])


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_colours_stay_apart_for_colour_blind_readers(kind):
    colours = np.array([entry.colour for entry in LEGEND]) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIMULATIONS[kind]).T, 0, 1)
    shown = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    distances = [np.linalg.norm(shown[a] - shown[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(distances) > 0.25


@pytest.mark.parametrize("width", [96, 565])
def test_legend_adds_a_strip_with_every_colour(width):
    overlay = np.zeros((50, width, 3), np.uint8)
    picture = with_legend(overlay)
    assert picture.shape[1:] == (width, 3)
    assert np.array_equal(picture[:50], overlay)
    strip = picture[50:].reshape(-1, 3)
    for entry in LEGEND:
        assert (strip == entry.colour).all(axis=1).sum() >= 40
