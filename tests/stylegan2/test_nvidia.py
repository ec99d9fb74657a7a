"""Import of NVIDIA-format pickles that are written here: networks of many kinds, and unusable ones."""

import collections
import hashlib
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import init_kwargs, load_weights, read_config
from stylegan2.networks.discriminator import Discriminator
from stylegan2.networks.generator import Generator
from stylegan2.nvidia import read_nvidia_pickle, write_imported


def load_networks(folder: Path) -> tuple[Generator, Generator, Discriminator]:
    """G_ema, G and D of a network folder, for evaluation."""
    g_ema, g = (Generator(**init_kwargs(folder, "generator")) for _ in range(2))
    d = Discriminator(**init_kwargs(folder, "discriminator"))
    load_weights(folder / "generator.safetensors", g_ema)
    load_weights(folder / "generator_raw.safetensors", g)
    load_weights(folder / "discriminator.safetensors", d)
    return g_ema.eval(), g.eval(), d.eval()


# ----------------------------------------------------------------------------------------------------------
# Files written here
# ----------------------------------------------------------------------------------------------------------


class Persistent:
    """Pickles as NVIDIA's code stores a module."""

    def __init__(self, class_name: str, state: dict[str, Any], **meta: Any) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit",
            "class_name": class_name,
        }
        self.meta |= {"state": state, **meta}

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(scope="module", autouse=True)
def nvidia_names() -> Any:
    """The names that such a pickle refers to, which have to exist while one is written."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("this must not run")

    class EasyDict(dict[str, Any]):
        pass

    with pytest.MonkeyPatch.context() as patch:
        for name, member in (
            ("torch_utils.persistence", _reconstruct_persistent_obj),
            ("dnnlib.util", EasyDict),
        ):
            module = types.ModuleType(name)
            member.__module__, member.__qualname__ = name, member.__name__
            setattr(module, member.__name__, member)
            patch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
            patch.setitem(sys.modules, name, module)
        yield


def easy(**items: Any) -> Any:
    return sys.modules["dnnlib.util"].EasyDict(items)


def stored(network: nn.Module, class_name: str = "Some", **attributes: Any) -> Persistent:
    """A module of ours in the form of theirs."""
    state: dict[str, Any] = {"training": False, "_parameters": dict(network._parameters)}
    state |= {"_buffers": collections.OrderedDict(network._buffers), "_non_persistent_buffers_set": set()}
    state["_modules"] = {name: child and stored(child) for name, child in network._modules.items()}
    for name in ("activation", "conv_clamp", "up", "down", "weight_gain", "use_noise"):
        if hasattr(network, name):
            value = getattr(network, name)
            state[name] = np.float64(value) if name == "weight_gain" else value
    return Persistent(class_name, state | attributes)


SYNTHESIS = {"channel_base": 16, "channel_max": 2}


def content(
    g: dict[str, Any] | None = None, d: dict[str, Any] | None = None, seed: int = 0, **others: Any
) -> dict[str, Any]:
    """A snapshot of tiny networks with these changes to their arguments."""
    common = {"c_dim": 0, "img_resolution": 8, "img_channels": 1}
    g = {
        "z_dim": 3,
        "w_dim": 2,
        **common,
        "mapping_kwargs": {"num_layers": 1},
        "synthesis_kwargs": SYNTHESIS,
    } | (g or {})
    d = {**common, **SYNTHESIS} | (d or {})
    torch.manual_seed(seed)
    generators = [Generator(**g) for _ in range(2)]
    discriminator = Discriminator(**d)
    for network in (*generators, discriminator):
        for parameter in network.parameters():
            nn.init.normal_(parameter)  # also what starts as zero
    options = {"_init_args": (), "_init_kwargs": easy(**g)}
    return {
        "training_set_kwargs": easy(class_name="training.dataset.ImageFolderDataset", resolution=8),
        "G": stored(generators[0], "Generator", **options),
        "D": stored(discriminator, "Discriminator", _init_args=(), _init_kwargs=easy(**d)),
        "G_ema": stored(generators[1], "Generator", **options),
        "augment_pipe": None,
        **others,
    }


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def state_dict(record: Persistent, prefix: str = "") -> dict[str, torch.Tensor]:
    """The tensors that were stored."""
    state = record.meta["state"]
    tensors = {
        prefix + name: value.detach()
        for group in ("_parameters", "_buffers")
        for name, value in state[group].items()
        if value is not None
    }
    for name, child in state["_modules"].items():
        if child is not None:
            tensors |= state_dict(child, f"{prefix}{name}.")
    return tensors


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


# ----------------------------------------------------------------------------------------------------------
# Networks that are not ours
# ----------------------------------------------------------------------------------------------------------


def messages(path: Path, value: Any) -> str:
    """The error for a pickle of this value."""
    with pytest.raises(StyleGAN2Error) as error:
        read_nvidia_pickle(write(path / "net.pkl", value))
    assert str(error.value).startswith(f"{path / 'net.pkl'}: ")
    return str(error.value)


def change_arguments(snapshot: dict[str, Any], name: str, **changes: Any) -> None:
    kwargs = snapshot[name].meta["state"]["_init_kwargs"]
    snapshot[name].meta["state"]["_init_kwargs"] = dict(kwargs) | changes


def test_missing_networks_are_named(tmp_path: Path) -> None:
    snapshot = content()
    assert "G, D missing; expected" in messages(tmp_path, {"G_ema": snapshot["G_ema"]})
    assert "D missing; expected" in messages(tmp_path, snapshot | {"D": None})
    assert "G_ema missing; expected" in messages(tmp_path, snapshot | {"G_ema": {"a": 1}})
    assert "holds a tuple, not a dict" in messages(tmp_path, (snapshot["G"], snapshot["D"]))


def test_unknown_arguments_are_named_all_at_once(tmp_path: Path) -> None:
    snapshot = content()
    change_arguments(snapshot, "D", epilogue_kwargs={"mbstd_size": 4}, img_channels=2.5, surprise=1)
    for name in ("G", "G_ema"):
        synthesis = {**SYNTHESIS, "magnitude_ema_beta": 0.9, "num_fp16_res": "4", "architecture": 7}
        change_arguments(snapshot, name, synthesis_kwargs=synthesis, mapping_kwargs=[1], z_dim=True)
    message = messages(tmp_path, snapshot)
    for part in (
        "epilogue_kwargs.'mbstd_size': unknown",
        "img_channels: got 2.5, expected an int from 1 to 64",
        "'surprise': unknown",
        "synthesis_kwargs.'magnitude_ema_beta': unknown",
        "synthesis_kwargs.num_fp16_res: got '4', expected an int",
        "synthesis_kwargs.architecture: got 7, expected text",
        "mapping_kwargs: got [1], expected a dict",
        "z_dim: got True, expected an int",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("kwargs", "args", "part"),
    [
        ({}, (), "z_dim: missing"),
        ({"z_dim": 3, "c_dim": 0}, (3,), "z_dim: given twice"),
        ({}, (1,) * 20, "_init_args, _init_kwargs"),
        ({"z_dim": {1, 2}}, (), "contains a set"),
        ({"z_dim": torch.zeros(2)}, (), "contains a Tensor"),
        ([], (), "_init_args, _init_kwargs"),
    ],
)
def test_unusable_arguments(kwargs: Any, args: Any, part: str, tmp_path: Path) -> None:
    snapshot = content()
    snapshot["G_ema"].meta["state"] |= {"_init_kwargs": kwargs, "_init_args": args}
    assert part in messages(tmp_path, snapshot)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_resolution", 9),
        ("synthesis_kwargs", {"architecture": "fancy"}),
        ("mapping_kwargs", {"activation": "cos"}),
    ],
)
def test_values_that_our_networks_refuse(name: str, value: Any, tmp_path: Path) -> None:
    snapshot = content()
    change_arguments(snapshot, "G_ema", **{name: value})
    assert "G_ema: " in messages(tmp_path, snapshot)


def test_shapes_and_names_that_differ_are_named(tmp_path: Path) -> None:
    snapshot = content()
    parameters = (
        snapshot["D"]
        .meta["state"]["_modules"]["b4"]
        .meta["state"]["_modules"]["fc"]
        .meta["state"]["_parameters"]
    )
    parameters["weight"] = torch.zeros(3, 3)
    parameters["extra"] = parameters.pop("bias")
    message = messages(tmp_path, snapshot)
    assert "b4.fc.weight: got [3, 3]" in message
    assert "b4.fc.bias: missing" in message and "b4.fc.extra: unknown" in message


def test_giant_sizes_cost_nothing(tmp_path: Path) -> None:
    snapshot = content()
    change_arguments(
        snapshot,
        "G_ema",
        img_resolution=2**16,
        z_dim=2**16,
        mapping_kwargs={"num_layers": 256, "layer_features": 2**16},
        synthesis_kwargs={"channel_base": 2**24, "channel_max": 2**16},
    )
    assert "does not fit the network" in messages(tmp_path, snapshot)


def test_settings_that_no_shape_shows_are_compared(tmp_path: Path) -> None:
    snapshot = content()
    block = (
        snapshot["G_ema"].meta["state"]["_modules"]["synthesis"].meta["state"]["_modules"]["b8"].meta["state"]
    )
    block["_modules"]["conv0"].meta["state"]["conv_clamp"] = 256
    block["_modules"]["torgb"].meta["state"]["weight_gain"] = np.float64(0.5)
    message = messages(tmp_path, snapshot)
    assert "synthesis.b8.conv0.conv_clamp: got 256, ours has None" in message
    assert "synthesis.b8.torgb.weight_gain: got 0.5, ours has" in message


def test_g_and_its_average_must_be_alike(tmp_path: Path) -> None:
    other = content({"mapping_kwargs": {"num_layers": 2}})
    assert "different architecture" in messages(tmp_path, content() | {"G": other["G"]})


def test_other_classes_and_unusable_states(tmp_path: Path) -> None:
    snapshot = content()
    for change, part in (
        (
            {"class_name": "ProjectedDiscriminator"},
            "class 'ProjectedDiscriminator'; expected 'Discriminator'",
        ),
        (
            {"state": {**snapshot["D"].meta["state"], "_modules": {"b8": 3}}},
            "b8: got a int, expected a module",
        ),
        ({"state": {**snapshot["D"].meta["state"], "_modules": []}}, "_modules is missing or unusable"),
        (
            {"state": {**snapshot["D"].meta["state"], "_buffers": {"p": torch.arange(3)}}},
            "p: got torch.int64",
        ),
        (
            {"state": {**snapshot["D"].meta["state"], "_buffers": {1: torch.zeros(3)}}},
            "_buffers is missing or unusable",
        ),
        ({"state": {**snapshot["D"].meta["state"], "_non_persistent_buffers_set": 3}}, "a int of buffers"),
    ):
        meta = snapshot["D"].meta
        changed = Persistent(**{"class_name": meta["class_name"], "state": meta["state"], **change})
        assert part in messages(tmp_path, snapshot | {"D": changed})


def test_networks_that_contain_themselves(tmp_path: Path) -> None:
    snapshot = content()
    wide = Persistent("A", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(10):
        wide = Persistent(
            "A", {"_parameters": {}, "_buffers": {}, "_modules": {str(n): wide for n in range(10)}}
        )
    snapshot["D"].meta["state"]["_modules"]["b8"] = wide
    assert "more than 1000 modules" in messages(tmp_path, snapshot)
    bomb: list[Any] = []
    for _ in range(30):
        bomb = [bomb, bomb]
    assert "training_set_kwargs: nested" in messages(tmp_path, content(training_set_kwargs={"a": bomb}))


def test_one_block_of_numbers_used_for_everything(tmp_path: Path) -> None:
    snapshot = content({"w_dim": 64, "z_dim": 64, "mapping_kwargs": {"num_layers": 60}})
    shared, bias = torch.zeros(64, 64), torch.zeros(64)
    for name in ("G", "G_ema"):
        mapping = snapshot[name].meta["state"]["_modules"]["mapping"].meta["state"]
        for layer in mapping["_modules"].values():
            layer.meta["state"]["_parameters"] = {"weight": shared, "bias": bias}
    assert "tensors overlap" in messages(tmp_path, snapshot)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"training_set_kwargs": [1]}, "training_set_kwargs is a list"),
        ({"training_set_kwargs": {"x": b"1"}}, "contains a bytes"),
        ({"training_set_kwargs": {1: 2}}, "contains a dict"),
        ({"augment_pipe": Persistent("AugmentPipe", {"_buffers": {}})}, "p is missing"),
        (
            {"augment_pipe": Persistent("AugmentPipe", {"_buffers": {"p": torch.tensor(-1.0)}})},
            "no probability",
        ),
        (
            {"augment_pipe": Persistent("AugmentPipe", {"_buffers": {"p": torch.tensor(torch.nan)}})},
            "no probability",
        ),
    ],
)
def test_unusable_metadata(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    assert part in messages(tmp_path, content(**change))


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "net.pkl", content(training_set_kwargs={"a": float("inf")}))
    assert read_nvidia_pickle(path).training_set_kwargs == {"a": "inf"}


# ----------------------------------------------------------------------------------------------------------
# Harm and damage
# ----------------------------------------------------------------------------------------------------------


def test_refused_files_are_named(tmp_path: Path) -> None:
    assert "- builtins.eval\n" in messages(tmp_path, content(extra=eval))
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.")
    with pytest.raises(StyleGAN2Error, match=r"old\.pkl: .*only files of the PyTorch generation"):
        read_nvidia_pickle(path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = write(tmp_path_factory.mktemp("damage") / "net.pkl", content())
    return path, path.read_bytes()


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_of_ours_or_harmless(small_file: tuple[Path, bytes], data: st.DataObject) -> None:
    path, original = small_file
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(0, 3))):
        # Near the ends stand the arguments; most of the middle is numbers.
        position = data.draw(
            st.integers(0, len(original) - 1) | st.integers(len(original) - 600, len(original) - 1)
        )
        changed[position] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.just(len(original)) | st.integers(0, len(original))) :]
    path.write_bytes(changed)
    try:
        read_nvidia_pickle(path)
    except StyleGAN2Error as error:
        assert str(path) in str(error)
