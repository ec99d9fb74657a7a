"""The operations against the reference numbers: results, gradients and second gradients of every case."""

import pytest
import torch

from stylegan2.networks.discriminator import MinibatchStdLayer
from stylegan2.networks.layers import unit_second_moment
from stylegan2.ops import upfirdn2d as firs
from stylegan2.ops.bias_act import ACTIVATIONS, bias_act
from stylegan2.ops.conv2d_resample import conv2d_resample
from stylegan2.ops.modulated_conv import modulated_conv2d

pytestmark = pytest.mark.shared


def leaves(inputs: dict[str, torch.Tensor], *names: str) -> list[torch.Tensor]:
    """Copies of the inputs that gradients can be taken of."""
    return [inputs[name].clone().requires_grad_() for name in names]


@pytest.mark.reference_cases("ops_setup_filter", select=lambda case: "taps" in case["args"])
def test_setup_filter(file, case, stylegan2_reference, assert_close_to_reference):
    expected = stylegan2_reference.outputs(file, case["id"])["f"]
    assert_close_to_reference(
        firs.setup_filter(**case["args"]), expected, stylegan2_reference.tolerance(file)
    )


def test_wavelet_filter_of_the_augmentations(stylegan2_reference, assert_close_to_reference):
    taps = stylegan2_reference.case("ops_setup_filter", "12_sym6_")["args"]["taps"]
    expected = stylegan2_reference.outputs("ops_setup_filter", "augment_Hz_geom")["f"]
    tolerance = stylegan2_reference.tolerance("ops_setup_filter")
    assert_close_to_reference(firs.setup_filter(taps), expected, tolerance)


@pytest.mark.reference_cases("ops_upfirdn2d")
def test_upfirdn2d(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    options = {key: value for key, value in case["args"].items() if key not in ("op", "filter")}
    function = getattr(firs, case["args"].get("op", "upfirdn2d"))
    (x,) = leaves(inputs, "x")
    y = function(x, inputs.get("f"), **options)
    (gx,) = torch.autograd.grad((y * inputs["gy"]).sum(), x)
    tolerance = stylegan2_reference.tolerance(file)
    assert_close_to_reference(y, outputs["y"], tolerance, "y")
    assert_close_to_reference(gx, outputs["gx"], tolerance, "gx")


def test_default_constants_of_the_activations(stylegan2_reference):
    defaults = stylegan2_reference.entry("ops_bias_act")["activation_defaults"]
    ours = {name: {"alpha": spec.alpha, "gain": spec.gain} for name, spec in ACTIVATIONS.items()}
    assert ours == defaults


@pytest.mark.reference_cases("ops_bias_act", select=lambda case: "gy" not in case["inputs"])
def test_bias_act_without_bias(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    y = bias_act(inputs["x"], **case["args"])
    assert_close_to_reference(y, outputs["y"], stylegan2_reference.tolerance(file))


@pytest.mark.reference_cases("ops_bias_act", select=lambda case: "gy" in case["inputs"])
def test_bias_act(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    x, b, gy = leaves(inputs, "x", "b", "gy")
    y = bias_act(x, b, **case["args"])
    gx, gb = torch.autograd.grad((y * gy).sum(), [x, b], create_graph=True)
    s = (gx * inputs["v"]).sum() + (gb * inputs["u"]).sum()
    g2x, g2b, g2gy = torch.autograd.grad(s, [x, b, gy], allow_unused=True, materialize_grads=True)
    actual = {"y": y, "gx": gx, "gb": gb, "g2x": g2x, "g2b": g2b, "g2gy": g2gy}
    assert set(outputs) == set(actual)
    for name, expected in outputs.items():
        assert_close_to_reference(actual[name], expected, stylegan2_reference.tolerance(file), name)


@pytest.mark.reference_cases("ops_conv2d_resample")
def test_conv2d_resample(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    options = {key: value for key, value in case["args"].items() if key not in ("kernel", "filter")}
    x, w = leaves(inputs, "x", "w")
    y = conv2d_resample(x, w, inputs.get("f"), **options)
    gx, gw = torch.autograd.grad((y * inputs["gy"]).sum(), [x, w])
    for name, actual in {"y": y, "gx": gx, "gw": gw}.items():
        assert_close_to_reference(actual, outputs[name], stylegan2_reference.tolerance(file), name)


@pytest.mark.reference_cases("ops_modulated_conv2d")
def test_modulated_conv2d(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    options = {key: case["args"][key] for key in ("up", "down", "padding", "demodulate", "flip_weight")}
    names = [name for name in ("x", "weight", "styles", "noise") if name in inputs]
    variables = dict(zip(names, leaves(inputs, *names), strict=True))
    y = modulated_conv2d(
        **variables,
        **options,
        resample_filter=inputs["resample_filter"],
        fused_modconv=case["args"]["fused"],
    )
    first = torch.autograd.grad((y * inputs["gy"]).sum(), list(variables.values()), create_graph=True)
    actual = {"y": y, **{f"g{name}": gradient for name, gradient in zip(names, first, strict=True)}}
    s = (actual["gstyles"] * inputs["v"]).sum()
    targets = ["x", "weight", "styles"]
    second = torch.autograd.grad(
        s, [variables[name] for name in targets], allow_unused=True, materialize_grads=True
    )
    actual.update({f"g2{name}": gradient for name, gradient in zip(targets, second, strict=True)})
    assert set(outputs) <= set(actual)
    for name, expected in outputs.items():
        assert_close_to_reference(actual[name], expected, stylegan2_reference.tolerance(file), name)


@pytest.mark.reference_cases("ops_misc")
def test_normalisation_and_minibatch_std(file, case, stylegan2_reference, assert_close_to_reference):
    inputs = stylegan2_reference.inputs(file, case["id"])
    outputs = stylegan2_reference.outputs(file, case["id"])
    args = case["args"]
    (x,) = leaves(inputs, "x")
    if args["op"] == "normalize_2nd_moment":
        y = unit_second_moment(x, axis=args["dim"], floor=args["eps"])
    else:
        y = MinibatchStdLayer(args["group_size"], args["num_channels"])(x)
    (gx,) = torch.autograd.grad((y * inputs["gy"]).sum(), x)
    assert_close_to_reference(y, outputs["y"], stylegan2_reference.tolerance(file), "y")
    assert_close_to_reference(gx, outputs["gx"], stylegan2_reference.tolerance(file), "gx")
