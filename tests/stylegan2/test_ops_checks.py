"""What the kernels cannot read is refused: they get addresses alone, of tensors that may be anything."""

import pytest
import torch

from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, kernels, library, native
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.kernels import BiasAct

REGISTERED = torch.ops.stylegan2


@pytest.fixture(autouse=True)
def compiled(ops_implementation):
    """All tests of this file run the kernels of the CPU."""
    try:
        native.load("cpu")
    except StyleGAN2Error as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    with ops.use("cpu"):
        yield


CONSTANTS = (1, "lrelu", 0.2, 1.0, None)
G = torch.ones(2, 3, 8, 8)
SHAPE = r"\(2, 3, 8, 8\)"


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.ones(1), rf"y: got torch.float32 of shape \(1,\) on cpu, expected .* of shape {SHAPE}"),
        (torch.ones(2, 3, 8, 4), r"y: got .*\(2, 3, 8, 4\)"),
        (torch.ones(2, 3, 8, 8).double(), "y: got torch.float64 .*, expected torch.float32"),
        (torch.ones(2, 3, 8, 8, device="meta"), "y: got .* on meta, expected .* on cpu"),
        (torch.ones(2, 3, 8, 8).to_sparse(), "y: got .*sparse"),
        (None, "y, which is missing"),
    ],
)
def test_a_point_that_does_not_fit_is_refused(y, message):
    with pytest.raises(StyleGAN2Error, match=message):
        kernels.bias_act_derivative(
            native.load("cpu"), G, None, library._point(G, None, None, y, BiasAct(*CONSTANTS)),
            BiasAct(*CONSTANTS),
        )  # fmt: skip
    if y is None or (y.layout is torch.strided and y.device.type == "cpu"):  # else torch itself refuses
        with pytest.raises(StyleGAN2Error, match=message):
            REGISTERED.bias_act_gradient(G, None, None, y, *CONSTANTS)
        with pytest.raises(StyleGAN2Error, match=message):
            REGISTERED.bias_act_curvature(G, G, None, None, y, *CONSTANTS)


@pytest.mark.parametrize(
    ("x", "b", "constants", "message"),
    [
        (G.double(), torch.ones(3), CONSTANTS, "b: got torch.float32 .*, expected torch.float64"),
        (G, torch.ones(2), CONSTANTS, r"b: got .*\(2,\).*expected .*\(3,\)"),
        (G, torch.ones(3, 1), CONSTANTS, r"b: got .*\(3, 1\)"),
        (G, torch.ones(3, device="meta"), CONSTANTS, "b: got .* on meta"),
        (G, torch.ones(3), (4, *CONSTANTS[1:]), "dim: got 4"),
        (G, torch.ones(3), (-1, *CONSTANTS[1:]), "dim: got -1"),
        (G.int(), None, CONSTANTS, "x: got torch.int32"),
        (G, None, (1, "gelu", *CONSTANTS[2:]), "act 'gelu'"),
        (G, None, (*CONSTANTS[:4], -0.5), "clamp -0.5"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(x, b, constants, message):
    with pytest.raises(StyleGAN2Error, match=message):
        kernels.bias_act(native.load("cpu"), x, b, BiasAct(*constants))
    if b is None or b.device.type == "cpu":
        with pytest.raises(StyleGAN2Error, match=message):
            REGISTERED.bias_act(x, b, *constants)


def test_a_bias_elsewhere_is_refused():
    with pytest.raises(StyleGAN2Error, match=r"b: got .* on meta, expected .* on cpu"):
        bias_act(G, torch.ones(3, device="meta"), act="lrelu")


def test_gradients_that_do_not_fit_are_refused():
    with pytest.raises(StyleGAN2Error, match="gradient of the gradient: got"):
        REGISTERED.bias_act_curvature(G, G[:1], None, None, G, *CONSTANTS)
    with pytest.raises(StyleGAN2Error, match="x, which is missing"):
        REGISTERED.bias_act_gradient(G, None, None, G, 1, "swish", 0.2, 1.0, None)
    with pytest.raises(StyleGAN2Error, match="b: got"):
        REGISTERED.bias_act_gradient(G, G, torch.ones(1), None, 1, "swish", 0.2, 1.0, None)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def every_other(x):
    return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]


@pytest.mark.parametrize("laid", [channels_last, every_other, lambda x: x[:1].expand(x.shape)])
@pytest.mark.parametrize("act", ["lrelu", "tanh"])
def test_tensors_may_lie_in_any_layout(act, laid):
    """The point of linearisation, too, which need not lie as the gradients do."""
    dense = [laid(x).contiguous() for x in torch.randn(3, 2, 3, 4, 6)]
    constants = (1, act, 0.2, 1.3, None)

    def gradients(g, v, y):
        x = y if act == "tanh" else None
        gradient = REGISTERED.bias_act_gradient(g, x, None, y, *constants)
        return gradient, REGISTERED.bias_act_curvature(g, v, x, None, y, *constants)

    for i in range(3):
        tensors = [laid(x) if i == j else x for j, x in enumerate(dense)]
        assert torch.equal(tensors[i], dense[i])
        for ours, theirs in zip(gradients(*tensors), gradients(*dense), strict=True):
            assert torch.equal(ours, theirs)


def test_negated_views_are_read_with_their_signs():
    """Of which memory holds the numbers with the other sign."""
    x, b, y = (torch._neg_view(t) for t in (torch.randn(2, 3, 4, 4), torch.randn(3), torch.randn(2, 3, 4, 4)))
    cpu, p = native.load("cpu"), BiasAct(1, "lrelu", 0.2, 1.0, None)
    plain = [t.resolve_neg() for t in (x, b, y)]
    assert torch.equal(kernels.bias_act(cpu, x, b, p), kernels.bias_act(cpu, *plain[:2], p))
    assert torch.equal(bias_act(plain[0], b, act="lrelu"), bias_act(*plain[:2], act="lrelu"))
    actual = kernels.bias_act_derivative(cpu, x, None, y, p)
    assert torch.equal(actual, kernels.bias_act_derivative(cpu, plain[0], None, plain[2], p))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3, 8, 8)}, r"x: got shape \(3, 8, 8\)"),
        ({"x": torch.ones(1, 3, 8, 8, dtype=torch.int64)}, "x: got torch.int64"),
        ({"f": torch.ones(2, 2, 2)}, "f: got shape"),
        ({"f": torch.ones(0)}, "f: got shape"),
        ({"up": [2**32 + 1, 1]}, "got up="),
        ({"down": [1, 0]}, "got up="),
        ({"down": [1]}, "got up="),
        ({"padding": [2**32, 0, 0, 0]}, "got padding="),
        ({"padding": [-9, -9, 0, 0]}, "does not fit"),
    ],
)
def test_upfirdn2d_refuses_what_it_cannot_read(change, message):
    arguments = {"x": torch.ones(1, 3, 8, 8), "f": None, "up": [1, 1], "down": [1, 1], "padding": [0] * 4}
    with pytest.raises(StyleGAN2Error, match=message):
        REGISTERED.upfirdn2d(*(arguments | change).values(), False, 1.0)


def test_sparse_tensors_run_as_reference():
    assert torch.equal(bias_act(torch.eye(3).to_sparse(), act="relu").to_dense(), 2**0.5 * torch.eye(3))


# Libraries that do not load


class Loader:
    """Stands for builds on a disk and for `NativeLibrary`: of the builds, those in `bad` do not load."""

    def __init__(self, monkeypatch, bad):
        self.number, self.bad, self.discarded = 1, bad, []
        self.replaced_meanwhile = False
        monkeypatch.setattr(native, "cpu_recipe", lambda: "recipe")
        monkeypatch.setattr(native, "build_once", lambda recipe: self.number)
        monkeypatch.setattr(native, "discard", self.discard)
        monkeypatch.setattr(native, "NativeLibrary", self.load)
        monkeypatch.setattr(native, "_attempts", {})

    def discard(self, build):
        self.discarded.append(build)
        if build == self.number:  # else another process has replaced it
            self.number += 1

    def load(self, build):
        if self.replaced_meanwhile:
            self.number += 1
            self.replaced_meanwhile = False
        if build in self.bad:
            raise StyleGAN2Error(f"build {build} cannot be used")
        return f"library {build}"


def test_a_library_that_does_not_load_is_built_once_more(monkeypatch):
    loader = Loader(monkeypatch, {1})
    assert native.load("cpu") == native.load("cpu") == "library 2"
    assert loader.discarded == [1]


def test_a_library_replaced_by_another_process_is_kept(monkeypatch):
    loader = Loader(monkeypatch, {1})
    loader.replaced_meanwhile = True
    assert native.load("cpu") == "library 2"
    assert loader.number == 2


def test_a_library_that_never_loads_is_an_error_told_again(monkeypatch):
    loader = Loader(monkeypatch, {1, 2})
    for _ in range(2):
        with pytest.raises(StyleGAN2Error, match="build 2 cannot be used"):
            native.load("cpu")
    assert loader.discarded == [1]


# Convolutions


@pytest.mark.parametrize(
    ("first", "second", "size", "stride", "what"),
    [
        ((2, 16, 8, 8), (16, 8, 3, 3), (2, 16, 8, 8), 1, convolution._CONVOLUTION),
        ((2, 16, 8, 8), (16, 16, 3, 3), (2, 16, 9, 8), 1, convolution._CONVOLUTION),
        ((2, 16, 8, 8), (16, 16, 3, 3), (2, 16, 8, 8), 2, convolution._CONVOLUTION),
        ((1, 16, 8, 8), (16, 16, 3, 3), (2, 16, 8, 8), 1, convolution._BY_IMAGE),
        ((2, 16, 4, 4), (16, 16, 3, 3), (2, 16, 9, 9), 2, convolution._BY_IMAGE),
        ((2, 16, 8, 8), (2, 16, 8, 7), (16, 16, 3, 3), 1, convolution._BY_KERNEL),
        ((2, 16, 8, 8), (2, 16, 8, 8), (16, 16, 2, 3), 1, convolution._BY_KERNEL),
        ((2, 16, 8, 8), (2, 16, 4, 5), (16, 16, 3, 3), 2, convolution._BY_KERNEL),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(first, second, size, stride, what):
    with pytest.raises(StyleGAN2Error, match=r"winograd: got images .* do not fit together"):
        convolution._winograd(torch.zeros(first), torch.zeros(second), list(size), 1, stride, what)


def test_kernels_of_five_dimensions_are_pytorchs_error(always_winograd):
    x, w = torch.zeros(1, 16, 32, 32), torch.zeros(16, 16, 3, 3, 2)
    with pytest.raises(RuntimeError, match="conv"):
        convolution.correlate(x, w, 1, (1, 1), 1)
