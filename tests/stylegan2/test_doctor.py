"""`stylegan2 doctor`: what it shows, and that it fails when an operation is wrong."""

import pytest
import torch
from click.testing import CliRunner

from stylegan2 import ops
from stylegan2.cli import main
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, kernels, native, selection, selftest


@pytest.fixture
def compiled(monkeypatch):
    """There are kernels; and the timing takes no time."""
    try:
        library = native.load("cpu")
    except StyleGAN2Error as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))
    monkeypatch.setattr(selftest, "_TIMED_SHAPE", (1, 2, 8, 8))
    monkeypatch.setattr(selftest, "_REPETITIONS", 1)
    with ops.use("auto"):
        yield library


def doctor(*arguments, fails=0):
    result = CliRunner().invoke(main, ["doctor", *arguments])
    assert result.exit_code == fails, result.output
    assert "Traceback" not in result.output
    return result.output


def test_it_shows_what_there_is(compiled):
    output = doctor()
    assert compiled.build.version in output
    assert str(compiled.build.library) in output
    assert f"in {compiled.build.seconds:.1f} s" in output
    assert compiled.built_for in output
    for name in ("C++ compiler", "OpenMP", "nvcc", "CUDA", "cache", "asked for", "cpu tensors"):
        assert name in output
    for operation in ("bias_act", "upfirdn2d", "bias_grad"):
        for dtype in ("float32", "float64", "float16", "bfloat16"):
            assert any(operation in line and dtype in line for line in output.splitlines())
    assert sum("cpu convolution" in line for line in output.splitlines()) == compiled.has_winograd
    assert "No problems found." in output and "FAILED" not in output


def test_it_shows_the_cache_and_its_size(monkeypatch, tmp_path):
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is built
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "_attempts", {})
    monkeypatch.setattr(selection, "_compiled", {})

    def line():
        return next(line for line in doctor().splitlines() if line.startswith("  cache"))

    assert line().endswith(f"{tmp_path / 'cache'}, 0.0 MB")
    for name, size in (("ops/cpu-1/library.so", 1_200_000), ("downloads/net.pkl", 3_000_000)):
        file = tmp_path / "cache" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(bytes(size))
    assert line().endswith(f"{tmp_path / 'cache'}, 4.2 MB (downloads 3.0 MB, ops 1.2 MB)")


def test_what_is_timed_takes_turns(compiled, monkeypatch):
    """On a machine that slows down steadily, blocks of one and the other would differ by a factor of 2."""
    order, clock = [], iter(range(1, 1000))

    def seconds(function, x, b):
        order.append((selection.selected(), selection.selected_convolution()))
        return float(next(clock))

    monkeypatch.setattr(selftest, "_seconds", seconds)
    monkeypatch.setattr(selftest, "_REPETITIONS", 4)
    ratios = selftest.speed_ratios("cpu")
    assert order[:8] == [("reference", "direct"), ("cpu", "direct")] * 4
    assert ratios["bias_act"] == 1 / 2  # the shortest times
    if compiled.has_winograd:
        assert order[-8:] == [("cpu", "direct"), ("cpu", "winograd")] * 4
    assert "speed, roughly" in doctor()


@pytest.mark.parametrize(
    ("operation", "names"),
    [
        ("bias_act", ["bias_act", "bias_grad"]),
        ("bias_act_derivative", ["bias_act"]),
        ("upfirdn2d", ["upfirdn2d"]),
    ],
)
def test_a_wrong_operation_fails(compiled, monkeypatch, operation, names):
    right = getattr(kernels, operation)
    monkeypatch.setattr(kernels, operation, lambda *arguments: right(*arguments) * 1.2)
    output = doctor(fails=1)
    failed = [line.split()[1] for line in output.splitlines() if line.endswith("FAILED")]
    assert sorted(failed) == sorted(4 * names)
    for name in names:
        assert f"cpu {name} in float64 differs from the reference" in output


def test_a_wrong_gradient_of_the_bias_fails(compiled, monkeypatch):
    """As the kernels sum it in the same pass, which only a backward pass that nobody differentiates does."""
    right = kernels._derivative

    def halved(*arguments, **options):
        gradient, sums = right(*arguments, **options)
        return gradient, None if sums is None else sums / 2

    monkeypatch.setattr(kernels, "_derivative", halved)
    output = doctor(fails=1)
    failed = [line.split()[1:3] for line in output.splitlines() if line.endswith("FAILED")]
    assert failed == [["bias_grad", name] for name in ("float32", "float64", "bfloat16", "float16")]
    assert "cpu bias_grad in float32 differs from the reference" in output


@pytest.mark.parametrize("operation", ["bias_act", "_derivative"])
def test_a_block_that_is_not_streamed_fails(compiled, monkeypatch, operation):
    right = getattr(kernels, operation)

    def half_a_block(*arguments, **options):
        result = right(*arguments, **options)
        y = result[0] if isinstance(result, tuple) else result
        if y.numel() * y.element_size() >= 24 << 20 and y.is_contiguous():
            y.view(-1)[-512:] = 0
        return result

    monkeypatch.setattr(kernels, operation, half_a_block)
    failed = [result for result in selftest.compare("cpu") if not result.passed]
    assert [(result.operation, result.dtype) for result in failed] == [("bias_grad", torch.float32)]


@pytest.mark.parametrize("what", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_wrong_convolution_fails(compiled, monkeypatch, stride, what):
    if not compiled.has_winograd:
        pytest.skip("the compiler builds no convolution")
    right = convolution._winograd

    def wrong(*arguments):
        return right(*arguments) * (1.001 if arguments[-2:] == (stride, what) else 1)

    monkeypatch.setattr(convolution, "_winograd", wrong)
    assert "cpu convolution in float32 differs from the reference" in doctor(fails=1)


def test_nan_fails(compiled, monkeypatch):
    right = kernels.upfirdn2d
    monkeypatch.setattr(kernels, "upfirdn2d", lambda *arguments: right(*arguments) * torch.nan)
    assert any(not result.passed for result in selftest.compare("cpu") if result.operation == "upfirdn2d")


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_attempts", {})
    monkeypatch.setattr(selection, "_compiled", {})
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    output = doctor()
    assert "looked for c++, g++, clang++" in output
    assert "Nothing to test: the reference runs." in output
    with ops.use("cpu"):
        assert "cpu is asked for, and cannot run" in doctor(fails=1)


def test_a_broken_compiler_shows_its_output(monkeypatch, tmp_path):
    path = tmp_path / "broken"
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken 1 || { echo "no rest for it"; exit 1; }\n'
    )
    path.chmod(0o755)
    monkeypatch.setattr(native, "_attempts", {})
    monkeypatch.setattr(selection, "_compiled", {})
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path))
    output = doctor(fails=1)
    assert "no rest for it" in output and "the cpu kernels cannot be built" in output
