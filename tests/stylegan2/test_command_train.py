"""`stylegan2 train`: its options, what it refuses, and that the same command resumes."""

import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from stylegan2 import image_folder, sources
from stylegan2.commands.train import parse_options, train
from stylegan2.config import TrainingOptions, resolve
from stylegan2.errors import StyleGAN2Error
from stylegan2.loss import StyleGAN2Loss
from stylegan2.network_folder import read_config
from stylegan2.training import CHECKPOINT, Trainer
from stylegan2.training_lock import LOCK

SMALL = (
    *("--resolution", "8", "--kimg", "0.012", "--batch", "4", "--fmaps", "0.002", "--channel-max", "4"),
    *("--z-dim", "4", "--w-dim", "4", "--mapping-layers", "1", "--kimg-per-tick", "0.004"),
    *("--snapshot-ticks", "1", "--grid-size", "2", "--device", "cpu", "--seed", "3"),
)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


def fail(*arguments: str | Path) -> str:
    """Run what must fail with a message and without a traceback; give the message."""
    result = invoke(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(5):
        pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def interrupt_in(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Press Ctrl-C in a later call of a phase of the loss."""
    original = getattr(StyleGAN2Loss, method)
    calls = 0

    def counting(*args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        original(*args, **kwargs)

    monkeypatch.setattr(StyleGAN2Loss, method, counting)


# ----------------------------------------------------------------------------------------------------------
# Options
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TrainingOptions.model_fields)
def test_every_training_option_is_an_option_with_help(name: str) -> None:
    (option,) = [parameter for parameter in train.params if parameter.name == name]
    assert isinstance(option, click.Option)
    flag = f"--{name.replace('_', '-')}"
    assert flag in option.opts
    assert option.help is not None
    assert len(option.help.removesuffix("]").partition("[default")[0].split()) >= 3
    field = TrainingOptions.model_fields[name]
    if field.annotation is bool:
        assert option.secondary_opts == [f"--no-{name.replace('_', '-')}"]
    assert option.required == field.is_required()


def test_help_shows_descriptions_and_defaults() -> None:
    text = " ".join(invoke("--help").output.split())
    assert "--lr VALUE learning rate of both networks, before the correction for lazy regularisation." in text
    assert '[default: "auto"]' in text
    assert "Example: stylegan2 train --data" in text


def test_values_are_read_as_what_they_are() -> None:
    options = parse_options(
        {
            "resolution": "64",
            "base_grid": "[3, 4]",
            "kimg": "2.5",
            "batch": "auto",
            "ema_rampup": "null",
            "aug": "fixed",
            "p": "0.2",
            "mirror": True,
            "cond": None,
            "init": "2024",
        }
    )
    assert options == TrainingOptions(
        resolution=64,
        base_grid=[3, 4],
        kimg=2.5,
        ema_rampup=None,
        aug="fixed",
        p=0.2,
        mirror=True,
        init="2024",
    )


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        parse_options({"resolution": "64.5", "kimg": "NaN", "base_grid": "[3]", "augpipe": "x", "lr": "true"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "these options cannot be used:"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "  - --resolution",
        "  - --base-grid",
        "  - --kimg",
        "  - --lr",
        "  - --augpipe",
    ]
    assert "got 64.5" in lines[1]
    assert " or " in lines[3]  # auto or a number


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("kimg", "-3", "--kimg: got -3, expected 'auto' or a number greater than 0"),
        ("base_grid", "4,3", "--base-grid: got '4,3', expected a list, such as '[4, 3]'"),
        ("base_grid", "[4]", "--base-grid: got [4], but list should have at least 2 items"),
        ("grid_size", "64", "--grid-size: got 64, expected a number less than or equal to 32"),
    ],
)
def test_messages_say_what_is_expected(name: str, value: str, message: str) -> None:
    with pytest.raises(StyleGAN2Error) as caught:
        parse_options({"resolution": "64", name: value})
    assert message in str(caught.value)


def test_values_that_do_not_go_together_are_named() -> None:
    with pytest.raises(StyleGAN2Error, match=r"resolution: got 60.*; grow: there is nothing to grow from"):
        parse_options({"resolution": "60", "grow": True})


def test_wrong_options_are_shown_without_a_traceback(tmp_path: Path) -> None:
    message = fail(
        "--data", tmp_path, "-o", tmp_path / "out", "--resolution", "60", "--kimg", "-1", "--p", "x"
    )
    for option in ("--kimg", "--p"):
        assert f"  - {option}: got" in message
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------
# Dry run
# ----------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_resolved_options_and_touches_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("--data", data, "-o", out, "--resolution", "128", "--mirror", "--seed", "5", "--dry-run")
    assert result.exit_code == 0, result.output
    expected = resolve(TrainingOptions(resolution=128, mirror=True)).model_dump()
    assert json.loads(result.output) == {**expected, "seed": 5}
    assert "auto" not in result.output
    assert not out.exists()


def test_a_dry_run_adopts_the_architecture_of_init(data: Path, tmp_path: Path) -> None:
    gan, out = tmp_path / "gan", tmp_path / "out"
    assert invoke("--data", data, "-o", gan, *SMALL, "--kimg", "0.004").exit_code == 0
    result = invoke("--data", data, "-o", out, "--resolution", "8", "--init", gan, "--dry-run")
    found = json.loads(result.output)
    assert (found["z_dim"], found["w_dim"], found["channel_max"], found["mapping_layers"]) == (4, 4, 4, 1)
    assert (found["channel_base"], found["ada_kimg"], found["init"]) == (65, 100.0, str(gan))
    assert not out.exists()


def test_a_dry_run_names_what_does_not_fit_init(data: Path, tmp_path: Path) -> None:
    gan, out = tmp_path / "gan", tmp_path / "out"
    assert invoke("--data", data, "-o", gan, *SMALL, "--kimg", "0.004").exit_code == 0
    wrong = ("--resolution", "16", "--z-dim", "7", "--base-grid", "[4, 3]")
    message = fail("--data", data, "-o", out, *wrong, "--init", gan, "--dry-run")
    for name in ("z_dim", "resolution", "base_grid"):
        assert f"  - {name}: the networks have" in message


def test_an_unknown_init_lists_the_names(data: Path, tmp_path: Path) -> None:
    message = fail("--data", data, "-o", tmp_path / "out", "--resolution", "8", "--init", "ffhq", "--dry-run")
    assert "there is no 'ffhq'" in message
    assert all(name in message for name in sources.NAMED_ADDRESSES)


# ----------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------


def test_interrupted_and_resumed_by_the_same_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    result = invoke("--data", data, "-o", whole, *SMALL)
    assert result.exit_code == 0, result.output
    assert "trained on 5 images, 12 shown" in result.output
    assert read_config(whole)["seed"] == 3
    assert not list(whole.rglob(CHECKPOINT))
    with monkeypatch.context() as patched:
        interrupt_in(patched, "accumulate_dmain", 2)
        result = invoke("--data", data, "-o", out, *SMALL)
    assert result.exit_code == 130
    assert "interrupted after 8 images; the same command goes on from there" in result.output
    assert set(contents(out)) >= {f"checkpoint/{CHECKPOINT}", "checkpoint/history.csv"}
    assert not (out / "generator.safetensors").exists()
    result = invoke("--data", data, "-o", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert contents(out) == contents(whole)


def test_resuming_with_other_options_names_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_in(patched, "accumulate_dmain", 1)
        assert invoke("--data", data, "-o", tmp_path / "out", *SMALL).exit_code == 130
    (data / "4.png").unlink()
    message = fail("--data", data, "-o", tmp_path / "out", *SMALL, "--lr", "0.01", "--seed", "4")
    for name in (
        "lr: the checkpoint has 0.0025, asked for 0.01",
        "seed: the checkpoint has 3",
        "images_sha256",
    ):
        assert f"  - {name}" in message


def test_an_interrupted_export_is_finished_by_the_same_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The networks are there already, but not all of the files."""
    out = tmp_path / "out"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("stylegan2.training.write_config", interrupted)
        assert invoke("--data", data, "-o", out, *SMALL).exit_code == 130
    assert (out / "generator.safetensors").exists()
    monkeypatch.setattr(Trainer, "train_iteration", interrupted)  # nothing is left to train
    result = invoke("--data", data, "-o", out, *SMALL)
    assert result.exit_code == 0, result.output
    assert read_config(out)["images_seen"] == 12
    message = fail("--data", data, "-o", out, *SMALL)
    assert f"{out} holds a finished training; name another folder or delete this one" in message


def test_a_finished_training_is_not_trained_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert invoke("--data", data, "-o", out, *SMALL, "--kimg", "0.004").exit_code == 0
    before = contents(out)
    assert "holds a finished training" in fail("--data", data, "-o", out, *SMALL)
    assert contents(out) == before


def test_a_kept_checkpoint_goes_on_with_a_larger_kimg(data: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert invoke("--data", data, "-o", whole, *SMALL, "--keep-checkpoint").exit_code == 0
    for kimg in ("0.004", "0.012"):
        command = ("--data", data, "-o", out, *SMALL, "--kimg", kimg, "--keep-checkpoint")
        assert invoke(*command).exit_code == 0
    assert f"checkpoint/{CHECKPOINT}" in contents(out)
    assert contents(out) == contents(whole)
    assert invoke("--data", data, "-o", out, *SMALL, "--kimg", "0.016").exit_code == 0
    assert not (out / "checkpoint").exists()
    assert read_config(out)["images_seen"] == 16
    assert "--keep-checkpoint" in fail("--data", data, "-o", out, *SMALL, "--kimg", "0.02")


def test_a_second_training_into_the_same_folder_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the first one trains, in a thread of its own: locks hold against those as well."""
    out = tmp_path / "out"
    original, messages = Trainer.export, []

    def export(self: Trainer, *arguments: Any) -> None:
        monkeypatch.setattr(Trainer, "export", original)  # should a second one come so far
        for second in (
            lambda: fail("--data", data, "-o", out, *SMALL, "--seed", "4"),
            lambda: fail("--data", data, "-o", out / ".." / "out", *SMALL),
        ):
            thread = threading.Thread(target=lambda run=second: messages.append(run()))
            thread.start()
            thread.join()
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "export", export)
    assert invoke("--data", data, "-o", out, *SMALL).exit_code == 0
    assert len(messages) == 2 and all("another process trains here" in message for message in messages)
    assert read_config(out)["seed"] == 3
    assert not [name for name in contents(out) if LOCK in name]


def test_who_comes_when_another_has_just_finished_does_not_train_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found an empty folder; the other was done before this one had read its images."""
    out = tmp_path / "out"
    load, first = image_folder.load_image_folder, True

    def slow(*arguments: Any) -> Any:
        nonlocal first
        if first:
            first = False
            assert invoke("--data", data, "-o", out, *SMALL).exit_code == 0
        return load(*arguments)

    monkeypatch.setattr(image_folder, "load_image_folder", slow)
    assert "holds a finished training" in fail("--data", data, "-o", out, *SMALL, "--seed", "4")
    assert read_config(out)["seed"] == 3


def test_images_do_not_hide_options_that_do_not_fit(data: Path, tmp_path: Path) -> None:
    gan, out = tmp_path / "gan", tmp_path / "out"
    assert invoke("--data", data, "-o", gan, *SMALL, "--kimg", "0.004").exit_code == 0
    wrong = ("--resolution", "16", "--z-dim", "7", "--init", gan, "--device", "gpu")
    message = fail("--data", data, "-o", out, *wrong)
    for part in (
        "3 problems",
        "device: got 'gpu'",
        "0.png: got 8×8 (height × width), expected 16×16",
        "resolution: the networks have 8, the options ask for 16; ask for 8 (--resolution 8, with --resize",
        "z_dim: the networks have z_dim 4, the options ask for 7",
    ):
        assert part in message
    assert not out.exists()


def test_labels_and_resizing(data: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(data / "large.png")
    labels = [[path.name, index % 2] for index, path in enumerate(sorted(data.glob("*.png")))]
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    command = ("--data", data, "-o", tmp_path / "out", *SMALL, "--kimg", "0.004", "--cond")
    message = fail(*command)
    assert "large.png: got 12×16 (height × width), expected 8×8" in message
    result = invoke(*command, "--resize", "--mirror", "--subset", "4")
    assert result.exit_code == 0, result.output
    config = read_config(tmp_path / "out")
    assert config["generator"]["c_dim"] == 2
    assert (config["options"]["subset"], config["options"]["mirror"]) == (4, True)


def test_a_zip_file_is_trained_on_like_its_folder(data: Path, tmp_path: Path) -> None:
    (data / "dataset.json").write_text(
        json.dumps({"labels": [[f"{index}.png", index % 2] for index in range(5)]})
    )
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", data)
    short = (*SMALL, "--kimg", "0.004", "--cond")
    for name, images in (("folder", data), ("archive", archive)):
        result = invoke("--data", images, "-o", tmp_path / name, *short)
        assert result.exit_code == 0, result.output
    assert contents(tmp_path / "archive") == contents(tmp_path / "folder")


def test_conditioning_without_labels_is_an_error(data: Path, tmp_path: Path) -> None:
    assert "cond: the images have no labels" in fail("--data", data, "-o", tmp_path / "out", *SMALL, "--cond")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--device", "gpu"), "device: got 'gpu', expected auto, cpu"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--checkpoint-minutes", "0"), "Invalid value for '--checkpoint-minutes'"),
        (("--bogus", "1"), "No such option"),
    ],
)
def test_other_wrong_arguments(arguments: tuple[str, ...], expected: str, data: Path, tmp_path: Path) -> None:
    assert expected in fail("--data", data, "-o", tmp_path / "out", *SMALL, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_of_images(tmp_path: Path) -> None:
    message = fail("--data", tmp_path / "absent", "-o", tmp_path / "out", *SMALL)
    assert f"there is no folder {tmp_path / 'absent'}" in message
