"""Features of image sets: preprocessing, names, the cache, the perceptual distance."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stylegan2.efficientnet import load_efficientnet, normalise
from stylegan2.errors import StyleGAN2Error
from stylegan2.features import (
    EfficientNetFeatures,
    FeatureNetwork,
    PerceptualDistance,
    extract_features,
    load_feature_network,
)


@functools.cache
def efficientnet() -> FeatureNetwork:
    return load_feature_network()


@functools.cache
def perceptual() -> PerceptualDistance:
    return PerceptualDistance()


def random_images(count: int, channels: int = 3, size: int = 24, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def smooth_image(size: int = 64) -> Tensor:
    """A picture of −1..1 with edges and gradients, [1, 3, size, size]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    disc = ((x**2 + y**2) < 0.5).float()
    return torch.stack([disc, x * disc, 0.5 * torch.sin(6 * y)])[None]


class MeanColour:
    """A tiny feature network that counts its calls."""

    name = "mean-colour"
    dim = 2
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.batches.append(len(images))
        pixels = images.float()
        return torch.stack([pixels.mean(dim=(1, 2, 3)), pixels[:, 0, 0, 0]], dim=1)


class Inception(nn.Module):
    """The calling convention of the official file; the first feature is the first byte."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        if not return_features:
            return torch.zeros(images.shape[0], 1008)
        return images[:, 0, 0, :1].to(torch.float32).repeat(1, 2048)


class WrongConvention(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class TooNarrow(nn.Module):
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        return torch.zeros(images.shape[0], 7)


# ---- networks ---------------------------------------------------------------------------------------------


def test_features_have_length_one() -> None:
    features = efficientnet()(torch.from_numpy(random_images(3).transpose(0, 3, 1, 2).copy()))
    assert (features.shape, features.dtype) == ((3, 1280), torch.float32)
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-6)
    assert (efficientnet().name, efficientnet().dim) == ("efficientnet-lite0", 1280)


def test_grey_equals_three_equal_channels() -> None:
    grey = torch.from_numpy(random_images(2, channels=1).transpose(0, 3, 1, 2).copy())
    assert torch.equal(efficientnet()(grey), efficientnet()(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [(40, 56), (600, 431)])
def test_resizing_is_pillows_antialiased_bicubic(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    channels = [
        Image.fromarray(pixels[:, :, c].astype(np.float32)) for c in range(3)
    ]  # not rounded in between
    expected = np.stack([np.asarray(c.resize((224, 224), Image.Resampling.BICUBIC)) for c in channels])
    actual = EfficientNetFeatures().prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].numpy()
    assert np.abs(actual - expected.clip(0, 255)).max() < 0.01


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 8, 8),
        torch.zeros(1, 2, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 8, dtype=torch.uint8),
    ],
)
def test_other_tensors_are_refused(images: Tensor) -> None:
    with pytest.raises(StyleGAN2Error, match=r"expected torch\.uint8"):
        efficientnet()(images)


def test_unknown_name_and_missing_path() -> None:
    with pytest.raises(StyleGAN2Error, match="efficientnet-lite0, inception"):
        load_feature_network("vgg")
    with pytest.raises(StyleGAN2Error, match="give the path"):
        load_feature_network("inception")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_called_by_its_convention(tmp_path: Path) -> None:
    path = tmp_path / "inception.pt"
    torch.jit.script(Inception()).save(str(path))
    network = load_feature_network("inception", path=path)
    images = random_images(5, channels=1)
    features = extract_features(network, images, batch=2)
    assert (network.name, network.dim, features.shape) == ("inception", 2048, (5, 2048))
    assert features[:, 0].tolist() == images[:, 0, 0, 0].tolist()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("module", "message"),
    [(WrongConvention(), "cannot be called as"), (TooNarrow(), r"\[2, 7\], expected \[2, 2048\]")],
)
def test_scripts_of_another_kind_are_refused(module: nn.Module, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.jit.script(module).save(str(path))
    with pytest.raises(StyleGAN2Error, match=message):
        load_feature_network("inception", path=path)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_files_that_are_no_scripts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("not a network")
    with pytest.raises(StyleGAN2Error, match="not a TorchScript file"):
        load_feature_network("inception", path=path)
    with pytest.raises(StyleGAN2Error, match="cannot be read"):
        load_feature_network("inception", path=tmp_path / "none.pt")


# ---- extraction and its cache -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.integers(1, 7), min_size=1, max_size=4), batch=st.integers(1, 9))
def test_batching_does_not_matter(parts: list[int], batch: int) -> None:
    images = random_images(sum(parts))
    network = MeanColour()
    features = extract_features(network, np.split(images, np.cumsum(parts)[:-1]), batch)
    assert features[:, 1].tolist() == images[:, 0, 0, 0].tolist()
    assert np.allclose(features[:, 0], images.mean(axis=(1, 2, 3)), rtol=1e-5)
    assert max(network.batches) <= batch


def test_an_images_features_do_not_depend_on_its_neighbours() -> None:
    images = random_images(5)
    together = extract_features(efficientnet(), images, batch=5)
    alone = extract_features(efficientnet(), images, batch=1)
    assert np.abs(together - alone).max() < 1e-5
    assert np.array_equal(together, extract_features(efficientnet(), images, batch=5))


def test_an_iterator_is_consumed_batch_by_batch() -> None:
    network = MeanColour()
    seen: list[int] = []

    def batches() -> Iterator[NDArray[np.uint8]]:
        for i in range(3):
            seen.append(len(network.batches))
            yield random_images(2, seed=i)

    extract_features(network, batches())
    assert seen == [0, 1, 2]


def cached(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_the_cache_saves_the_work(tmp_path: Path) -> None:
    images, network = random_images(5), MeanColour()
    first = extract_features(network, images, cache=tmp_path)
    calls = len(network.batches)
    again = extract_features(network, [images[:2], images[2:]], batch=3, cache=tmp_path)
    assert np.array_equal(first, again)
    assert len(network.batches) == calls
    assert len(cached(tmp_path)) == 1


def test_the_cache_tells_sets_and_networks_apart(tmp_path: Path) -> None:
    images = random_images(4)
    changed = images.copy()
    changed[3, 23, 23, 2] ^= 1
    renamed, reweighted = MeanColour(), MeanColour()
    renamed.name, reweighted.weights_sha256 = "other", "1" * 64
    sets = [images, changed, images[::-1], images[:3], images.reshape(4, 48, 12, 3)]
    for variant in sets:
        features = extract_features(MeanColour(), variant, cache=tmp_path)
        assert np.array_equal(features, extract_features(MeanColour(), variant))
    extract_features(renamed, images, cache=tmp_path)
    extract_features(reweighted, images, cache=tmp_path)
    assert len(cached(tmp_path)) == len(sets) + 2


@pytest.mark.parametrize("damage", ["emptied", "truncated", "bit flipped", "header", "other content"])
def test_a_damaged_cache_is_recomputed(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, network = random_images(4), MeanColour()
    expected = extract_features(network, images, cache=tmp_path)
    (path,) = cached(tmp_path)
    data = bytearray(path.read_bytes())
    if damage == "emptied":
        data.clear()
    elif damage == "truncated":
        del data[-3:]
    elif damage == "bit flipped":
        data[data.index(expected.tobytes()) + 2] ^= 1
    elif damage == "header":
        data[9] ^= 255
    else:
        other = extract_features(network, random_images(4, seed=1), cache=tmp_path / "other")
        assert not np.array_equal(other, expected)
        data = bytearray(cached(tmp_path / "other")[0].read_bytes())
    path.write_bytes(data)
    calls = len(network.batches)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(extract_features(network, images, cache=tmp_path), expected)
    assert len(network.batches) == calls + 1
    assert path.name in caplog.text
    caplog.clear()
    assert np.array_equal(extract_features(network, images, cache=tmp_path), expected)
    assert len(network.batches) == calls + 1
    assert not caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (random_images(0), "got none"),
        (random_images(2).astype(np.float32), "expected uint8"),
        (random_images(2)[0], "expected uint8"),
        (random_images(2, channels=4), "expected uint8"),
    ],
)
def test_what_is_no_set_of_images_is_refused(images: NDArray[np.uint8], message: str, tmp_path: Path) -> None:
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(StyleGAN2Error, match=message):
            extract_features(MeanColour(), images, cache=cache)
    assert not (tmp_path / "cache").exists()


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(MeanColour):
        def __call__(self, images: Tensor) -> Tensor:
            return super().__call__(images) / 0

    with pytest.raises(StyleGAN2Error, match="3 images are not finite"):
        extract_features(Broken(), random_images(3) // 2 + 1, cache=tmp_path)
    assert not cached(tmp_path)


# ---- perceptual distance ----------------------------------------------------------------------------------


def test_distance_by_its_equation() -> None:
    a, b = smooth_image(48), smooth_image(48).roll(3, dims=3)
    network, stages = load_efficientnet(), []
    for of_a, of_b in zip(
        *(network.spatial(normalise((image + 1) * 127.5)) for image in (a, b)), strict=True
    ):
        height, width = of_a.shape[2:]
        total = 0.0
        for y in range(height):
            for x in range(width):
                unit = [m[0, :, y, x].double() / m[0, :, y, x].double().norm() for m in (of_a, of_b)]
                total += float((unit[0] - unit[1]).square().sum())
        stages.append(total / (height * width))
    assert len(stages) == 5
    assert float(perceptual()(a, b)[0]) == pytest.approx(np.mean(stages), rel=1e-4)


def test_distance_orders_pictures_as_eyes_do() -> None:
    picture = smooth_image()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(picture.shape, generator=generator)
    others = torch.cat([picture, picture + 0.02 * noise, picture + 0.2 * noise, noise.clamp(-1, 1)])
    distances = perceptual()(picture.expand(4, -1, -1, -1), others)
    assert float(distances[0]) == 0
    assert distances.tolist() == sorted(distances.tolist())
    assert float(distances[1]) > 0
    assert torch.allclose(distances, perceptual()(others, picture.expand(4, -1, -1, -1)))


@pytest.mark.parametrize("channels", [1, 3])
def test_gradient_reaches_the_images(channels: int) -> None:
    """Going down the gradient brings the picture nearer; the slope agrees with a difference quotient."""
    target = smooth_image(32)[:, :channels]
    image = (target * 0.5).requires_grad_()
    start = perceptual()(image, target).sum()
    start.backward()
    assert image.grad is not None
    slope = image.grad
    step = 1e-4 / float(slope.norm()) * slope
    with torch.no_grad():
        down, up = perceptual()(image - step, target), perceptual()(image + step, target)
    assert float(down) < float(start.detach()) < float(up)
    assert float(up - down) == pytest.approx(2 * float((slope * step).sum()), rel=0.15)


def test_gradient_is_finite_for_equal_and_empty_pictures() -> None:
    image = torch.zeros(2, 3, 32, 32, requires_grad=True)
    perceptual()(image, torch.zeros(2, 3, 32, 32)).sum().backward()
    assert image.grad is not None
    assert bool(torch.isfinite(image.grad).all())


def test_parameters_receive_no_gradient() -> None:
    assert not any(weight.requires_grad for weight in load_efficientnet().parameters())
    assert isinstance(efficientnet(), EfficientNetFeatures)


def test_large_pictures_are_reduced() -> None:
    maps = perceptual().spatial_features(torch.zeros(1, 1, 600, 300))
    assert tuple(maps[0].shape) == (1, 16, 128, 64)


def test_pairs_must_match() -> None:
    with pytest.raises(StyleGAN2Error, match="equal shapes"):
        perceptual()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(StyleGAN2Error, match="expected float"):
        perceptual()(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
