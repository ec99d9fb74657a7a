"""The stream of training images."""

import numpy as np

from stylegan2.data import ImageStream
from stylegan2.images import to_uint8


def test_the_stream_shows_every_image_once_before_any_again() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 1), np.uint8)
    stream = ImageStream(images, mirror=False, seed=0)
    shown = to_uint8(stream.batch(0, 10))[:, 0, 0, 0].tolist()
    assert sorted(shown[:5]) == sorted(shown[5:]) == list(range(5))
    assert to_uint8(stream.batch(3, 4))[:, 0, 0, 0].tolist() == shown[3:7]


def test_mirroring_doubles_the_stream() -> None:
    images = np.array([[[[0], [255]]]], np.uint8)
    shown = to_uint8(ImageStream(images, mirror=True, seed=0).batch(0, 2))[:, 0, 0].tolist()
    assert sorted(shown) == [[0, 255], [255, 0]]
