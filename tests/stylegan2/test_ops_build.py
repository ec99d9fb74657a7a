"""Building: once, by one of many processes, out of damage, without a cache; and what compilers say."""

import json
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.ops import build, native, toolchain

REPO_ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
extern "C" __attribute__((visibility("default"))) int answer() { return 42; }
"""
BUILD_AND_LOAD = """
import ctypes, sys
from pathlib import Path
from stylegan2.ops import build
build.SOURCES = Path(sys.argv[1])
made = build.build_once(build.cpu_recipe())
print(ctypes.CDLL(str(made.library)).answer(), made.built_at)
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Another source, which compiles at once, and a cache of its own."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    (folder / "cpu.cpp").write_text(SOURCE)
    monkeypatch.setattr(build, "SOURCES", folder)
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path / "cache"))
    return folder


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


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "ops").iterdir() if path.is_dir())


# Once


def test_a_build_is_found_again(sources, compiler, tmp_path):
    first = build.build_once(build.cpu_recipe())
    before = first.library.stat().st_mtime_ns
    assert build.build_once(build.cpu_recipe()) == first
    assert first.library.stat().st_mtime_ns == before
    assert folders(tmp_path) == [build.cpu_recipe().name]
    assert sorted(path.name for path in first.library.parent.iterdir()) == ["build.json", first.library.name]


def test_rebuild_replaces_it(sources, compiler):
    first = build.build_once(build.cpu_recipe())
    second = build.build_once(build.cpu_recipe(), rebuild=True)
    assert second.library == first.library and second.built_at >= first.built_at
    assert second.library.is_file()


def test_the_key_follows_what_matters(sources, compiler, monkeypatch):
    keys = {build.cpu_recipe().key}
    (sources / "cpu.cpp").write_text(SOURCE + "// changed\n")
    keys.add(build.cpu_recipe().key)
    (sources / "more.h").write_text("// new\n")
    keys.add(build.cpu_recipe().key)
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.add(build.cpu_recipe().key)
    monkeypatch.setattr(toolchain, "processor", lambda: "another")
    keys.add(build.cpu_recipe().key)
    monkeypatch.setattr(toolchain, "compiler_version", lambda compiler: "g++ 99")
    keys.add(build.cpu_recipe().key)
    assert len(keys) == 6
    assert build.cpu_recipe().key in keys


def test_three_processes_build_once(sources, compiler, tmp_path):
    command = [sys.executable, "-c", BUILD_AND_LOAD, str(sources)]
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert len({out for out, _ in outputs}) == 1  # the same build, by its time
    assert outputs[0][0].startswith("42 ")
    assert folders(tmp_path) == [build.cpu_recipe().name]


# What goes wrong


def test_a_killed_build_leaves_nothing_that_counts(sources, compiler, tmp_path):
    recipe = build.cpu_recipe()
    remains = tmp_path / "cache" / "ops" / f".{recipe.name}-killed"
    remains.mkdir(parents=True)
    (remains / "stylegan2_cpu.so").write_text("half")
    assert build.find_build(recipe, tmp_path / "cache" / "ops") is None
    made = build.build_once(recipe)
    assert made.library.stat().st_size > 100
    assert folders(tmp_path) == [recipe.name]


@pytest.mark.parametrize("damage", ["record", "library"])
def test_an_incomplete_build_is_made_anew(sources, compiler, damage):
    made = build.build_once(build.cpu_recipe())
    if damage == "record":
        (made.library.parent / build.RECORD).write_text("{")
    else:
        made.library.unlink()
    assert build.build_once(build.cpu_recipe()).library.is_file()
    assert json.loads((made.library.parent / build.RECORD).read_text())["kind"] == "cpu"


def test_a_library_that_does_not_load_is_built_again(compiler, tmp_path, monkeypatch):
    made = native.load("cpu").build
    recipe = build.cpu_recipe()
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path))
    folder = tmp_path / "ops" / recipe.name
    folder.mkdir(parents=True)
    (folder / build.RECORD).write_text((made.library.parent / build.RECORD).read_text())
    (folder / made.library.name).write_text("not a library")
    monkeypatch.setattr(build, "_compile_cpu", copying(made))
    assert native._load("cpu").build.library == folder / made.library.name


def copying(made):
    """A compiler that takes no time."""

    def compile_cpu(recipe, work, library):
        library.write_bytes(made.library.read_bytes())
        return build._Compiled(made.flags, made.openmp)

    return compile_cpu


def test_a_cache_that_cannot_be_written(sources, compiler, tmp_path, monkeypatch, caplog):
    """A file stands where the folder should be: this stops root, too."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, logger="stylegan2"):
        made = build.build_once(build.cpu_recipe())
    assert made.library.is_file()
    assert tmp_path not in made.library.parents
    assert stat.S_IMODE(made.library.parent.parent.stat().st_mode) == 0o700
    (line,) = [record.message for record in caplog.records]
    assert "cannot be written" in line and "temporary folder" in line


def test_a_read_only_cache_is_read(sources, compiler, monkeypatch):
    made = build.build_once(build.cpu_recipe())

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(build.filelock, "FileLock", refuse)
    assert build.build_once(build.cpu_recipe()) == made


def test_errors_in_the_source_show_what_the_compiler_says(sources, compiler, tmp_path):
    (sources / "cpu.cpp").write_text("int answer() { return forty_two; }\n")
    with pytest.raises(StyleGAN2Error, match="forty_two") as raised:
        build.build_once(build.cpu_recipe())
    assert "cpu.cpp" in str(raised.value)
    assert folders(tmp_path) == []


def test_a_broken_compiler(sources, tmp_path, monkeypatch):
    text = 'case "$1" in --version) echo "broken 1.0";; *) echo "cannot do this today" >&2; exit 3;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "broken", text)))
    with pytest.raises(StyleGAN2Error, match=r"exit code 3(.|\n)*cannot do this today"):
        build.build_once(build.cpu_recipe())
    assert folders(tmp_path) == []


def test_long_output_keeps_both_ends(sources, tmp_path, monkeypatch):
    text = 'case "$1" in --version) echo v;; *) echo first; seq 1000 1999; echo last; exit 1;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "talkative", text)))
    with pytest.raises(StyleGAN2Error, match=r"first\n1000(.|\n)*lines …\n(.|\n)*1999\nlast") as raised:
        build.build_once(build.cpu_recipe())
    assert len(str(raised.value).splitlines()) < 60


def test_a_compiler_without_openmp_is_used_without(sources, compiler, tmp_path, monkeypatch, caplog):
    refuse = 'for word in "$@"; do [ "$word" = -fopenmp ] && { echo "no OpenMP here" >&2; exit 1; }; done'
    path = script(tmp_path / "plain", f'{refuse}\nexec {" ".join(compiler)} "$@"')
    monkeypatch.setenv("CXX", str(path))
    recipe = build.cpu_recipe()
    if recipe.openmp is None or not recipe.openmp.compile_flags:
        pytest.skip("OpenMP is not asked for with this compiler")
    with caplog.at_level(logging.WARNING, logger="stylegan2"):
        made = build.build_once(recipe)
    assert made.openmp.startswith("none")
    assert "-fopenmp" not in made.flags and "-O3" in made.flags
    assert any("-fopenmp" in record.message for record in caplog.records)
    assert made.notes == ("without -fopenmp, which the compiler refuses",)


# What is looked for


def test_no_compiler(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StyleGAN2Error, match=r"looked for c\+\+, g\+\+, clang\+\+"):
        toolchain.find_cpu_compiler()
    monkeypatch.setenv("CXX", "missing-c++ -m64")
    with pytest.raises(StyleGAN2Error, match=r"\$CXX='missing-c\+\+'"):
        toolchain.find_cpu_compiler()


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
