"""The compiled operations before C++ compilers and nvcc: no warnings."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "stylegan2" / "csrc"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHITECTURES = (70, 75, 80, 86, 87, 89, 90)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs_compiler
@pytest.mark.parametrize("options", [["-fopenmp"], []], ids=["openmp", "no openmp"])
def test_compiles_without_a_warning(options):
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *options]
    assert run([COMPILER, *flags, SOURCES / "cpu.cpp"]) == ""


@needs_nvcc
def test_nvcc_compiles_the_cuda_source(tmp_path):
    """Without a warning, for the lowest architecture that nvcc knows.

    With $STYLEGAN2_TEST_ALL_ARCHITECTURES: compiled once for that, then to code of all, too.
    """
    known = {int(number) for number in re.findall(r"compute_(\d+)", run([NVCC, "--list-gpu-arch"]))}
    wanted = [number for number in ARCHITECTURES if number in known]
    assert wanted, f"nvcc knows {sorted(known)}, none of {ARCHITECTURES}"
    if os.environ.get("STYLEGAN2_TEST_ALL_ARCHITECTURES") is None:
        wanted = wanted[:1]
    codes = [f"-gencode=arch=compute_{wanted[0]},code=sm_{number}" for number in wanted]
    warnings = ["-Werror", "all-warnings", "-Xcompiler", "-fPIC,-Wall,-Wextra,-Werror"]
    made = tmp_path / "cuda.o"
    run(
        [
            NVCC,
            "-std=c++17",
            "-O3",
            "--threads",
            "2",
            *codes,
            *warnings,
            "-c",
            SOURCES / "cuda.cu",
            "-o",
            made,
        ]
    )
    assert made.stat().st_size > 0
