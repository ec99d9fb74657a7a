"""Import of NVIDIA-format pickles that are written here: networks of many kinds come through."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stylegan2.network_folder import read_config
from stylegan2.nvidia import read_nvidia_pickle, write_imported
from tests.stylegan2.nvidia_format import (
    SYNTHESIS,
    Persistent,
    content,
    load_networks,
    nvidia_names,
    state_dict,
    write,
)


@pytest.fixture(scope="module", autouse=True)
def _names() -> Iterator[None]:
    with nvidia_names():
        yield


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "colour": ({"img_channels": 3}, {"img_channels": 3}),
    "labels": ({"c_dim": 4}, {"c_dim": 4, "mapping_kwargs": {"num_layers": 1}}),
    "resnet-orig": (
        {"synthesis_kwargs": {**SYNTHESIS, "architecture": "resnet", "conv_clamp": 256}},
        {"architecture": "orig", "conv_clamp": 256, "block_kwargs": {"freeze_layers": 2}},
    ),
    "options": (
        {
            "mapping_kwargs": {"num_layers": 2, "layer_features": 5, "lr_multiplier": 0.1, "w_avg_beta": 0.9},
            "synthesis_kwargs": {
                **SYNTHESIS,
                "use_noise": False,
                "activation": "relu",
                "resample_filter": [1, 2, 1, 2],
            },
        },
        {"architecture": "skip", "epilogue_kwargs": {"mbstd_num_channels": 0, "activation": "relu"}},
    ),
}


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_networks_come_through_bit_for_bit(variant: str, protocol: int, tmp_path: Path) -> None:
    snapshot = content(*VARIANTS[variant])
    before = torch.random.get_rng_state()
    imported = read_nvidia_pickle(write(tmp_path / "net.pkl", snapshot, protocol))
    assert torch.equal(torch.random.get_rng_state(), before), "the import must not draw random numbers"
    write_imported(imported, tmp_path / "out")
    for network, name in zip(load_networks(tmp_path / "out"), ("G_ema", "G", "D"), strict=True):
        got, expected = network.state_dict(), state_dict(snapshot[name])
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in got)
    assert json.loads(json.dumps(imported.generator.init_kwargs)) == imported.generator.init_kwargs


def test_the_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    pipe = Persistent(
        "AugmentPipe", {"_buffers": {"p": torch.tensor(0.25)}, "_parameters": {}, "_modules": {}}
    )
    path = write(tmp_path / "network-snapshot-000123.pkl", content(augment_pipe=pipe))
    imported = read_nvidia_pickle(path)
    assert imported.augment_p == 0.25
    write_imported(imported, tmp_path / "out")
    config = read_config(tmp_path / "out")
    assert config["augment_p"] == 0.25
    assert config["training_set_kwargs"] == {
        "class_name": "training.dataset.ImageFolderDataset",
        "resolution": 8,
    }
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert config["imported_from"] == {"file": "network-snapshot-000123.pkl", "sha256": sha256}


def test_no_training_set_and_arguments_by_position(tmp_path: Path) -> None:
    snapshot = content()
    expected = read_nvidia_pickle(write(tmp_path / "a.pkl", snapshot))
    del snapshot["training_set_kwargs"], snapshot["augment_pipe"]
    for name, first in (("G", ("z_dim", "c_dim", "w_dim")), ("G_ema", ("z_dim", "c_dim")), ("D", ("c_dim",))):
        state = snapshot[name].meta["state"]
        kwargs = dict(state["_init_kwargs"])
        state["_init_args"] = tuple(kwargs.pop(key) for key in first)
        state["_init_kwargs"] = kwargs
    got = read_nvidia_pickle(write(tmp_path / "b.pkl", snapshot))
    assert got.training_set_kwargs is None
    assert got.generator.init_kwargs == expected.generator.init_kwargs
    assert got.discriminator.init_kwargs == expected.discriminator.init_kwargs


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_point_numbers_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    snapshot = content()

    def convert(record: Persistent) -> None:
        state = record.meta["state"]
        for group in ("_parameters", "_buffers"):
            state[group] = {name: value.detach().to(dtype) for name, value in state[group].items()}
        for child in state["_modules"].values():
            convert(child)

    for name in ("G", "G_ema", "D"):
        convert(snapshot[name])
    imported = read_nvidia_pickle(write(tmp_path / "net.pkl", snapshot))
    expected = state_dict(snapshot["G_ema"])
    for name, tensor in imported.generator.tensors.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.equal(tensor, expected[name].to(torch.float32))


def test_transposed_weights_and_buffers_that_are_not_stored(tmp_path: Path) -> None:
    snapshot = content()
    layer = snapshot["G"].meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b8"].meta["state"]
    conv = layer["_modules"]["conv0"].meta["state"]
    weight = conv["_parameters"]["weight"].detach()
    conv["_parameters"]["weight"] = nn.Parameter(weight.to(memory_format=torch.channels_last))
    conv["_buffers"]["scratch"] = torch.zeros(3)
    conv["_non_persistent_buffers_set"].add("scratch")
    imported = read_nvidia_pickle(write(tmp_path / "net.pkl", snapshot))
    got = imported.generator_raw.tensors["synthesis.b8.conv0.weight"]
    assert torch.equal(got, weight) and got.is_contiguous()
