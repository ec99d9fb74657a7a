"""Import of NVIDIA-format pickles: what their arguments and settings may be, and how much of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stylegan2.errors import StyleGAN2Error
from stylegan2.network_folder import CONFIG
from stylegan2.nvidia import read_nvidia_pickle, write_imported
from stylegan2.nvidia_arguments import plain_data
from tests.stylegan2.nvidia_format import SYNTHESIS, Persistent, content, messages, nvidia_names, write


@pytest.fixture(scope="module", autouse=True)
def _names() -> Iterator[None]:
    with nvidia_names():
        yield


def change_arguments(snapshot: dict[str, Any], name: str, **changes: Any) -> None:
    kwargs = snapshot[name].meta["state"]["_init_kwargs"]
    snapshot[name].meta["state"]["_init_kwargs"] = dict(kwargs) | changes


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
# How much of it
# ----------------------------------------------------------------------------------------------------------


LONG = "x" * 50_001


@pytest.mark.parametrize(
    "settings",
    [
        {"a": [LONG] * 2},
        {"a": ["ä" * 50] * 2001},
        {"a": [{LONG: 1}] * 2},
        {"a": [10**30] * 4000},
        {"a": [1 / 3] * 6000},
        {"a": [float("-inf")] * 9990, "b": [LONG, LONG[:20_000]]},
    ],
    ids=["texts", "short texts", "keys", "integers", "floats", "infinities"],
)
def test_what_a_pickle_repeats_is_counted_as_often(settings: dict[str, Any], tmp_path: Path) -> None:
    message = messages(tmp_path, content(training_set_kwargs=settings))
    assert "training_set_kwargs: more than 100000 characters, counting what is repeated" in message


def test_a_small_pickle_makes_no_large_config(tmp_path: Path) -> None:
    """Half a megabyte that is stored once, and referred to 600 times: 300 MB as JSON."""
    path = write(tmp_path / "net.pkl", content(training_set_kwargs={"a": ["x" * 500_000] * 600}))
    assert path.stat().st_size < 600_000
    with pytest.raises(StyleGAN2Error, match="more than 100000 characters"):
        read_nvidia_pickle(path)


def test_arguments_are_counted_too(tmp_path: Path) -> None:
    snapshot = content()
    change_arguments(snapshot, "D", block_kwargs={"activation": "x" * 100_001})
    assert "D: _init_kwargs: more than 100000 characters" in messages(tmp_path, snapshot)


def test_the_largest_settings_that_are_taken(tmp_path: Path) -> None:
    settings = {"a": [LONG[2:], "y" * 50_000]}
    imported = read_nvidia_pickle(write(tmp_path / "net.pkl", content(training_set_kwargs=settings)))
    assert imported.training_set_kwargs == settings
    write_imported(imported, tmp_path / "out")
    assert (tmp_path / "out" / CONFIG).stat().st_size < 110_000
    # Escapes make up to six characters of one.
    assert len(json.dumps(plain_data({"a": "\0" * 99_999}, "it"))) < 700_000
    with pytest.raises(StyleGAN2Error, match="more than 100000 characters"):
        plain_data({"a": "\0" * 100_000}, "it")
