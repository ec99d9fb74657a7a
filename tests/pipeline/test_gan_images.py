"""Square training images for the GAN."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.gan_images import load_square_images, square


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (64, 64)])
def test_the_photograph_is_in_the_middle_of_black(height: int, width: int) -> None:
    result = square(np.full((height, width, 3), 200, np.uint8), 32)
    assert result.shape == (32, 32, 3)
    assert (result == result[::-1, ::-1]).all()
    assert result[16, 16].tolist() == [200, 200, 200]
    assert (result == 200).mean() == pytest.approx(height * width / 64**2)


def test_a_square_of_the_right_size_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(square(image, 16), image)


def test_shrinking_averages() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[::2] = 200
    assert (square(image, 16) == 100).all()


def test_small_photographs_are_enlarged() -> None:
    assert square(np.full((8, 8, 3), 50, np.uint8), 32).mean() == 50


def test_no_images_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="train split is empty"):
        load_square_images([], 16)
