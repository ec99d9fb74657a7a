"""The augmentations against the reference numbers: fixed percentiles, and real random draws."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stylegan2.augment import AugmentPipe
from stylegan2.augment_geometry import normalised_sampling, reflection_padding, sampling_matrices
from stylegan2.augment_parameters import SPECS, AugmentParameters, Draws, sample_parameters

pytestmark = pytest.mark.shared

PARAMETER_NAMES = {
    "xflip_i": "xflip",
    "rotate90_i": "rotate90",
    "xint_t": "xint",
    "scale_s": "scale",
    "rotate_pre_theta": "rotate_pre",
    "aniso_s": "aniso",
    "rotate_post_theta": "rotate_post",
    "xfrac_t": "xfrac",
    "brightness_b": "brightness",
    "contrast_c": "contrast",
    "lumaflip_i": "lumaflip",
    "hue_theta": "hue",
    "saturation_s": "saturation",
    "imgfilter_t": "imgfilter",
    "noise_sigma": "noise_sigma",
    "noise_field": "noise_field",
    "cutout_center": "cutout_center",
}
RECORDED = {
    "ada_params_bgc_p1": "bgc",
    "ada_params_bgcfnc_p06": "bgcfnc",
    "ada_params_rect_bg_p1": "bg_nonsquare_48x64",
}


class ReplayedDraws(Draws):
    """Hands out recorded random numbers instead of drawing."""

    def __init__(self, batch: int, recorded: list[Tensor]) -> None:
        super().__init__(batch, torch.device("cpu"))
        self.recorded = recorded

    def uniform(self, *shape: int) -> Tensor:
        return self.recorded.pop(0).reshape(self.batch, *shape)

    def normal(self, *shape: int) -> Tensor:
        return self.recorded.pop(0).reshape(self.batch, *shape)


def recorded_parameters(tensors: dict[str, Tensor]) -> AugmentParameters:
    """The stored parameters in our names and shapes."""
    batch = len(tensors["images"])
    found: dict[str, Tensor] = {}
    for stored, name in PARAMETER_NAMES.items():
        if f"params/{stored}" in tensors:
            value = tensors[f"params/{stored}"]
            found[name] = value if name == "noise_field" else value.reshape(batch, -1).squeeze(1)
    if "params/cutout_size" in tensors:
        found["cutout_size"] = tensors["params/cutout_size"].reshape(batch, 2)[:, 0]
    return AugmentParameters(**found)


def geometry(params: AugmentParameters, images: Tensor, taps: int) -> dict[str, Tensor]:
    batch, channels, height, width = images.shape
    matrices = sampling_matrices(params, batch, width, height, images.device)
    padding = reflection_padding(matrices, width, height, taps)
    theta, grid_height, grid_width = normalised_sampling(matrices, width, height, padding, taps)
    size = [batch, channels, grid_height, grid_width]
    return {"theta": theta, "pad": torch.tensor(padding), "grid_size": torch.tensor(size)}


@pytest.mark.reference_cases("ada_percentile", "ada_percentile_gray")
def test_percentile(
    file: str,
    case: dict[str, Any],
    stylegan2_reference: Any,
    assert_close_to_reference: Callable[..., None],
) -> None:
    tensors = stylegan2_reference.tensors(file)
    expected = stylegan2_reference.outputs(file, case["id"])
    tolerance = stylegan2_reference.tolerance(file)
    images = tensors["images"].clone().requires_grad_()
    pipe = AugmentPipe(case["args"]["spec"])
    pipe.p.fill_(1)
    params = pipe.sample(images, debug_percentile=case["args"]["debug_percentile"])
    if params.noise_field is not None:
        params = dataclasses.replace(params, noise_field=tensors["noise_field"])
    out = pipe.apply_parameters(images, params)
    assert_close_to_reference(out, expected["out"], tolerance, "out")
    if "gimg" in expected:
        (gradient,) = torch.autograd.grad((out * tensors["gy"]).sum(), images)
        assert_close_to_reference(gradient, expected["gimg"], tolerance, "gimg")
    if "theta" in expected:
        found = geometry(params, images, pipe.wavelet.numel())
        for name in ("theta", "pad", "grid_size"):
            assert_close_to_reference(found[name], expected[name], tolerance, name)


@pytest.mark.parametrize("file", RECORDED)
def test_parameters_follow_from_the_draws(
    file: str, stylegan2_reference: Any, assert_close_to_reference: Callable[..., None]
) -> None:
    case = stylegan2_reference.case(file, RECORDED[file])
    tensors = stylegan2_reference.tensors(file)
    keys = sorted(key for key in tensors if key.startswith("draw_"))
    recorded = {int(key.split("_")[1]): tensors[key] for key in keys}
    if "params/noise_field" in tensors:
        recorded[36] = tensors["params/noise_field"]  # stored only once
    transforms = frozenset(case["args"]["multipliers"])
    p = torch.tensor(case["args"]["p"])
    draws = ReplayedDraws(len(tensors["images"]), [recorded[index] for index in sorted(recorded)])
    params = sample_parameters(transforms, tensors["images"].shape, p, draws)
    assert not draws.recorded, "not every recorded draw was asked for"
    expected = recorded_parameters(tensors)
    for field in dataclasses.fields(AugmentParameters):
        wanted = getattr(expected, field.name)
        found = getattr(params, field.name)
        assert (wanted is None) == (found is None), field.name
        if wanted is not None:
            assert_close_to_reference(found, wanted, stylegan2_reference.tolerance(file), field.name)


@pytest.mark.parametrize("file", RECORDED)
def test_given_parameters(
    file: str, stylegan2_reference: Any, assert_close_to_reference: Callable[..., None]
) -> None:
    tensors = stylegan2_reference.tensors(file)
    expected = stylegan2_reference.outputs(file, RECORDED[file])
    tolerance = stylegan2_reference.tolerance(file)
    images = tensors["images"].clone().requires_grad_()
    pipe = AugmentPipe("bgcfnc")
    params = recorded_parameters(tensors)
    out = pipe.apply_parameters(images, params)
    assert_close_to_reference(out, expected["out"], tolerance, "out")
    (gradient,) = torch.autograd.grad((out * tensors["gy"]).sum(), images)
    assert_close_to_reference(gradient, expected["gimg"], tolerance, "gimg")
    for name, value in geometry(params, images, pipe.wavelet.numel()).items():
        assert_close_to_reference(value, expected[name], tolerance, name)


def test_specs(stylegan2_reference: Any) -> None:
    dynamics = json.loads((stylegan2_reference.folder / "training_dynamics.json").read_text(encoding="utf-8"))
    for spec, multipliers in dynamics["augment_specs"].items():
        assert SPECS[spec] == set(multipliers), spec
