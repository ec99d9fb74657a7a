from typing import Any

import numpy as np
import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.generator import Generator
from stylegan2.sampling import sample_images
from stylegan2.style_mixing import StyleMixture, default_layers, mix_styles, mix_ws
from tests.stylegan2.small_networks import small_generator


@pytest.fixture
def generator() -> Generator:
    return small_generator()


def test_chosen_layers_come_from_the_donor() -> None:
    base, donor = torch.zeros(2, 4, 3), torch.ones(1, 4, 3)
    mixed = mix_ws(base, donor, [0, 3])
    assert mixed[:, :, 0].tolist() == [[1, 0, 0, 1]] * 2
    assert not base.any()


@pytest.mark.parametrize("layers", [[4], [-1], [0, 9]])
def test_layers_that_are_not_there_are_named(layers: list[int]) -> None:
    with pytest.raises(StyleGAN2Error, match=f"got layer {layers[-1]}, expected 0 to 3"):
        mix_ws(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), layers)


def test_all_layers_are_the_column_and_none_the_row(generator: Generator) -> None:
    rows, columns = [1, 2, 3], [8, 9]
    singles = np.stack(list(sample_images(generator, rows + columns, 0.7)))
    everything = mix_styles(generator, rows, columns, range(generator.num_ws), 0.7)
    nothing = mix_styles(generator, rows, columns, [], 0.7)
    assert np.array_equal(everything.rows, singles[:3])
    assert np.array_equal(everything.columns, singles[3:])
    assert everything.mixed.shape == (3, 2, 16, 16, 3)
    for row in range(3):
        for column in range(2):
            assert np.array_equal(everything.mixed[row, column], singles[3 + column])
            assert np.array_equal(nothing.mixed[row, column], singles[row])


def test_mixing_agrees_with_the_network_run_by_hand(generator: Generator) -> None:
    mixture = mix_styles(generator, [1], [2], default_layers(generator), noise_mode="none")
    z = [torch.from_numpy(np.random.RandomState(seed).randn(1, 12)).float() for seed in (1, 2)]
    row, column = (generator.mapping(latent, None)[:, 0] for latent in z)
    ws = torch.stack([column] * 3 + [row] * 3, dim=1)  # [1, 6, w_dim]
    image = generator.synthesis(ws, noise_mode="none")[0].permute(1, 2, 0)
    expected = (image * 127.5 + 128).clamp(0, 255).floor().numpy()
    assert np.abs(mixture.mixed[0, 0] - expected).max() <= 1
    assert (mixture.mixed[0, 0] != expected).mean() < 0.01


def test_random_noise_is_refused(generator: Generator) -> None:
    with pytest.raises(StyleGAN2Error, match="random"):
        mix_styles(generator, [1], [2], [0], noise_mode="random")


def test_the_grid_has_columns_above_and_rows_on_the_left() -> None:
    def images(*values: int) -> Any:
        return np.stack([np.full((1, 2, 1), value, np.uint8) for value in values])

    mixture = StyleMixture(
        images(10, 20), images(1, 2, 3), images(11, 12, 13, 21, 22, 23).reshape(2, 3, 1, 2, 1)
    )
    assert mixture.grid()[:, ::2, 0].tolist() == [[255, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert mixture.grid().shape == (3, 8, 1)


def test_the_default_is_the_coarse_half(generator: Generator) -> None:
    assert default_layers(generator) == [0, 1, 2]


def test_classes_are_passed_on() -> None:
    network = small_generator(c_dim=2)
    one, other = (mix_styles(network, [1], [2], [0], class_index=index).rows for index in (0, 1))
    assert not np.array_equal(one, other)
    with pytest.raises(StyleGAN2Error, match="class: got none"):
        mix_styles(network, [1], [2], [0])
