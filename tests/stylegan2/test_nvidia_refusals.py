"""Import of NVIDIA-format pickles: networks that are not ours, files that do harm, and damaged ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stylegan2.errors import StyleGAN2Error
from stylegan2.nvidia import read_nvidia_pickle
from tests.stylegan2.nvidia_format import Persistent, content, messages, nvidia_names, write


@pytest.fixture(scope="module", autouse=True)
def _names() -> Iterator[None]:
    with nvidia_names():
        yield


# ----------------------------------------------------------------------------------------------------------
# Networks that are not ours
# ----------------------------------------------------------------------------------------------------------


def test_missing_networks_are_named(tmp_path: Path) -> None:
    snapshot = content()
    assert "G, D missing; expected" in messages(tmp_path, {"G_ema": snapshot["G_ema"]})
    assert "D missing; expected" in messages(tmp_path, snapshot | {"D": None})
    assert "G_ema missing; expected" in messages(tmp_path, snapshot | {"G_ema": {"a": 1}})
    assert "holds a tuple, not a dict" in messages(tmp_path, (snapshot["G"], snapshot["D"]))


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
    narrow = Persistent("A", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(17):
        narrow = Persistent("A", {"_parameters": {}, "_buffers": {}, "_modules": {"0": narrow}})
    snapshot["D"].meta["state"]["_modules"]["b8"] = narrow
    assert "nested too deeply" in messages(tmp_path, snapshot)
    bomb: list[Any] = []
    for _ in range(30):
        bomb = [bomb, bomb]
    assert "training_set_kwargs: nested" in messages(tmp_path, content(training_set_kwargs={"a": bomb}))


def test_a_record_is_never_written_out(tmp_path: Path) -> None:
    """The text of records in records doubles with each: 2⁴⁰ times the innermost."""
    snapshot = content()
    record: Any = Persistent("A", {})
    for _ in range(40):
        record = Persistent("A", {"a": record, "b": record})
    block = snapshot["D"].meta["state"]["_modules"]["b8"].meta["state"]
    block["_modules"]["conv0"].meta["state"]["activation"] = record
    block["_modules"]["conv1"].meta["state"]["activation"] = b"x" * 1000
    message = messages(tmp_path, snapshot)
    assert "b8.conv0.activation: got a ModuleRecord, ours has 'lrelu'" in message
    assert "b8.conv1.activation: got a bytes, ours has 'lrelu'" in message


def test_modules_that_repeat_many_tensors(tmp_path: Path) -> None:
    snapshot = content()
    tensor = torch.zeros(1)
    wide = {str(n): tensor for n in range(500)}
    module = Persistent("A", {"_parameters": wide, "_buffers": {}, "_modules": {}})
    parent = Persistent(
        "A", {"_parameters": {}, "_buffers": {}, "_modules": {str(n): module for n in range(500)}}
    )
    snapshot["D"].meta["state"]["_modules"]["b8"] = parent
    message = messages(tmp_path, snapshot)
    assert "D: more than 5000 tensors" in message and len(message) < 1000


@pytest.mark.parametrize("left_out", [[0] * 501, {str(n) for n in range(501)}, ["p", 3], (torch.zeros(2),)])
def test_buffers_to_leave_out_are_a_few_names(left_out: Any, tmp_path: Path) -> None:
    snapshot = content()
    snapshot["D"].meta["state"]["_non_persistent_buffers_set"] = left_out
    assert "network: the buffers to leave out are no names, or more than 500" in messages(tmp_path, snapshot)


def test_names_in_the_file_cannot_steer_a_terminal(tmp_path: Path) -> None:
    snapshot = content()
    snapshot["D"].meta["state"]["_modules"]["b8\x1b[2J\u202e"] = Persistent("A", {})
    message = messages(tmp_path, snapshot)
    assert r"b8\x1b[2J\u202e: _modules is missing" in message
    assert all(line.isprintable() for line in message.splitlines())


def test_one_block_of_numbers_used_for_everything(tmp_path: Path) -> None:
    snapshot = content({"w_dim": 64, "z_dim": 64, "mapping_kwargs": {"num_layers": 60}})
    shared, bias = torch.zeros(64, 64), torch.zeros(64)
    for name in ("G", "G_ema"):
        mapping = snapshot[name].meta["state"]["_modules"]["mapping"].meta["state"]
        for layer in mapping["_modules"].values():
            layer.meta["state"]["_parameters"] = {"weight": shared, "bias": bias}
    assert "tensors overlap" in messages(tmp_path, snapshot)


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
