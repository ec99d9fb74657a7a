"""Import of NVIDIA-format pickles: files of other kinds, and the folder that is written."""

import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from stylegan2 import nvidia
from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import init_kwargs, load_weights
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.nvidia import ImportedNetwork, ImportedNetworks, read_nvidia_pickle, write_imported

FILES = ["config.json", "discriminator.safetensors", "generator.safetensors", "generator_raw.safetensors"]


# ----------------------------------------------------------------------------------------------------------
# Files that are no such pickle
# ----------------------------------------------------------------------------------------------------------


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "a web page"),
    "zip": (make_zip, "a zip archive, as torch.save writes it"),
    "torch": (lambda path: torch.save({"G": torch.zeros(2)}, path), "a zip archive, as torch.save writes it"),
    "safetensors": (
        lambda path: safetensors.torch.save_file({"a": torch.zeros(2)}, path),
        "a safetensors file",
    ),
    "lfs": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "text": (lambda path: path.write_bytes(b"hello"), "not a pickle"),
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "directory"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_of_other_kinds(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    make, part = WRONG[kind]
    make(path)
    with pytest.raises(StyleGAN2Error) as error:
        read_nvidia_pickle(path)
    assert str(path) in str(error.value) and part in str(error.value)
    assert "expected a network pickle of stylegan2-ada-pytorch" in str(error.value)


# ----------------------------------------------------------------------------------------------------------
# The folder that is written
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported() -> ImportedNetworks:
    """Networks as an import returns them."""
    synthesis = {"channel_base": 16, "channel_max": 2}
    generator = Generator(3, 0, 2, 8, 1, {"num_layers": 1}, synthesis)
    discriminator = Discriminator(0, 8, 1, **synthesis)
    networks = [
        ImportedNetwork(network.init_kwargs, network.state_dict())
        for network in (generator, copy.deepcopy(generator), discriminator)
    ]
    return ImportedNetworks(*networks, None, None, "0" * 64, "net.pkl")


def test_new_and_empty_folders_are_filled(imported: ImportedNetworks, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "empty"):
        write_imported(imported, folder)
        assert sorted(file.name for file in folder.iterdir()) == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_other_targets_are_refused_and_stay(imported: ImportedNetworks, tmp_path: Path) -> None:
    (tmp_path / "filled").mkdir()
    (tmp_path / "filled" / "notes.txt").write_text("mine")
    with pytest.raises(StyleGAN2Error, match="is not empty"):
        write_imported(imported, tmp_path / "filled")
    with pytest.raises(StyleGAN2Error, match="is a file"):
        write_imported(imported, tmp_path / "filled" / "notes.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["filled", "notes.txt"]
    assert (tmp_path / "filled" / "notes.txt").read_text() == "mine"


def test_overwriting_keeps_other_files(imported: ImportedNetworks, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "config.json").write_text("old")
    write_imported(imported, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "notes.txt"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    generator = Generator(**init_kwargs(tmp_path / "out", "generator"))
    load_weights(tmp_path / "out" / "generator.safetensors", generator)


def test_an_interrupted_write_leaves_nothing(
    imported: ImportedNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, config: Any) -> None:
        assert any(folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(nvidia, "write_config", fail)
    with pytest.raises(KeyboardInterrupt):
        write_imported(imported, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
