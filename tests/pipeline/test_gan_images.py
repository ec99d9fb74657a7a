"""Training images for the GAN."""

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.gan_images import fit, load_images


@pytest.mark.parametrize(("height", "width"), [(40, 64), (64, 40), (64, 64)])
def test_the_photograph_is_in_the_middle_of_black(height: int, width: int) -> None:
    result = fit(np.full((height, width, 3), 200, np.uint8), (32, 32))
    assert result.shape == (32, 32, 3)
    assert (result == result[::-1, ::-1]).all()
    assert result[16, 16].tolist() == [200, 200, 200]
    assert (result == 200).mean() == pytest.approx(height * width / 64**2)


def test_a_square_of_the_right_size_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(fit(image, (16, 16)), image)


def test_shrinking_averages() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[::2] = 200
    assert (fit(image, (16, 16)) == 100).all()


def test_small_photographs_are_enlarged() -> None:
    assert fit(np.full((8, 8, 3), 50, np.uint8), (32, 32)).mean() == 50


def test_no_images_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="train split is empty"):
        load_images([], (16, 16))


def test_an_oblong_canvas_holds_the_whole_photograph() -> None:
    result = fit(np.full((40, 40, 3), 200, np.uint8), (24, 32))
    assert result.shape == (24, 32, 3)
    assert result[12, 16].tolist() == [200, 200, 200]
    # 40 rows fill the height of 24; 40 of 54 columns are photograph.
    assert (result[:, 16] == 200).all()
    assert (result == 200).mean() == pytest.approx(40 / 54, abs=0.08)


def test_an_oblong_photograph_of_the_right_size_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    assert np.array_equal(fit(image, (12, 16)), image)
