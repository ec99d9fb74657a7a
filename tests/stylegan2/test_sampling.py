"""Sampling: an image depends on its seed alone."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stylegan2.errors import StyleGAN2Error
from stylegan2.images import from_uint8, image_grid, to_uint8, write_png
from stylegan2.network_folder import write_config
from stylegan2.networks.generator import Generator
from stylegan2.sampling import (
    class_label,
    draw_ws,
    generate,
    latent,
    load_generator,
    sample_images,
    seeds_to_ws,
)
from tests.stylegan2.small_networks import KWARGS, write_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_network(tmp_path)


def pool(folder: Path, seeds: list[int], psi: float = 0.7, batch: int = 8) -> list[NDArray[np.uint8]]:
    return list(sample_images(load_generator(folder, torch.device("cpu")), seeds, psi, batch))


def test_a_pool_holds_the_smaller_pool(folder: Path) -> None:
    large = pool(folder, list(range(19)))
    for count in (1, 5, 8, 11):
        for small, same in zip(pool(folder, list(range(count))), large, strict=False):
            assert np.array_equal(small, same)


def test_the_place_in_a_batch_does_not_matter(folder: Path) -> None:
    in_order, turned_round = pool(folder, list(range(16))), pool(folder, list(range(15, -1, -1)))
    for first, second in zip(in_order, reversed(turned_round), strict=True):
        assert np.array_equal(first, second)


def test_truncation_zero_is_one_image_and_one_is_many(folder: Path) -> None:
    same, different = pool(folder, [1, 2], psi=0.0), pool(folder, [1, 2], psi=1.0)
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(different[0], different[1])


def test_images_are_bytes_in_image_order(folder: Path) -> None:
    (image,) = pool(folder, [7])
    assert (image.dtype, image.shape) == (np.uint8, (16, 16, 3))


def test_latent_of_a_seed() -> None:
    assert latent(5, 3).tolist() == np.random.RandomState(5).randn(1, 3).astype(np.float32).tolist()


def test_seeds_out_of_range_are_named(folder: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="-1"):
        pool(folder, [3, -1])


def test_bytes_survive_the_way_there_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert to_uint8(torch.tensor([-3.0, 3.0, 1 / 255 - 1e-4])).tolist() == [0, 255, 128]


def test_grid() -> None:
    grid = image_grid(np.stack([np.full((2, 3, 1), value, np.uint8) for value in (1, 2, 3)]), columns=2)
    assert grid[:, :, 0].tolist() == [[1] * 3 + [2] * 3] * 2 + [[3] * 3 + [0] * 3] * 2


def test_png_has_one_or_three_channels(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="2 channels"):
        write_png(tmp_path / "x.png", np.zeros((4, 4, 2), np.uint8))


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match=r"config\.json is missing"):
        load_generator(tmp_path, torch.device("cpu"))


def test_damaged_weights_are_named(folder: Path) -> None:
    path = folder / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StyleGAN2Error, match=r"generator\.safetensors is not a usable"):
        load_generator(folder, torch.device("cpu"))


def test_weights_of_another_network_are_named(folder: Path) -> None:
    write_config(folder, {"generator": {**KWARGS, "w_dim": 8}})
    with pytest.raises(StyleGAN2Error, match=r"mapping\.w_avg: got \[16\], expected \[8\]"):
        load_generator(folder, torch.device("cpu"))


@pytest.mark.shared
def test_images_of_the_reference(
    stylegan2_reference: Any, assert_close_to_reference: Callable[..., None]
) -> None:
    probes = stylegan2_reference.tensors("nvidia_format_torch17style_reference")
    kwargs = stylegan2_reference.entry("nvidia_format_torch17style_reference")["expected_init_kwargs"]["G"]
    generator = Generator(**kwargs)
    state = {key.removeprefix("G_ema/"): value for key, value in probes.items() if key.startswith("G_ema/")}
    generator.load_state_dict(state)
    generator.eval()
    expected = probes["probe/G_ema_img_psi1_const"]
    found = generate(generator, probes["probe/z"])
    assert_close_to_reference(found, expected, 1e-4)
    difference = to_uint8(found).int() - to_uint8(expected).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).float().mean() < 1e-3


def network(folder: Path, **changes: Any) -> Generator:
    """A small network with a mean of w and noise that shows, written to a folder and loaded from it."""
    return load_generator(write_network(folder, noise=0.3, **changes), torch.device("cpu"))


def test_random_noise_follows_from_the_seed_alone(tmp_path: Path) -> None:
    generator = network(tmp_path)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = list(sample_images(generator, [4, 5, 6], 0.7, noise_mode="random"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    (alone,) = sample_images(generator, [5], 0.7, batch=3, noise_mode="random")
    (const,) = sample_images(generator, [5], 0.7)
    assert np.array_equal(first[1], alone)
    assert not np.array_equal(alone, const)
    # Without truncation's variety, only the noise tells two seeds apart.
    one, two = sample_images(generator, [5, 6], 0.0, noise_mode="random")
    assert not np.array_equal(one, two)


def test_noise_is_not_the_stream_of_the_latent(tmp_path: Path) -> None:
    """numpy and torch seed the same Mersenne Twister the same way; z and noise must not share it."""
    seen = []
    generator = network(tmp_path)
    generator.synthesis.register_forward_pre_hook(lambda *_: seen.append(torch.initial_seed()))
    list(sample_images(generator, [5], 0.7, noise_mode="random"))
    assert seen and 5 not in seen


def test_no_noise_is_none(tmp_path: Path) -> None:
    generator = network(tmp_path)
    (none,) = sample_images(generator, [2], 0.7, noise_mode="none")
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.zero_()
    (const,) = sample_images(generator, [2], 0.7)
    assert np.array_equal(none, const)


def test_cutoff_spares_the_fine_layers(tmp_path: Path) -> None:
    generator = network(tmp_path)
    plain, cut = seeds_to_ws(generator, [1]), seeds_to_ws(generator, [1], 0.0, truncation_cutoff=2)
    assert torch.equal(cut[:, :2], generator.mapping.w_avg.expand(1, 2, -1))
    assert torch.equal(cut[:, 2:], plain[:, 2:])
    whole = list(sample_images(generator, [1], 0.5, truncation_cutoff=generator.num_ws))
    assert np.array_equal(whole[0], next(sample_images(generator, [1], 0.5)))


def test_ws_of_seeds_draw_the_images_of_the_seeds(tmp_path: Path) -> None:
    generator = network(tmp_path)
    seeds = list(range(11))
    drawn = list(draw_ws(generator, seeds_to_ws(generator, seeds, 0.7)))
    for one, other in zip(drawn, sample_images(generator, seeds, 0.7), strict=True):
        assert np.array_equal(one, other)


def test_images_that_are_not_square(tmp_path: Path) -> None:
    generator = network(tmp_path, synthesis_kwargs={**KWARGS["synthesis_kwargs"], "base_grid": (3, 4)})
    for mode in ("const", "random"):
        (image,) = sample_images(generator, [0], 0.7, noise_mode=mode)
        assert image.shape == (12, 16, 3)


def test_classes_make_different_images(tmp_path: Path) -> None:
    generator = network(tmp_path, c_dim=3)
    assert torch.equal(class_label(generator, 1), torch.tensor([[0.0, 1.0, 0.0]]))  # type: ignore[arg-type]
    first, second = (next(sample_images(generator, [0], 1.0, class_index=index)) for index in (0, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("c_dim", "index", "message"),
    [(3, None, "got none, expected one .* 0 to 2"), (3, 3, "got 3, expected"), (0, 1, "has no classes")],
)
def test_a_class_must_fit_the_network(tmp_path: Path, c_dim: int, index: int | None, message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        list(sample_images(network(tmp_path, c_dim=c_dim), [0], 1.0, class_index=index))


def test_every_wrong_argument_is_named(tmp_path: Path) -> None:
    generator = network(tmp_path)
    images = sample_images(
        generator, [2**32], math.nan, batch=0, class_index=0, truncation_cutoff=7, noise_mode="loud"
    )
    with pytest.raises(StyleGAN2Error) as caught:
        next(images)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "seeds",
        "truncation ψ",
        "truncation cutoff",
        "class",
        "noise mode",
        "batch",
    ]


def test_truncation_needs_a_mean(tmp_path: Path) -> None:
    kwargs = {**KWARGS, "mapping_kwargs": {"num_layers": 2, "w_avg_beta": None}}
    generator = Generator(**kwargs).eval()
    assert len(list(sample_images(generator, [0], 1.0))) == 1
    with pytest.raises(StyleGAN2Error, match="keeps no mean of w"):
        list(sample_images(generator, [0], 0.7))


def test_a_config_that_builds_nothing_is_named(folder: Path) -> None:
    write_config(folder, {"generator": {**KWARGS, "depth": 3}})
    with pytest.raises(StyleGAN2Error, match=r"config\.json: .*depth"):
        load_generator(folder, torch.device("cpu"))
