"""What the commands say besides their result, and the names of networks that they understand."""

import logging
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from stylegan2.cli import main
from stylegan2.ops import native, selection
from tests.stylegan2.small_networks import write_network


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_network(tmp_path / "gan")


def run(*arguments: object, fails: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == fails, result.output
    return result


@pytest.fixture
def fresh_ops(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in a new process, under auto."""
    for setting in (selection._implementation, selection._convolution):
        monkeypatch.setattr(setting, "name", "auto")
    for name in ("_compiled", "_by_winograd"):
        monkeypatch.setattr(selection, name, {})
    monkeypatch.setattr(selection, "_told", set())
    monkeypatch.setattr(native, "_attempts", {})
    return monkeypatch


def commands_that_draw(network: Path, out: Path) -> list[list[object]]:
    target = out.parent / "target.png"
    Image.new("RGB", (16, 16), "red").save(target)
    weights = ["--perceptual-weight", 0, "--pixel-weight", 1]
    return [
        ["generate", network, "--seeds", "1", "-o", out],
        ["mix", network, "--rows", "1", "--cols", "2", "-o", out],
        ["interpolate", network, "--seeds", "1,2", "--frames-per-segment", 1, "-o", f"{out}.gif"],
        ["project", network, "--target", target, "--steps", 1, *weights, "-o", out],
    ]


@pytest.mark.parametrize("index", range(4))
def test_who_draws_is_told_once_what_computes(
    index: int, network: Path, tmp_path: Path, fresh_ops: pytest.MonkeyPatch
) -> None:
    """Before the progress bar, not amid it."""
    result = run(*commands_that_draw(network, tmp_path / "out")[index])
    lines = [
        line for line in result.stderr.splitlines() if line.startswith("ops: ") and "building" not in line
    ]
    assert len(lines) == 1 and " on cpu, " in lines[0]
    assert "ops: " not in result.stdout
    assert logging.getLogger("stylegan2").handlers == []


def test_a_compiler_that_is_named_and_not_there_is_shown(
    network: Path, tmp_path: Path, fresh_ops: pytest.MonkeyPatch
) -> None:
    fresh_ops.setenv("CXX", "/nonexist")
    result = run("generate", network, "--seeds", "1", "-o", tmp_path / "out")
    assert "Warning: ops: reference" in result.stderr and "$CXX='/nonexist'" in result.stderr


def test_who_computes_nothing_is_told_nothing(network: Path, fresh_ops: pytest.MonkeyPatch) -> None:
    fresh_ops.setenv("CXX", "/nonexist")
    for arguments in (["info", network], ["--help"], ["generate", "--help"]):
        assert run(*arguments).stderr == ""


def test_networks_of_the_package_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "128×128, 3 channels" in run("info", "phantom128").output
    run("generate", "phantom128", "--seeds", "1", "-o", "out")
    with Image.open("out/seed0001.png") as image:
        assert image.size == (128, 128)
    run("export", "phantom128", "--format", "safetensors", "-o", "exported")
    shutil.move("exported", "phantom128")
    for command in (["info"], ["generate", "--seeds", "1", "-o", "other"], ["export", "-o", "other"]):
        assert "write ./phantom128" in run(command[0], "phantom128", *command[1:], fails=1).output
    assert "discriminator.safetensors  absent" in " ".join(run("info", "./phantom128").output.split("     "))
