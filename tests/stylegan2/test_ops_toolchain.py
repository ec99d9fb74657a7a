"""What there is to build with: compilers, OpenMP runtimes, GPUs."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import build, toolchain

REPO_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compiler():
    try:
        return toolchain.find_cpu_compiler()
    except StyleGAN2Error as error:
        pytest.skip(str(error))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# What is looked for


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StyleGAN2Error, match=r"looked for c\+\+, g\+\+, clang\+\+"):
        toolchain.find_cpu_compiler()
    monkeypatch.setenv("CXX", "missing-c++ -m64")
    with pytest.raises(StyleGAN2Error, match=r"\$CXX='missing-c\+\+'"):
        toolchain.find_cpu_compiler()
    monkeypatch.setenv("CXX", "'unbalanced")
    with pytest.raises(StyleGAN2Error, match=r"\$CXX=\"'unbalanced\".*No closing quotation"):
        toolchain.find_cpu_compiler()


def test_who_names_no_compiler_and_has_none_did_not_expect_one(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.is_without_cpu_compiler()
    monkeypatch.setenv("CXX", "missing-c++")
    assert not toolchain.is_without_cpu_compiler()
    monkeypatch.setenv("CXX", " ")
    assert toolchain.is_without_cpu_compiler()
    script(tmp_path / "g++", "true")
    assert not toolchain.is_without_cpu_compiler()


def test_the_compiler_may_have_arguments(tmp_path, monkeypatch):
    path = script(tmp_path / "mine", "true")
    monkeypatch.setenv("CXX", f"'{path}' -m64")
    assert toolchain.find_cpu_compiler() == (str(path), "-m64")


def test_no_nvcc(tmp_path, monkeypatch):
    real = toolchain.shutil.which
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain.shutil, "which", lambda name, path=None: real(name, path=str(tmp_path)))
    with pytest.raises(StyleGAN2Error, match=r"no nvcc: looked in \$CUDA_HOME"):
        toolchain.find_nvcc()
    (tmp_path / "bin").mkdir()
    (tmp_path / "nvcc").touch()
    script(tmp_path / "nvcc", "true")
    assert toolchain.find_nvcc() == (str(tmp_path / "nvcc"),)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(StyleGAN2Error, match="no GPU to build for: torch"):
        build.cuda_recipe()


def test_the_cuda_recipe_names_its_targets(monkeypatch, tmp_path):
    text = 'echo "nvcc: a compiler"; echo "Cuda compilation tools, release 13.0, V13.0.88"'
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "nvcc", text)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    recipe = build.cuda_recipe(("75", "90"))
    assert recipe.version == "Cuda compilation tools, release 13.0, V13.0.88"
    assert recipe.flags.count("-gencode") == 2 and "arch=compute_90,code=sm_90" in recipe.flags
    assert recipe.key != build.cuda_recipe(("75",)).key


# OpenMP


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_only_one_openmp_runtime_is_loaded(compiler):
    """In a process of its own: tests load scikit-learn, which brings another one along."""
    code = (
        "import torch\n"
        "from stylegan2 import ops\n"
        "from stylegan2.ops import native, toolchain\n"
        "from stylegan2.ops.bias_act import bias_act\n"
        "torch.set_num_threads(2)\n"
        "with ops.use('cpu'):\n"
        "    bias_act(torch.randn(8, 64, 64, 64), act='lrelu')\n"
        "print(native.load('cpu').build.openmp.startswith('none'), *toolchain.loaded_runtimes(), sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    without, *runtimes = process.stdout.split()
    if without == "True":
        pytest.skip("this compiler has no OpenMP")
    assert len(runtimes) == 1


@pytest.mark.parametrize(
    ("version", "loaded", "flags", "says"),
    [
        ("g++ 12", ["/t/libgomp-a3.so.1"], ("-fopenmp",), "/t/libgomp-a3.so.1"),
        ("g++ 12", ["/t/libiomp5.so"], ("-fopenmp",), "/t/libiomp5.so"),
        ("clang version 17", ["/t/libomp.so.5"], ("-fopenmp",), "/t/libomp.so.5"),
        ("clang version 17", ["/t/libgomp.so.1"], (), "none: torch has loaded libgomp.so.1"),
        ("g++ 12", [], ("-fopenmp",), "the compiler's own"),
    ],
)
def test_the_runtime_of_torch_is_shared(version, loaded, flags, says, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(toolchain, "loaded_runtimes", lambda: [Path(path) for path in loaded])
    openmp = toolchain.find_openmp(version)
    assert openmp.compile_flags == flags
    assert openmp.name.startswith(says)
    assert openmp.link_flags == (tuple(loaded) if flags and loaded else flags)
