import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.generator import Generator
from stylegan2.projection import (
    ProjectionOptions,
    Step,
    learning_rate_factor,
    noise_buffers,
    noise_penalty,
    project,
    read_target,
    save_history,
    save_projection,
    w_statistics,
)
from tests.stylegan2.small_networks import KWARGS, small_generator

CPU = torch.device("cpu")
QUICK = ProjectionOptions(steps=80, w_samples=300)


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean(dim=(1, 2, 3))


def own_image(generator: Generator, seed: int = 5) -> Tensor:
    z = torch.from_numpy(np.random.RandomState(seed).randn(1, generator.z_dim)).float()
    image: Tensor = generator(z, None, noise_mode="const")
    return image


def test_an_image_of_the_generator_is_found_again() -> None:
    generator = small_generator()
    target = own_image(generator)
    found = project(generator, target, pixel_distance, QUICK)
    before, after = pixel_distance(found.start, target), pixel_distance(found.image, target)
    assert before > 0.1
    assert after < before / 100
    # One w for all layers, and it draws that image.
    assert torch.equal(found.ws, found.ws[:, :1].expand_as(found.ws))
    assert torch.allclose(generator.synthesis(found.ws, noise_mode="none"), found.image, atol=1e-5)


def test_the_generator_stays_as_it_was() -> None:
    generator = small_generator(noise=0.2)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    target = own_image(generator)
    project(generator, target, pixel_distance, ProjectionOptions(steps=5, w_samples=50))

    def fails(a: Tensor, b: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(generator, target, fails, ProjectionOptions(steps=5, w_samples=50))
    after = generator.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.grad is None and not value.requires_grad for value in generator.parameters())
    assert torch.equal(own_image(generator), target)


def test_noise_maps_are_found_and_stay_normal() -> None:
    generator = small_generator(noise=0.2)
    target = own_image(generator)
    found = project(generator, target, pixel_distance, QUICK)
    assert found.noise.keys() == dict(noise_buffers(generator)).keys() and len(found.noise) == 5
    for value in found.noise.values():
        assert abs(float(value.mean())) < 1e-5
        assert abs(float(value.square().mean()) - 1) < 1e-4
    with torch.no_grad():
        for name, value in found.noise.items():
            dict(noise_buffers(generator))[name].copy_(value)
    assert torch.allclose(generator.synthesis(found.ws, noise_mode="const"), found.image, atol=1e-5)


def test_one_w_per_layer_comes_closer() -> None:
    generator = small_generator()
    mixed = torch.randn(1, generator.num_ws, 16, generator=torch.Generator().manual_seed(3))
    target = generator.synthesis(mixed, noise_mode="none")
    shared = project(generator, target, pixel_distance, QUICK)
    layered = project(
        generator, target, pixel_distance, ProjectionOptions(steps=80, w_samples=300, per_layer=True)
    )
    assert not torch.equal(layered.ws[:, 0], layered.ws[:, 1])
    assert pixel_distance(layered.image, target) < pixel_distance(shared.image, target) / 2


def test_the_same_seed_gives_the_same_search() -> None:
    generator, options = small_generator(noise=0.1), ProjectionOptions(steps=6, w_samples=50)
    target = own_image(generator)
    torch.manual_seed(1)
    first = project(generator, target, pixel_distance, options)
    torch.manual_seed(2)
    second = project(generator, target, pixel_distance, options)
    other = project(generator, target, pixel_distance, ProjectionOptions(steps=6, w_samples=50, seed=1))
    assert torch.equal(first.ws, second.ws) and first.history == second.history
    assert not torch.equal(first.ws, other.ws)


def test_the_history_adds_up() -> None:
    generator = small_generator()
    options = ProjectionOptions(
        steps=4, w_samples=50, noise_weight=10.0, distance_weight=2.0, pixel_weight=3.0
    )
    seen: list[Step] = []
    found = project(generator, own_image(generator), pixel_distance, options, watch=seen.append)
    assert seen == found.history and [step.step for step in seen] == [0, 1, 2, 3]
    for step in seen:
        expected = 2 * step.distance + 3 * step.pixel_error + 10 * step.noise_penalty
        assert step.loss == pytest.approx(expected, rel=1e-5)
        assert step.distance == pytest.approx(step.pixel_error, rel=1e-5)


def test_statistics_of_w() -> None:
    generator = small_generator()
    mean, sigma = w_statistics(generator, 400, seed=7)
    z = np.random.RandomState(7).randn(400, 12).astype(np.float32)
    w = generator.mapping(torch.from_numpy(z), None)[:, 0].double().numpy()
    assert np.allclose(mean, w.mean(axis=0), atol=1e-5)
    assert sigma == pytest.approx(math.sqrt(w.var(axis=0).sum()), rel=1e-4)


def test_learning_rate_of_the_paper() -> None:
    """1000 steps: up from zero over the first 50, down on a cosine over the last 250."""
    factor = [learning_rate_factor(step / 1000, 0.05, 0.25) for step in range(1001)]
    assert factor[0] == 0 and factor[25] == pytest.approx(0.5)
    assert factor[50:751] == pytest.approx([1.0] * 701)
    assert factor[875] == pytest.approx(0.5) and factor[1000] == pytest.approx(0)
    assert learning_rate_factor(0.0, 0.0, 0.0) == 1


def test_noise_penalty_by_hand() -> None:
    """Stripes: neighbours along the stripe are equal (mean product 1), across opposite (−1): 1² + (−1)²."""
    stripes = torch.tensor([1.0, -1.0]).repeat(8)[None].expand(8, 16)
    assert noise_penalty([stripes], CPU) == pytest.approx(2.0)
    # 16×16: the level below is the mean of opposite stripes, zero; it adds nothing.
    tall = torch.tensor([1.0, -1.0]).repeat(8)[None].expand(16, 16)
    assert noise_penalty([tall], CPU) == pytest.approx(2.0)
    # A constant map: products of 1; one level below it is 2, products of 4, squared 16.
    assert noise_penalty([torch.ones(16, 16)], CPU) == pytest.approx(2 + 32)
    assert noise_penalty([torch.ones(8, 8), torch.ones(4, 4)], CPU) == pytest.approx(4)
    assert noise_penalty([], CPU) == 0


def test_noise_penalty_is_small_for_noise_and_large_for_signal() -> None:
    """For white noise a mean of R² products has variance 1/R²: two directions on 32², 16² and 8²."""
    noise = torch.randn(300, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = 2 * (1 / 32**2 + 1 / 16**2 + 1 / 8**2)
    assert noise_penalty(list(noise), CPU) / 300 == pytest.approx(expected, rel=0.2)
    blurred = noise + noise.roll(1, 1) + noise.roll(1, 2)
    assert noise_penalty(list(blurred / blurred.std()), CPU) / 300 > 10 * expected


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"steps": 0, "w_samples": 1}, ["steps", "w_samples"]),
        ({"max_lr": math.inf, "rampup": 2.0}, ["max_lr", "rampup"]),
        ({"distance_weight": 0.0}, ["distance_weight and pixel_weight"]),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        project(small_generator(), torch.zeros(1, 1, 16, 16), pixel_distance, ProjectionOptions(**options))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [*names, "target"]


def test_divergence_is_an_error() -> None:
    generator = small_generator()
    with pytest.raises(StyleGAN2Error, match="diverged: loss nan at step 0"):
        project(generator, own_image(generator), lambda a, b: (a * math.nan).sum(dim=(1, 2, 3)), QUICK)


def test_classes_have_their_own_mean() -> None:
    generator = small_generator(c_dim=2)
    first, second = (w_statistics(generator, 50, 0, index)[0] for index in (0, 1))
    assert not torch.allclose(first, second)
    with pytest.raises(StyleGAN2Error, match="class: got none"):
        w_statistics(generator, 50, 0)


def test_a_target_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "t.png")
    target, changes = read_target(tmp_path / "t.png", small_generator())
    assert changes == [] and target.shape == (1, 3, 16, 16)
    assert np.array_equal(((target[0].permute(1, 2, 0) + 1) * 127.5).round().numpy(), pixels)


def test_a_wide_target_loses_its_sides(tmp_path: Path) -> None:
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200  # the middle square
    Image.fromarray(pixels).save(tmp_path / "t.png")
    target, changes = read_target(tmp_path / "t.png", small_generator())
    assert changes == ["64×32 cropped to 32×32", "resized to 16×16"]
    assert torch.allclose(target, torch.full_like(target, 200 / 127.5 - 1))


def test_a_network_that_is_not_square_has_its_own_targets(tmp_path: Path) -> None:
    synthesis = {**KWARGS["synthesis_kwargs"], "base_grid": (3, 4)}
    generator = small_generator(noise=0.1, synthesis_kwargs=synthesis)
    Image.new("RGB", (16, 16), (255, 255, 255)).save(tmp_path / "t.png")
    target, changes = read_target(tmp_path / "t.png", generator)
    assert target.shape == (1, 3, 12, 16) and changes == ["16×16 cropped to 16×12"]
    found = project(generator, target, pixel_distance, ProjectionOptions(steps=2, w_samples=50))
    assert found.image.shape == target.shape
    assert {tuple(value.shape) for value in found.noise.values()} == {(3, 4), (6, 8), (12, 16)}


def test_colours_become_grey_for_a_grey_network(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "t.png")
    target, changes = read_target(tmp_path / "t.png", small_generator(img_channels=1))
    assert target.shape == (1, 1, 16, 16) and changes == ["colours to grey"]
    assert torch.allclose(target, torch.full_like(target, 76 / 127.5 - 1))  # 0.299 · 255


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA"])
def test_other_kinds_of_pictures_are_read(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode).save(tmp_path / "t.png")
    target, _ = read_target(tmp_path / "t.png", small_generator())
    assert torch.equal(target, torch.ones(1, 3, 16, 16))


def test_unusable_targets_are_named(tmp_path: Path) -> None:
    generator = small_generator()
    Image.new("RGBA", (16, 16), (9, 9, 9, 5)).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no picture")
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    for name, message in {
        "clear.png": "transparency",
        "deep.png": "more than 8 bits",
        "text.png": "not an image",
        "half.png": "cannot be read",
        "absent.png": "no such image",
    }.items():
        with pytest.raises(StyleGAN2Error, match=message):
            read_target(tmp_path / name, generator)


def test_what_is_found_can_be_read_back(tmp_path: Path) -> None:
    generator = small_generator(noise=0.1)
    options = ProjectionOptions(steps=3, w_samples=50)
    found = project(generator, own_image(generator), pixel_distance, options)
    save_projection(tmp_path / "w.safetensors", found)
    tensors = load_file(tmp_path / "w.safetensors")
    assert torch.equal(tensors.pop("ws"), found.ws)
    assert {name.removeprefix("noise/") for name in tensors} == found.noise.keys()
    save_history(tmp_path / "history.csv", found.history)
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["loss"]) == pytest.approx(found.history[2].loss, rel=1e-5)
