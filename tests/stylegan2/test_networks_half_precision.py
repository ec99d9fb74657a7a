"""Mixed precision: which blocks compute in what, how close that is to float32, and how it lies in memory.

A CPU computes in float32 by rule; the tests lift the rule to run the half-precision blocks here.
"""

import json

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.networks.layers import (
    HALF_DTYPES,
    ResampledConv2d,
    block_dtype,
    block_memory_format,
    find_half_dtype,
)
from stylegan2.ops.modulated_conv import modulated_conv2d

SMALL = {"channel_base": 512, "channel_max": 16, "conv_clamp": 256}
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
# Deviation from float32, relative to the largest value or the norm. One rounding costs up to 2^-11 and 2^-8;
# there are dozens.
TOLERANCE = {"float16": 0.004, "bfloat16": 0.03}


@pytest.fixture
def half_on_cpu(monkeypatch):
    monkeypatch.setattr("stylegan2.networks.layers.HALF_DEVICES", ("cpu", "cuda"))


def make_generator(architecture="skip", channels_last=False, **synthesis_kwargs):
    torch.manual_seed(0)
    options = {**SMALL, "architecture": architecture, "fp16_channels_last": channels_last, **synthesis_kwargs}
    return Generator(8, 0, 12, 32, 3, {"num_layers": 2}, options)


def make_discriminator(architecture="resnet", channels_last=False, activation="lrelu", **kwargs):
    torch.manual_seed(1)
    options = {"fp16_channels_last": channels_last, "activation": activation}
    return Discriminator(0, 32, 3, architecture, **SMALL, block_kwargs=options, **kwargs)


def float32_twin(network):
    """The same weights and options without half precision."""
    kwargs = json.loads(json.dumps(network.init_kwargs))
    holder = kwargs if isinstance(network, Discriminator) else kwargs["synthesis_kwargs"]
    holder["num_fp16_res"] = 0
    twin = type(network)(**kwargs)
    twin.load_state_dict(network.state_dict())
    return twin


def deviation(actual, expected):
    error = actual.detach().float() - expected.detach()
    return float(error.abs().max() / expected.detach().abs().max())


def dtypes_of_blocks(network):
    """What type the convolutions of each block give out in a forward pass."""
    seen = {}

    def record(name):
        def hook(module, inputs, output):
            seen.setdefault(int(name.split(".b")[-1].split(".")[0].removeprefix("b")), set()).add(
                output.dtype
            )

        return hook

    for name, module in network.named_modules():
        if name.endswith((".conv0", ".conv1", ".conv", ".torgb", ".fromrgb")):
            module.register_forward_hook(record(name))
    return seen


@pytest.mark.parametrize("half", HALF_DTYPES.values())
def test_the_rule(half):
    assert block_dtype(half, CUDA) == half
    assert block_dtype(half, CPU) == torch.float32
    assert block_dtype(None, CUDA) == torch.float32
    assert block_memory_format(True, half) == torch.channels_last
    assert block_memory_format(True, torch.float32) == torch.contiguous_format
    assert block_memory_format(False, half) == torch.contiguous_format


def test_half_precision_blocks_run_in_float32_on_a_cpu():
    G, D = make_generator(num_fp16_res=2), make_discriminator(num_fp16_res=2)
    assert [G.synthesis.get_submodule(f"b{r}").use_fp16 for r in (4, 8, 16, 32)] == [False, False, True, True]
    assert [D.get_submodule(f"b{r}").use_fp16 for r in (8, 16, 32)] == [False, True, True]
    z = torch.randn(4, 8)
    img = G(z, noise_mode="const")
    assert torch.equal(img, float32_twin(G)(z, noise_mode="const"))
    assert torch.equal(D(img), float32_twin(D)(img))


@pytest.mark.parametrize("name", HALF_DTYPES)
def test_the_highest_resolutions_compute_in_the_asked_type(name, half_on_cpu):
    G = make_generator(num_fp16_res=2, half_dtype=name)
    D = make_discriminator(num_fp16_res=2, half_dtype=name)
    drawn, judged = dtypes_of_blocks(G), dtypes_of_blocks(D)
    img = G(torch.randn(4, 8))
    logits = D(img)
    half, full = {HALF_DTYPES[name]}, {torch.float32}
    assert drawn == {4: full, 8: full, 16: half, 32: half}
    assert judged == {32: half, 16: half, 8: full, 4: full}
    assert img.dtype == logits.dtype == torch.float32


def test_float32_can_be_forced(half_on_cpu):
    G, D = make_generator(num_fp16_res=4), make_discriminator(num_fp16_res=4)
    z = torch.randn(4, 8)
    img = G(z, noise_mode="const", force_fp32=True, fused_modconv=False)
    assert torch.equal(img, float32_twin(G)(z, noise_mode="const", fused_modconv=False))
    assert torch.equal(D(img, force_fp32=True), float32_twin(D)(img))


@pytest.mark.parametrize("name", HALF_DTYPES)
@pytest.mark.parametrize(
    ("architecture", "channels_last", "fused"),
    [("skip", True, False), ("resnet", False, True), ("orig", True, None)],
)
def test_forward_and_backward_agree_with_float32(name, architecture, channels_last, fused, half_on_cpu):
    # A smooth activation: at the kink of lrelu a rounded input flips the slope, which is no error of ours.
    options = {"num_fp16_res": 2, "half_dtype": name, "activation": "swish"}
    G = make_generator(architecture, channels_last, **options)
    D = make_discriminator(architecture, channels_last, **options)
    exact_G, exact_D = float32_twin(G), float32_twin(D)
    z = torch.randn(4, 8)
    img = G(z, noise_mode="const", fused_modconv=fused)
    exact_img = exact_G(z, noise_mode="const", fused_modconv=fused)
    assert 0 < deviation(img, exact_img) < TOLERANCE[name]
    logits, exact_logits = D(exact_img.detach()), exact_D(exact_img.detach())
    assert 0 < deviation(logits, exact_logits) < TOLERANCE[name]

    torch.manual_seed(2)
    weights = torch.randn_like(img)
    ((img * weights).sum() + logits.sum()).backward()  # sums: the gradients of means underflow in float16
    ((exact_img * weights).sum() + exact_logits.sum()).backward()
    for network, exact in ((G, exact_G), (D, exact_D)):
        gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
        exact_gradients = torch.cat([p.grad.flatten() for p in exact.parameters()])
        assert bool(gradients.isfinite().all())
        assert float((gradients - exact_gradients).norm() / exact_gradients.norm()) < TOLERANCE[name]


@pytest.mark.parametrize("name", HALF_DTYPES)
@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
def test_channels_last_reaches_every_half_precision_layer(name, architecture, half_on_cpu):
    options = {"num_fp16_res": 2, "half_dtype": name, "channels_last": True}
    G, D = make_generator(architecture, **options), make_discriminator(architecture, **options)
    seen, others = [], []

    def record(module, inputs, output):
        for x in (inputs[0], output):
            if x.dtype != torch.float32:
                seen.append(x.shape)
                if not x.is_contiguous(memory_format=torch.channels_last):
                    others.append((module, x.shape, x.stride()))

    for network in (G, D):
        for module in network.modules():
            if isinstance(module, ResampledConv2d) or hasattr(module, "noise_strength"):
                module.register_forward_hook(record)
    D(G(torch.randn(4, 8)))
    assert len(seen) >= 14
    assert others == []


def test_channels_last_is_left_when_the_block_runs_in_float32():
    G = make_generator(channels_last=True, num_fp16_res=2)
    seen = []
    G.synthesis.b32.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    z = torch.randn(4, 8)
    img = G(z, noise_mode="const")
    assert seen[0].is_contiguous()
    torch.testing.assert_close(
        img, make_generator(num_fp16_res=2)(z, noise_mode="const"), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.03)])
def test_demodulation_survives_large_styles(fused, dtype, tolerance):
    """Styles of 3e4 overflow float16 unless weights and styles are brought into range first."""
    torch.manual_seed(0)
    x, weight, styles = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 3, 3), 3e4 * torch.randn(2, 8)
    exact = modulated_conv2d(x, weight, styles, padding=1, fused_modconv=fused)
    half = modulated_conv2d(x.to(dtype), weight, styles, padding=1, fused_modconv=fused)
    assert half.dtype == dtype
    assert deviation(half, exact) < tolerance


def test_the_guard_against_overflow_is_for_float16_only(monkeypatch):
    calls = []

    def record(weight, styles):
        calls.append(weight)
        return weight, styles

    monkeypatch.setattr("stylegan2.ops.modulated_conv._scale_for_float16", record)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        modulated_conv2d(torch.ones(1, 2, 4, 4, dtype=dtype), torch.ones(3, 2, 1, 1), torch.ones(1, 2))
        assert len(calls) == (dtype == torch.float16)


def test_the_type_is_recorded_only_when_it_is_not_the_default():
    default = make_generator(num_fp16_res=1, half_dtype="float16")
    assert "half_dtype" not in default.init_kwargs["synthesis_kwargs"]
    assert "half_dtype" not in make_discriminator(half_dtype="float16").init_kwargs
    for network in (make_generator(half_dtype="bfloat16"), make_discriminator(half_dtype="bfloat16")):
        again = type(network)(**json.loads(json.dumps(network.init_kwargs)))
        assert again.init_kwargs == network.init_kwargs
        holder = (
            again.init_kwargs if isinstance(again, Discriminator) else again.init_kwargs["synthesis_kwargs"]
        )
        assert holder["half_dtype"] == "bfloat16"
        blocks = again.children() if isinstance(again, Discriminator) else again.synthesis.children()
        assert {b.half_dtype for b in blocks if hasattr(b, "half_dtype")} == {torch.bfloat16}


@pytest.mark.parametrize("build", [make_generator, make_discriminator])
def test_an_unknown_type_is_refused(build):
    message = "half_dtype: got 'float8', expected one of float16, bfloat16"
    with pytest.raises(StyleGAN2Error, match=message):
        build(half_dtype="float8")
    with pytest.raises(StyleGAN2Error, match=message):
        find_half_dtype("float8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", HALF_DTYPES)
def test_half_precision_on_cuda(name):
    G = make_generator(channels_last=True, num_fp16_res=2, half_dtype=name).cuda()
    D = make_discriminator(channels_last=True, num_fp16_res=2, half_dtype=name).cuda()
    seen = dtypes_of_blocks(G)
    z = torch.randn(4, 8, device="cuda")
    img = G(z, noise_mode="const")
    assert seen[32] == {HALF_DTYPES[name]}
    exact = G(z, noise_mode="const", force_fp32=True)
    assert 0 < deviation(img, exact) < 3 * TOLERANCE[name]  # float32 convolutions use TF32 there
    logits = D(img)
    assert deviation(logits, D(img, force_fp32=True)) < 3 * TOLERANCE[name]
    logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in [*G.parameters(), *D.parameters()])
