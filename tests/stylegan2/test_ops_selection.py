"""Which implementation runs: by environment, by name, by device; and that nothing falls back in silence."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan2 import ops
from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import convolution, library, native, selection
from stylegan2.ops.bias_act import bias_act
from stylegan2.ops.convolution import correlate
from stylegan2.ops.upfirdn2d import upfirdn2d

REPO_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process, with an environment that names nothing."""
    for setting in (selection._implementation, selection._convolution):
        monkeypatch.setattr(setting, "name", None)
        monkeypatch.setattr(setting, "by_environment", False)
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setattr(selection, "_compiled", {})
    monkeypatch.setattr(selection, "_by_winograd", {})
    monkeypatch.setattr(selection, "_told", set())
    monkeypatch.setattr(native, "_attempts", {})
    return monkeypatch


@pytest.fixture
def no_compiler(fresh, tmp_path):
    fresh.delenv("CXX", raising=False)
    fresh.setenv("PATH", str(tmp_path))
    return fresh


@pytest.fixture
def kernels():
    try:
        return native.load("cpu")
    except StyleGAN2Error as error:
        if "no C++ compiler" not in str(error):
            raise
        pytest.skip(str(error))


# Names


def test_auto_is_the_default(fresh):
    assert ops.selected() == "auto"


def test_the_environment_chooses(fresh):
    fresh.setenv(selection.VARIABLE, "reference")
    assert ops.selected() == "reference"
    line = ops.describe_implementation("cpu")
    assert line.startswith("ops: reference (pure torch") and "$STYLEGAN2_OPS=reference" in line


def test_the_environment_is_checked_at_the_first_use(fresh):
    fresh.setenv(selection.VARIABLE, "fast")
    with pytest.raises(StyleGAN2Error, match=r"\$STYLEGAN2_OPS: got 'fast', expected one of auto, cuda, cpu"):
        bias_act(torch.zeros(1, 1))


def test_an_unknown_name_changes_nothing(fresh):
    ops.select("reference")
    with pytest.raises(StyleGAN2Error, match="ops: got 'gpu', expected one of"):
        ops.select("gpu")
    with pytest.raises(StyleGAN2Error, match="ops: got 'gpu'"), ops.use("gpu"):
        pass
    assert ops.selected() == "reference"


def test_use_ends_with_its_block(fresh):
    ops.select("auto")
    with ops.use("reference"):
        assert ops.selected() == "reference"
        with ops.use("cpu"):
            assert ops.selected() == "cpu"
        assert ops.selected() == "reference"
    with pytest.raises(ZeroDivisionError), ops.use("reference"):
        raise ZeroDivisionError
    assert ops.selected() == "auto"


# What runs


@pytest.mark.parametrize(("name", "calls"), [("cpu", 2), ("auto", 2), ("reference", 0)])
def test_the_kernels_run_when_they_should(name, calls, kernels, monkeypatch):
    seen = []
    for function in ("bias_act", "upfirdn2d"):
        original = getattr(library.kernels, function)
        spy = lambda *args, original=original: seen.append(original) or original(*args)  # noqa: E731
        monkeypatch.setattr(library.kernels, function, spy)
    with ops.use(name):
        upfirdn2d(bias_act(torch.randn(1, 2, 3, 3)), None, up=2, padding=1)
    assert len(seen) == calls


def test_one_line_once(fresh, kernels, caplog):
    with caplog.at_level(logging.INFO, logger="stylegan2"):
        bias_act(torch.zeros(1, 1))
        bias_act(torch.zeros(1, 1))
    (line,) = [record.message for record in caplog.records if record.message.startswith("ops: cpu")]
    assert "compiled by" in line and kernels.built_for in line and "\n" not in line


def test_who_asked_is_not_told_again(fresh, kernels, caplog):
    line = ops.describe_implementation("cpu")
    with caplog.at_level(logging.INFO, logger="stylegan2"):
        bias_act(torch.zeros(1, 1))
    assert line not in [record.message for record in caplog.records]


def test_without_a_compiler_auto_is_the_reference(no_compiler, caplog):
    with caplog.at_level(logging.INFO, logger="stylegan2"):
        assert torch.equal(bias_act(torch.ones(1, 2), torch.ones(2)), torch.full([1, 2], 2.0))
    (record,) = caplog.records
    assert record.message.startswith("ops: reference") and "looked for c++, g++, clang++" in record.message
    assert record.levelno == logging.INFO  # nobody named a compiler


def test_a_compiler_that_is_named_and_not_there_is_a_warning(fresh, caplog):
    fresh.setenv("CXX", "/nowhere/c++")
    with caplog.at_level(logging.INFO, logger="stylegan2"):
        bias_act(torch.ones(1, 2))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.message.startswith("ops: reference") and "$CXX='/nowhere/c++'" in record.message


def test_a_gpu_without_nvcc_is_a_warning(fresh, caplog):
    def load(kind):
        raise StyleGAN2Error("ops: no nvcc: looked on the PATH")

    fresh.setattr(native, "load", load)
    with caplog.at_level(logging.INFO, logger="stylegan2"):
        selection.announce_implementation("cuda:0")
        with ops.use("reference"):
            selection.announce_implementation("cuda:0")
        selection.announce_implementation("mps")
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO, logging.INFO]
    assert "no nvcc" in caplog.records[0].message


def test_without_a_compiler_cpu_is_an_error(no_compiler):
    ops.select("cpu")
    for _ in range(2):
        with pytest.raises(StyleGAN2Error, match="no C\\+\\+ compiler: looked for"):
            bias_act(torch.ones(1, 2))
    with pytest.raises(StyleGAN2Error, match="no C\\+\\+ compiler"):
        ops.describe_implementation("cpu")


@pytest.fixture
def broken(fresh, tmp_path):
    path = tmp_path / "broken"
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo broken || { echo "error: no rest for it"; exit 1; }\n'
    )
    path.chmod(0o755)
    fresh.setenv("CXX", str(path))
    fresh.setenv("STYLEGAN2_CACHE", str(tmp_path))
    return fresh


def test_a_broken_compiler_is_a_warning_under_auto(broken, caplog):
    with caplog.at_level(logging.WARNING, logger="stylegan2"):
        bias_act(torch.ones(1, 2))
    (line,) = [record.message for record in caplog.records if record.message.startswith("ops: reference")]
    assert "error: no rest for it" in line and "stylegan2 doctor" in line and "\n" not in line


def test_a_broken_compiler_is_an_error_by_name(broken):
    ops.select("cpu")
    with pytest.raises(StyleGAN2Error, match=r"exit code 1(.|\n)*no rest for it"):
        bias_act(torch.ones(1, 2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(fresh):
    assert "no GPU to build for" in ops.describe_implementation("cuda:1")
    assert ops.describe_implementation("cuda:1").startswith("ops: reference")
    ops.select("cuda")
    with pytest.raises(StyleGAN2Error, match="no GPU to build for"):
        ops.describe_implementation("cuda:1")


def test_a_tensor_elsewhere_is_an_error(fresh):
    ops.select("cuda")
    with pytest.raises(StyleGAN2Error, match="cuda is selected, but a tensor is on cpu; use auto"):
        bias_act(torch.zeros(1, 1))
    with pytest.raises(StyleGAN2Error, match="a tensor is on cpu"):
        upfirdn2d(torch.zeros(1, 1, 2, 2), None)


# Convolutions


def convolve(device="cpu"):
    with torch.no_grad():
        return correlate(torch.ones(4, 16, 16, 16, device=device), torch.ones(16, 16, 3, 3), 1, (1, 1), 1)


@pytest.fixture
def winograd_calls(fresh, kernels):
    if not kernels.has_winograd:
        pytest.skip("the compiler builds no convolution")
    seen, run = [], convolution._winograd
    fresh.setattr(convolution, "_winograd", lambda *args: seen.append(args) or run(*args))
    return seen


def test_the_environment_chooses_the_convolution(fresh):
    assert ops.selected_convolution() == "auto"
    fresh.setattr(selection._convolution, "name", None)
    fresh.setenv(selection.CONVOLUTION_VARIABLE, "direct")
    assert ops.selected_convolution() == "direct"
    fresh.setattr(selection._convolution, "name", None)
    fresh.setenv(selection.CONVOLUTION_VARIABLE, "fft")
    with pytest.raises(
        StyleGAN2Error, match=r"\$STYLEGAN2_CONVOLUTION: got 'fft', expected one of auto, direct"
    ):
        convolve()


def test_an_unknown_convolution_changes_nothing(fresh):
    ops.select_convolution("direct")
    with pytest.raises(StyleGAN2Error, match="convolution: got 'fast', expected one of"):
        ops.select_convolution("fast")
    with pytest.raises(ZeroDivisionError), ops.use_convolution("winograd"):
        assert ops.selected_convolution() == "winograd"
        raise ZeroDivisionError
    assert ops.selected_convolution() == "direct"


@pytest.mark.parametrize("name", ops.CONVOLUTIONS)
def test_the_convolution_that_is_asked_for_runs(winograd_calls, kernels, name):
    by_winograd = name == "winograd" or (name == "auto" and kernels.built_for == "avx512")
    with ops.use("cpu"), ops.use_convolution(name):
        convolve()
        line = ops.describe_implementation("cpu")
    assert len(winograd_calls) == by_winograd
    assert f"{'winograd' if by_winograd else 'direct'} convolutions" in line
    assert (f"{name} is selected" in line) == (name != "auto")


def test_auto_is_direct_elsewhere(winograd_calls, kernels, fresh):
    fresh.setattr(kernels, "built_for", "avx2")
    convolve()
    assert winograd_calls == []
    with ops.use_convolution("winograd"):
        convolve()
    assert len(winograd_calls) == 1
    with ops.use("reference"):
        convolve()
    with ops.use("cuda"):
        convolve()
    assert len(winograd_calls) == 1


def test_winograd_is_an_error_where_it_cannot_run(winograd_calls, kernels, fresh):
    ops.select_convolution("winograd")
    part = "convolution: winograd is selected, but it is part of the CPU kernels, "
    with ops.use("reference"):
        for run in (convolve, lambda: ops.describe_implementation("cpu")):
            with pytest.raises(StyleGAN2Error, match=f"{part}which do not run"):
                run()
    with ops.use("cuda"), pytest.raises(StyleGAN2Error, match="a tensor is on cpu"):
        convolve()
    with pytest.raises(StyleGAN2Error, match=f"{part}and a tensor is on cuda"):
        ops.describe_implementation("cuda:0")
    with ops.use_reference():
        convolve()
    fresh.setattr(kernels, "has_winograd", False)
    with (
        ops.use_convolution("winograd"),
        pytest.raises(StyleGAN2Error, match="built the CPU kernels without"),
    ):
        convolve()
    with ops.use_convolution("auto"):
        convolve()
    assert winograd_calls == []


@pytest.mark.parametrize("name", ops.IMPLEMENTATIONS)
def test_shapes_need_no_kernels(fresh, name):
    ops.select(name)
    x = torch.zeros(1, 2, 4, 4, device="meta")
    assert upfirdn2d(bias_act(x), None, up=2, padding=1).shape == (1, 2, 10, 10)
    w = torch.zeros(3, 2, 3, 3, device="meta")
    for algorithm in ops.CONVOLUTIONS:
        with ops.use_convolution(algorithm):
            assert correlate(x, w, 1, (1, 1), 1).shape == (1, 3, 4, 4)


def test_other_types_run_as_reference(kernels):
    with ops.use("cpu"):
        assert bias_act(torch.ones(1, 2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)).sum() == 4


def test_nothing_is_built_by_importing(tmp_path):
    environment = {
        **os.environ,
        "STYLEGAN2_CACHE": str(tmp_path),
        "CXX": "/nowhere",
        "PYTHONPATH": str(REPO_ROOT),
    }
    environment[selection.VARIABLE] = "cpu"
    code = "import stylegan2.networks.generator"
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.iterdir()) == []
