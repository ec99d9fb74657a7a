"""The compiled operations through their C interface: the CPU library, and the CUDA source run on the CPU.

No GPU is needed: `emulated_cuda.h` runs the kernels of `cuda.cu`, with blocks and barriers, one thread at a
time. `test_csrc_builds.py` lets compilers read the same files.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylegan2.ops import build, native

SOURCES = Path(__file__).resolve().parents[2] / "stylegan2" / "csrc"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Of a result's last place: sums run in float, so results of 16 bits are rounded once
TOLERANCE = {torch.float32: 3e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class BiasAct(ctypes.Structure):
    """`Sg2BiasAct` of interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("size", "bias_size", "bias_step")),
        *((name, ctypes.c_double) for name in ("alpha", "gain", "clamp")),
        *((name, ctypes.c_int32) for name in ("type", "activation", "order", "threads")),
    )


class Upfirdn2d(ctypes.Structure):
    """`Sg2Upfirdn2d` of interface.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "in_h", "in_w", "out_h", "out_w")),
        *((name, ctypes.c_int64 * 4) for name in ("in_stride", "out_stride")),
        *((name, ctypes.c_int32) for name in ("up_x", "up_y", "down_x", "down_y", "pad_x", "pad_y")),
        *((name, ctypes.c_int32) for name in ("taps_x", "taps_y", "type", "threads")),
    )


def build_for_cpu(folder):
    """What the package runs, from its cache where it is there."""
    return build.build_once(build.cpu_recipe()).library


def build_streaming(folder):
    """The same, but it streams every result of float32 and float64 that has an element."""
    recipe = build.cpu_recipe()
    library = folder / "streaming.so"
    flags = [*recipe.flags, "-DSG2_STREAMED_BYTES=1", "-shared"]
    tried = subprocess.run(
        [*recipe.compiler, *flags, SOURCES / "cpu.cpp", "-o", library], capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stderr
    return library


def compile_emulation(folder):
    """`cuda.cu` with its launches turned into calls of the emulation."""
    text = (SOURCES / "cuda.cu").read_text(encoding="utf-8")
    launch = r"([\w<>, ]+?)<<<(.*?)>>>\((.*?)\);"
    text, launches = re.subn(launch, r"emulation::launch(\2, [=] { \1(\3); });", text)
    shared = "extern __shared__ double shared_memory[];"
    assert (launches, text.count(shared)) == (4, 1)
    text = text.replace(shared, "double* const shared_memory = emulation::shared_memory;")
    (folder / "cuda.cpp").write_text(text, encoding="utf-8")
    for header in ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"):
        (folder / header).write_text('#include "emulated_cuda.h"\n')
    library = folder / "cuda.so"
    includes = [f"-I{path}" for path in (folder, Path(__file__).parent, SOURCES)]
    macros = ["-D__CUDACC__", "-D__CUDA_ARCH_LIST__=800,900"]
    command = [COMPILER, "-std=c++17", "-O0", "-fPIC", "-shared", *macros, *includes]
    tried = subprocess.run([*command, folder / "cuda.cpp", "-o", library], capture_output=True, text=True)
    if "_Float16" in tried.stderr:
        pytest.skip("the compiler has no _Float16, or lacks ucontext.h, for the emulation of CUDA")
    assert tried.returncode == 0, tried.stderr
    return library


MAKE = {"cpu": build_for_cpu, "cpu, streaming": build_streaming, "emulated cuda": compile_emulation}


@pytest.fixture(scope="session", params=list(MAKE))
def library(request, tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler on this machine")
    loaded = ctypes.CDLL(str(MAKE[request.param](tmp_path_factory.mktemp("csrc"))))
    loaded.sg2_error_message.restype = loaded.sg2_built_for.restype = ctypes.c_char_p
    return loaded


def pointer(tensor):
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


# ----------------------------------------------------------------------------------------------------------
# Bias and activation
# ----------------------------------------------------------------------------------------------------------

# In the order of Sg2Activation
ACTIVATIONS = [
    ("linear", lambda x: x),
    ("relu", F.relu),
    ("lrelu", lambda x: F.leaky_relu(x, 0.3)),
    ("tanh", torch.tanh),
    ("sigmoid", torch.sigmoid),
    ("elu", F.elu),
    ("selu", F.selu),
    ("softplus", lambda x: F.softplus(x, threshold=50)),
    ("swish", F.silu),
]
SWISH = 8
each_activation = pytest.mark.parametrize("number", range(9), ids=[name for name, _ in ACTIVATIONS])
each_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype)[6:])


def bias_act(library, number, order, first, **options):
    """Calls sg2_bias_act; `dim` is the bias's dimension, which with an `order` is summed into."""
    bias, dim = options.get("bias"), options.get("dim", 1)
    out = options.get("out", torch.full_like(first, torch.nan))
    step = int(np.prod(first.shape[dim + 1 :])) if bias is not None else 1
    args = BiasAct(
        first.numel(),
        0 if bias is None else len(bias),
        step,
        options.get("alpha", 0.3),
        options.get("gain", 1.0),
        options.get("clamp", -1.0),
        TYPES.index(first.dtype),
        number,
        order,
        options.get("threads", 1),
    )
    tensors = (first, options.get("second"), bias, options.get("reference"), out)
    code = library.sg2_bias_act(ctypes.byref(args), *(pointer(tensor) for tensor in tensors), None)
    assert code == 0, library.sg2_error_message(code)
    return out


def assert_close(actual, expected, dtype, factor=1.0):
    scale = max(1e-3, float(expected.abs().max())) if expected.numel() else 1.0
    tolerance = TOLERANCE[dtype] * factor
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance * scale)


@each_activation
@each_type
@pytest.mark.parametrize("clamp", [-1.0, 0.8])
def test_activation_and_its_derivatives_equal_autograd(library, number, dtype, clamp):
    rng = torch.Generator().manual_seed(number)
    x = (2 * torch.randn(2, 5, 7, 6, generator=rng)).to(dtype)
    bias = torch.randn(5, generator=rng).to(dtype)
    z = (x.double() + bias.double()[:, None, None]).requires_grad_()
    free = 1.3 * ACTIVATIONS[number][1](z)
    y = free if clamp < 0 else free.clamp(-clamp, clamp)
    ones = torch.ones_like(y)
    slope = torch.autograd.grad(y, z, ones, create_graph=True)[0]
    curvature = torch.zeros_like(y)
    if slope.requires_grad:
        curvature = torch.autograd.grad(slope, z, ones, allow_unused=True, materialize_grads=True)[0]

    options = {"gain": 1.3, "clamp": clamp}
    actual = bias_act(library, number, 0, x, bias=bias, **options)
    assert_close(actual, y.detach(), dtype)

    reference = (z if number == SWISH else y).detach().to(dtype)
    first, second = (torch.randn(x.shape, generator=rng).to(dtype) for _ in range(2))
    # What rounds to the clamp, or to a kink, may lie on either side of it
    clear = ((free.abs() - clamp).abs() > 0.05) & (z.abs() > 0.05)
    for order, derivative in ((1, slope), (2, second.double() * curvature)):
        actual = bias_act(library, number, order, first, second=second, reference=reference, **options)
        expected = (first.double() * derivative).detach()
        # Derivatives are taken from a rounded y
        assert_close(actual[clear], expected[clear], dtype, factor=4)


@pytest.mark.parametrize(("number", "function"), [(n, f) for n, (_, f) in enumerate(ACTIVATIONS)])
def test_float_is_as_accurate_as_its_type_over_its_whole_range(library, number, function):
    steps = torch.logspace(-6, 1.9, 2001)
    x = torch.cat([-steps, torch.zeros(1), steps])
    expected = function(x.double())
    actual = bias_act(library, number, 0, x)
    # Below e⁻⁸⁷ results may be 0
    torch.testing.assert_close(actual.double(), expected, rtol=6e-7, atol=2e-38 * 80)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7])
def test_infinities_saturate_and_nan_stays(library, number):
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    actual = bias_act(library, number, 0, x)
    torch.testing.assert_close(actual, ACTIVATIONS[number][1](x), equal_nan=True)
    clamped = bias_act(library, number, 0, x, clamp=0.5)
    torch.testing.assert_close(clamped, ACTIVATIONS[number][1](x).clamp(-0.5, 0.5), equal_nan=True)


@pytest.mark.parametrize(
    "shape", [(3, 7), (2, 3, 1, 1), (2, 300, 2, 3), (5, 1, 9), (2, 40, 6, 6), (0, 4, 2, 2)]
)
@pytest.mark.parametrize("dim", [0, 1, -1])
@each_type
def test_bias_runs_along_its_dimension(library, shape, dim, dtype):
    dim %= len(shape)
    x = torch.randn(shape).to(dtype)
    bias = torch.randn(shape[dim]).to(dtype)
    expected = x.double() + bias.double().reshape([-1 if i == dim else 1 for i in range(len(shape))])
    assert_close(bias_act(library, 0, 0, x, bias=bias, dim=dim), expected, dtype)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    ("shape", "dim"),
    [((3, 7), 1), ((3, 7), 0), ((2, 3, 1, 1), 1), ((2, 5, 33, 32), 1), ((3, 2, 45, 70), 1), ((2, 4, 9), -1)],
)
@each_type
def test_derivatives_are_summed_for_the_bias(library, shape, dim, dtype, order):
    """Beside the same derivatives as without; rows of 1 to 4 blocks, full ones and others."""
    dim %= len(shape)
    rng = torch.Generator().manual_seed(0)
    first, second, y = (torch.randn(shape, generator=rng).to(dtype) for _ in range(3))
    options = {"second": second, "reference": y, "dim": dim, "gain": 1.3, "clamp": 0.8}
    number = 2 if order == 1 else 3
    expected = bias_act(library, number, order, first, **options)
    sums = torch.full([shape[dim]], torch.nan, dtype=dtype)
    if library.sg2_built_for().startswith(b"cuda"):
        with pytest.raises(AssertionError, match="sums no derivatives"):
            bias_act(library, number, order, first, bias=sums, **options)
        return
    assert torch.equal(bias_act(library, number, order, first, bias=sums, **options), expected)
    others = [i for i in range(len(shape)) if i != dim]
    # 16 bits: the terms were rounded, the kernels' sum of them in float is not
    terms = expected.double()
    scale = float(terms.abs().sum(others).max())
    torch.testing.assert_close(sums.double(), terms.sum(others), rtol=0, atol=scale * TOLERANCE[dtype])
    again = torch.full_like(sums, torch.nan)
    bias_act(library, number, order, first, bias=again, threads=3, **options)
    assert torch.equal(again, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 63, 1023, 1024, 1025, 5000])
def test_results_anywhere_in_memory(library, size, dtype):
    """Streamed or not, every element is written once, and none beside them."""
    x, reference = torch.randn(size, dtype=dtype), torch.randn(size, dtype=dtype)
    for order in (0, 1):
        expected = bias_act(library, 2, order, x, reference=reference)
        assert not expected.isnan().any()
        for offset in range(20):
            around = torch.full([size + 40], 7.0, dtype=dtype)
            around[offset : offset + size] = torch.nan
            out = around[offset : offset + size]
            bias_act(library, 2, order, x, reference=reference, out=out)
            assert torch.equal(out, expected)
            assert (around[:offset] == 7).all() and (around[offset + size :] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gain", [1.0, 1.7, 1e-4, 300.0])
def test_all_numbers_of_16_bits_round_like_torch(library, dtype, gain):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    expected = (x.float() * gain).to(dtype)
    torch.testing.assert_close(
        bias_act(library, 0, 0, x, gain=gain), expected, rtol=0, atol=0, equal_nan=True
    )


# ----------------------------------------------------------------------------------------------------------
# Up-sampling, FIR, down-sampling
# ----------------------------------------------------------------------------------------------------------


def by_definition(x, taps, up, down, pad, size):
    """interface.h's formula in double. Pairs are (x, y); size is (height, width)."""
    x = x.double().numpy()
    reach = [(n - 1) * d + t for n, d, t in zip(size, down[::-1], taps.shape, strict=True)]
    before, after = [max(0, p) for p in pad[::-1]], [0, 0]
    stuffed = np.zeros([*x.shape[:2], x.shape[2] * up[1], x.shape[3] * up[0]])
    stuffed[:, :, :: up[1], :: up[0]] = x
    starts = [max(0, -p) for p in pad[::-1]]
    for axis in (0, 1):
        after[axis] = max(0, reach[axis] + starts[axis] - before[axis] - stuffed.shape[2 + axis])
    u = np.pad(stuffed, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    y = np.zeros([*x.shape[:2], *size])
    for ty, row in enumerate(taps):
        for tx, tap in enumerate(row):
            rows = starts[0] + ty + down[1] * np.arange(size[0])
            columns = starts[1] + tx + down[0] * np.arange(size[1])
            y += tap * u[:, :, rows[:, None], columns]
    return torch.from_numpy(y)


def laid_out(tensor, layout):
    """The same numbers in memory: planes, channels last, or with gaps between all of them."""
    if layout == "gaps":
        n, c, h, w = tensor.shape
        roomy = torch.full([n, c + 1, h + 2, 2 * w + 1], torch.nan, dtype=tensor.dtype)
        view = roomy[:, :c, :h, : 2 * w : 2]
        view.copy_(tensor)
        return view
    last = layout == "channels_last"
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def upfirdn2d(library, x, taps, size, up=(1, 1), down=(1, 1), pad=(0, 0), layout="planes", threads=1):
    taps = np.ascontiguousarray(taps, dtype=np.float64)
    y = laid_out(torch.full([*x.shape[:2], *size], torch.nan, dtype=x.dtype), layout)
    strides = [(ctypes.c_int64 * 4)(*tensor.stride()) for tensor in (x, y)]
    kind = TYPES.index(x.dtype)
    args = Upfirdn2d(*x.shape, *size, *strides, *up, *down, *pad, *taps.shape[::-1], kind, threads)
    weights = taps.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    code = library.sg2_upfirdn2d(ctypes.byref(args), weights, pointer(x), pointer(y), None)
    assert code == 0, library.sg2_error_message(code)
    return y


LAYOUTS = ["planes", "channels_last", "gaps"]
factors = st.tuples(st.integers(1, 3), st.integers(1, 3))
tap_counts = st.one_of(
    st.just((4, 4)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([(1, 12), (12, 1), (12, 12)]),
)


@st.composite
def cases(draw):
    batch, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 9, 34]))
    height, width = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 3, 5, 8, 20]))
    size = (draw(st.integers(1, 12)), draw(st.sampled_from([1, 2, 5, 7, 8, 21])))
    return {
        "shape": (batch, channels, height, width),
        "taps": draw(tap_counts),
        "outer": draw(st.booleans()),
        "up": draw(factors),
        "down": draw(factors),
        "pad": (draw(st.integers(-5, 9)), draw(st.integers(-5, 9))),
        "size": size,
        "layouts": (draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(LAYOUTS))),
        "dtype": draw(st.sampled_from(TYPES)),
        "seed": draw(st.integers(0, 2**16)),
    }


@given(case=cases())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_equals_the_definition(library, case):
    rng = np.random.default_rng(case["seed"])
    taps = rng.standard_normal(case["taps"])
    if case["outer"]:
        taps = np.outer(taps[:, 0], taps[0])
    x = torch.from_numpy(rng.standard_normal(case["shape"])).to(case["dtype"])
    geometry = (case["up"], case["down"], case["pad"])
    expected = by_definition(x, taps, *geometry, case["size"])
    layout_in, layout_out = case["layouts"]
    actual = upfirdn2d(library, laid_out(x, layout_in), taps, case["size"], *geometry, layout_out)
    # The sum of so many products, of which most may cancel
    scale = max(float(expected.abs().max()), float(np.abs(taps).sum()))
    torch.testing.assert_close(
        actual.double(),
        expected,
        rtol=0,
        atol=scale * TOLERANCE[case["dtype"]],
        msg=lambda text: f"{case}\n{text}",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_wide_images_are_cut_into_segments(library, up, down, dtype):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, 1, 2, 20001))).to(dtype)
    taps = rng.standard_normal((2, 5))
    size = (2 * up // down, (20001 * up + 7) // down)
    expected = by_definition(x, taps, (up, up), (down, down), (3, 1), size)
    actual = upfirdn2d(library, x, taps, size, (up, up), (down, down), (3, 1))
    assert_close(actual, expected, dtype)


@pytest.mark.parametrize("channels", [257, 600])
def test_many_channels_last_are_cut_into_blocks(library, channels):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, channels, 3, 40))).contiguous(
        memory_format=torch.channels_last
    )
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    expected = by_definition(x, taps, (1, 1), (1, 1), (2, 1), (3, 40))
    assert_close(upfirdn2d(library, x, taps, (3, 40), pad=(2, 1), layout="channels_last"), expected, x.dtype)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4)])
def test_an_empty_batch_is_no_error(library, shape):
    assert upfirdn2d(library, torch.zeros(shape), np.ones((4, 4)), (4, 4)).shape == shape


@pytest.mark.parametrize("pad", [(50, 0), (0, 50), (-50, 0), (0, -50)])
def test_beside_the_image_the_result_is_zero(library, pad):
    x = torch.full((2, 3, 4, 4), torch.inf)
    assert torch.equal(upfirdn2d(library, x, np.ones((3, 3)), (5, 6), pad=pad), torch.zeros(2, 3, 5, 6))


def test_a_filter_too_large_for_the_launch_is_copied(library):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, 2, 30, 30)))
    taps = rng.standard_normal((15, 14))
    expected = by_definition(x, taps, (1, 1), (1, 1), (7, 7), (30, 30))
    assert_close(upfirdn2d(library, x, taps, (30, 30), pad=(7, 7)), expected, x.dtype)


def test_a_copy_that_fails_leaves_no_memory_behind(library):
    if not library.sg2_built_for().startswith(b"cuda"):
        pytest.skip("nothing is copied")
    fail = ctypes.c_int.in_dll(library, "emulated_copies_fail")
    blocks = ctypes.c_int.in_dll(library, "emulated_blocks")
    assert blocks.value == 0
    fail.value = 1
    try:
        with pytest.raises(AssertionError, match="error of the emulation"):
            upfirdn2d(
                library,
                torch.zeros(1, 1, 30, 30),
                np.random.default_rng(0).standard_normal((15, 14)),
                (30, 30),
                pad=(7, 7),
            )
    finally:
        fail.value = 0
    assert blocks.value == 0


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (8, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(("up", "layout"), [((1, 1), "planes"), ((2, 3), "channels_last"), ((3, 1), "gaps")])
def test_small_taps_are_as_exact_as_large_ones(library, shape, outer, up, layout):
    """Taps of 1 to 10⁻⁹, each alone on a pixel that is alone."""
    rng = np.random.default_rng(sum(shape))
    taps = rng.choice([-1, 1], shape) * 10.0 ** rng.uniform(-9, 0, shape)
    taps = (np.outer(taps[:, 0], taps[0]) if outer else taps).astype(np.float32)
    x = torch.zeros(1, 2, 1, 1) + torch.tensor([1.0, 3.0])[:, None, None]
    size = (shape[0] + up[1] - 1, shape[1] + up[0] - 1)
    pad = (size[1] - 1, size[0] - 1)
    expected = by_definition(x, taps, up, (1, 1), pad, size)
    assert np.count_nonzero(expected) == 2 * taps.size
    actual = upfirdn2d(library, x, taps, size, up, pad=pad, layout=layout)
    torch.testing.assert_close(actual.double(), expected, rtol=4e-7, atol=0)


@each_type
def test_threads_change_no_bit(library, dtype):
    if library.sg2_built_for().startswith(b"cuda"):
        pytest.skip("a launch has the threads that it needs")
    x, big = torch.randn(2, 32, 40, 40).to(dtype), torch.randn(2, 32, 41, 43).to(dtype)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    calls = [upfirdn2d(library, x, taps, (80, 80), (2, 2), pad=(2, 2), threads=n) for n in (1, 3)]
    assert torch.equal(*calls)
    bias = torch.randn(32).to(dtype)
    assert torch.equal(*[bias_act(library, 3, 0, x, bias=bias, threads=n) for n in (1, 3)])
    sums = torch.empty(2, 32, dtype=torch.float64).to(dtype)
    for own, threads in zip(sums, (1, 3), strict=True):
        bias_act(library, 3, 1, big, bias=own, reference=big, threads=threads)
    assert torch.equal(*sums)


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": 4}, "type"),
        ({"activation": 9}, "activation"),
        ({"order": 3}, "order"),
        ({"size": -1}, "size"),
        ({"bias_step": 0}, "step"),
    ],
)
def test_bias_act_refuses(library, change, message):
    values = {"size": 4, "bias_size": 2, "bias_step": 2, "gain": 1.0, "clamp": -1.0, **change}
    numbers = pointer(torch.zeros(4))
    code = library.sg2_bias_act(ctypes.byref(BiasAct(**values)), *[numbers] * 5, None)
    assert message in library.sg2_error_message(code).decode()


@pytest.mark.parametrize(
    ("change", "tap", "message"),
    [
        ({"type": -1}, 1.0, "type"),
        ({"up_x": 0}, 1.0, "factor"),
        ({"down_y": 0}, 1.0, "factor"),
        ({"taps_x": 0}, 1.0, "taps"),
        ({"in_h": -1}, 1.0, "negative"),
        ({}, np.nan, "NaN"),
        ({}, np.inf, "infinite"),
    ],
)
def test_upfirdn2d_refuses(library, change, tap, message):
    names = [name for name, kind in Upfirdn2d._fields_ if kind in (ctypes.c_int64, ctypes.c_int32)]
    values = {**dict.fromkeys(names, 1), "type": 0, **change}
    numbers, taps = pointer(torch.zeros(4)), (ctypes.c_double * 1)(tap)
    code = library.sg2_upfirdn2d(ctypes.byref(Upfirdn2d(**values)), taps, numbers, numbers, None)
    assert message in library.sg2_error_message(code).decode()


def test_missing_arrays_are_refused(library):
    args = BiasAct(size=4, gain=1.0, clamp=-1.0, order=1)
    numbers = pointer(torch.zeros(4))
    code = library.sg2_bias_act(ctypes.byref(args), numbers, None, None, None, numbers, None)
    assert "null" in library.sg2_error_message(code).decode()


def test_says_what_it_was_built_for(library):
    assert library.sg2_interface_version() == native.INTERFACE_VERSION == 5
    assert library.sg2_built_for().decode() in ("avx512", "avx2", "neon", "generic", "cuda sm_80,sm_90")
    assert library.sg2_error_message(0) == b"no error"
