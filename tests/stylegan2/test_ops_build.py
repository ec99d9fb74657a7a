"""Building: once, by one of many processes, out of damage, without a cache; and what compilers say."""

import dataclasses
import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


# Old builds go


DAY = 86400
# Loads real kernels, which a stand-in for the compiler copies, under keys of its own; asks before it loads.
FIND_WAIT_LOAD = """
import dataclasses, sys
from stylegan2.ops import native
recipe, load = native.cpu_recipe(), native.NativeLibrary.__init__
native.cpu_recipe = lambda: dataclasses.replace(recipe, key=sys.argv[1])
def wait_and_load(self, build):
    print("found", flush=True)
    sys.stdin.readline()
    load(self, build)
native.NativeLibrary.__init__ = wait_and_load
library = native._load("cpu")
print("loaded", flush=True)
sys.stdin.readline()
print(library.build.library.is_file(), library.raise_error.__name__, library.description(), flush=True)
"""
LOAD_MANY = """
import dataclasses, random, sys
from stylegan2.ops import native
recipe, order = native.cpu_recipe(), random.Random(int(sys.argv[1]))
for key in order.choices("0123456789", k=40):
    native.cpu_recipe = lambda: dataclasses.replace(recipe, key=key * 64)
    assert native._load("cpu").built_for
print("all loaded")
"""


def key(name: str) -> str:
    return name.ljust(20, "0")


def make(folder: Path, name: str, days: float) -> Path:
    """A build that was used so many days ago."""
    made = folder / name
    made.mkdir(parents=True)
    (made / build.RECORD).write_text("{}")
    age(made, days)
    return made


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    for file in (path, *path.glob(build.RECORD)):
        os.utime(file, (then, then))


@pytest.fixture
def quick(compiler, tmp_path, monkeypatch):
    """A compiler that copies the real kernels, which are built once for all tests."""
    library = native.load("cpu").build.library
    text = (
        'case "$1" in --version) echo copying 1.0; exit;; esac\n'
        f'while [ $# -gt 0 ]; do [ "$1" = -o ] && cp "{library}" "$2"; shift; done'
    )
    monkeypatch.setenv("CXX", str(script(tmp_path / "copying", text)))
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path / "cache"))
    return dataclasses.replace(build.cpu_recipe(), key=key("new"))


def test_a_new_build_removes_what_nobody_used_for_long(quick, tmp_path):
    folder = tmp_path / "cache" / "ops"
    stale = [make(folder, f"cpu-{i}", 60 + i) for i in range(5)]
    kept = [make(folder, "cpu-recent", 29), make(folder, "cuda-old", 400)]
    remains = [make(folder, ".cpu-killed", 60), folder / "cpu-abc.lock"]
    (folder / "cpu-abc.lock").touch()
    age(folder / "cpu-abc.lock", 60)
    made = build.build_once(quick)
    # The new one, the recent one and one more make three.
    assert folders(tmp_path) == sorted([quick.name, *(path.name for path in kept), stale[0].name])
    assert not any(path.exists() for path in remains)
    assert made.library.is_file()


def test_what_is_used_stays(quick, tmp_path):
    """The use itself is noted, once a day."""
    folder = tmp_path / "cache" / "ops"
    made = build.build_once(quick)
    record = folder / quick.name / build.RECORD
    age(record.parent, 0.5)
    before = record.stat().st_mtime
    build.build_once(quick)
    assert record.stat().st_mtime == before
    age(record.parent, 100)
    assert build.build_once(quick) == made
    assert time.time() - record.stat().st_mtime < DAY
    for i in range(build.KEPT_BUILDS + 1):
        build.build_once(dataclasses.replace(quick, key=key(f"other{i}")))
    assert record.is_file()
    age(record.parent, 100)
    build.build_once(dataclasses.replace(quick, key=key("last")))
    assert not record.parent.exists()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 90), max_size=8))
def test_which_builds_stay(quick, tmp_path_factory, ages):
    folder = tmp_path_factory.mktemp("ops")
    ages = [days + 0.005 + 0.01 * i for i, days in enumerate(ages)]  # distinct, none of them at the limit
    for i, days in enumerate(ages):
        make(folder, f"cpu-{i}", days)
    make(folder, quick.name, 0)
    build._prune(quick, folder)
    order = sorted(range(len(ages)), key=lambda i: ages[i])
    expected = {i for i in order if ages[i] <= build.UNUSED_DAYS}
    expected |= set(order[: build.KEPT_BUILDS - 1])  # the new one is one of them
    assert {path.name for path in folder.iterdir()} == {quick.name, *(f"cpu-{i}" for i in expected)}


def test_what_cannot_be_removed_stays_whole(quick, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "ops"
    stale = [make(folder, f"cpu-{i}", 60 + i) for i in range(4)]
    replace = Path.replace

    def refuse(path, target):
        if path in stale:
            raise PermissionError("in use")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert build.build_once(quick).library.is_file()
    assert all((path / build.RECORD).is_file() for path in stale)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO_ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def remove_all_but(recipe, folder: Path) -> None:
    for path in folder.glob("cpu-*"):
        age(path, 100)
    for i in range(build.KEPT_BUILDS):
        build.build_once(dataclasses.replace(recipe, key=key(f"newer{i}")))


def test_a_build_that_goes_between_finding_and_loading_is_made_again(quick, tmp_path):
    folder = tmp_path / "cache" / "ops"
    mine = dataclasses.replace(quick, key=key("mine"))
    build.build_once(mine)
    process = start(FIND_WAIT_LOAD, mine.key)
    try:
        assert process.stdout.readline() == "found\n", process.stderr.read()
        remove_all_but(quick, folder)
        assert not (folder / mine.name).exists()
        process.stdin.write("\n")  # loads: the file is gone
        process.stdin.flush()
        assert process.stdout.readline() == "found\n", process.stderr.read()
        assert (folder / mine.name).exists()
        process.stdin.write("\n")  # loads again
        process.stdin.flush()
        assert process.stdout.readline() == "loaded\n", process.stderr.read()
        remove_all_but(quick, folder)
        for i in range(build.KEPT_BUILDS):
            age(folder / dataclasses.replace(quick, key=key(f"newer{i}")).name, 50)
        build.build_once(dataclasses.replace(quick, key=key("another")))
        assert not (folder / mine.name).exists()
        output, errors = process.communicate("\n", timeout=60)  # what is loaded works without its file
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert output.startswith("False raise_error copying 1.0")


def test_processes_that_build_load_and_remove_at_once(quick, tmp_path):
    folder = tmp_path / "cache" / "ops"
    for i in range(8):
        make(folder, f"cpu-stale{i}", 50 + i)
    processes = [start(LOAD_MANY, str(seed)) for seed in range(3)]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(out == "all loaded\n" for out, _ in outputs), outputs
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    assert not [name for name in names if "stale" in name or name.startswith(".")]
    assert len(names) == 10


def test_only_the_damaged_build_itself_is_discarded(quick):
    """Another process may have replaced it since."""
    first = build.build_once(quick)
    second = build.build_once(quick, rebuild=True)
    assert second.built_at > first.built_at
    build.discard(first)
    assert build.find_build(quick, first.library.parent.parent) == second
    build.discard(second)
    assert not second.library.parent.exists()
    build.discard(second)


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) * 9 // 10],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    ],
    ids=["half", "nine tenths", "zeros inside"],
)
def test_a_damaged_library_is_built_again_not_loaded(quick, damage, caplog):
    """Whoever loads one dies of SIGBUS or SIGSEGV."""
    made = build.build_once(quick)
    whole = made.library.read_bytes()
    made.library.unlink()  # others may have the file itself open
    made.library.write_bytes(damage(whole))
    assert build.find_build(quick, made.library.parent.parent) is None
    with caplog.at_level(logging.WARNING, logger="stylegan2"):
        assert build.build_once(quick).library.read_bytes() == whole
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"ops: {made.library.parent} is damaged")
    assert build.find_build(quick, made.library.parent.parent) is not None


def test_a_build_is_on_the_disk_before_it_has_its_name(quick, monkeypatch):
    course = []
    to_disk, replace = build._to_disk, Path.replace
    monkeypatch.setattr(build, "_to_disk", lambda path: course.append(path.name) or to_disk(path))
    monkeypatch.setattr(Path, "replace", lambda path, to: course.append("renamed") or replace(path, to))
    made = build.build_once(quick)
    library, record, work, *rest = course
    assert (library, record) == (made.library.name, build.RECORD)
    assert work.startswith(f".{quick.name}-")
    assert rest == ["renamed", "ops"]


def test_a_library_that_does_not_load_is_built_again(compiler, tmp_path, monkeypatch):
    made = native.load("cpu").build
    recipe = build.cpu_recipe()
    monkeypatch.setenv("STYLEGAN2_CACHE", str(tmp_path))
    folder = tmp_path / "ops" / recipe.name
    folder.mkdir(parents=True)
    record = json.loads((made.library.parent / build.RECORD).read_text())
    wrong = b"not a library"
    record |= {"size": len(wrong), "sha256": hashlib.sha256(wrong).hexdigest()}
    (folder / build.RECORD).write_text(json.dumps(record))
    (folder / made.library.name).write_bytes(wrong)
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
