"""Training: whole small runs, interruption, fine-tuning, bad input."""

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stylegan2.config import TrainingOptions
from stylegan2.data import ImageStream
from stylegan2.errors import StyleGAN2Error
from stylegan2.history import COLUMNS
from stylegan2.images import to_uint8
from stylegan2.loss import StyleGAN2Loss
from stylegan2.sampling import load_generator, sample_images
from stylegan2.training import CHECKPOINT, Trainer, train

SMALL: dict[str, Any] = {
    "resolution": 16,
    "kimg": 0.032,
    "batch": 4,
    "fmaps": 0.004,
    "channel_max": 8,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 1,
    "kimg_per_tick": 0.012,
    "snapshot_ticks": 1,
    "grid_size": 2,
    "ada_kimg": 0.1,
    "ada_interval": 2,
    "g_reg_interval": 2,
    "d_reg_interval": 3,
    "p": 0.5,
    "mirror": True,
}


def pictures(count: int = 5, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels)).astype(np.uint8)


def run(out: Path, images: NDArray[np.uint8] | None = None, **kwargs: Any) -> Path:
    train_keys = {"checkpoint_dir", "checkpoint_minutes", "seed", "provenance"}
    arguments = {"seed": 1, **{key: value for key, value in kwargs.items() if key in train_keys}}
    options = {**SMALL, **{key: value for key, value in kwargs.items() if key not in train_keys}}
    images = pictures() if images is None else images
    train(images, TrainingOptions(**options), out_dir=out, progress=False, **arguments)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("gan") / "out")


def interrupt_after(monkeypatch: pytest.MonkeyPatch, iterations: int, number: signal.Signals) -> None:
    """Send ourselves a signal in the middle of the given iteration (counted from this call)."""
    original = StyleGAN2Loss.accumulate_dmain
    calls = 0

    def counting(self: StyleGAN2Loss, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == iterations:
            signal.raise_signal(number)
        original(self, *args, **kwargs)

    monkeypatch.setattr(StyleGAN2Loss, "accumulate_dmain", counting)


def test_files_of_a_finished_training(finished: Path) -> None:
    assert set(contents(finished)) == {
        "config.json",
        "discriminator.safetensors",
        "generator.safetensors",
        "history.csv",
        "samples/generated_000000000.png",
        "samples/generated_000000012.png",
        "samples/generated_000000024.png",
        "samples/generated_000000032.png",
        "samples/real.png",
    }
    with (finished / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["kimg"] for row in rows] == ["0.012", "0.024", "0.032"]
    assert all(row["loss_G"] and row["loss_D"] and row["r_t"] for row in rows)
    config = json.loads((finished / "config.json").read_text())
    assert (config["images_seen"], config["seed"], config["options"]["batch"]) == (32, 1, 4)


def test_the_result_can_be_sampled(finished: Path) -> None:
    (image,) = sample_images(load_generator(finished, torch.device("cpu")), [3], 0.7)
    assert image.shape == (16, 16, 3)
    assert image.std() > 0


def test_equal_seeds_give_equal_files_and_others_do_not(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)  # what went before must not matter
    assert contents(run(tmp_path / "same")) == contents(finished)
    other = contents(run(tmp_path / "other", seed=2))
    assert other["generator.safetensors"] != contents(finished)["generator.safetensors"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("iterations", [1, 5])
def test_interrupted_and_resumed_equals_uninterrupted(
    number: signal.Signals,
    iterations: int,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    private, out = tmp_path / "private", tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt_after(patched, iterations, number)
        with pytest.raises(KeyboardInterrupt):
            run(out, checkpoint_dir=private)
    assert not out.exists()
    assert (private / CHECKPOINT).exists()
    run(out, checkpoint_dir=private)
    assert contents(out) == contents(finished)


def test_a_checkpoint_after_every_iteration_changes_nothing(finished: Path, tmp_path: Path) -> None:
    out = run(tmp_path / "out", checkpoint_dir=tmp_path / "private", checkpoint_minutes=0.0)
    assert contents(out) == contents(finished)


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path, kimg=0.004)
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_of_other_options_names_the_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", checkpoint_dir=tmp_path)
    with pytest.raises(StyleGAN2Error, match=r"lr: the checkpoint has 0\.0025, asked for 0\.01") as caught:
        run(tmp_path / "out", checkpoint_dir=tmp_path, lr=0.01, seed=7)
    assert "seed: the checkpoint has 1" in str(caught.value)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(StyleGAN2Error, match="is damaged"):
        run(tmp_path / "out", checkpoint_dir=tmp_path)


def test_adaptive_strength_moves_and_fixed_stays(finished: Path, tmp_path: Path) -> None:
    assert json.loads((finished / "config.json").read_text())["p"] != 0.5
    fixed = run(tmp_path, aug="fixed", p=0.25)
    assert json.loads((fixed / "config.json").read_text())["p"] == 0.25


@pytest.mark.parametrize("changes", [{"aug": "noaug", "p": 0}, {"cfg": "cifar", "mbstd_group": 2}])
def test_other_settings_run(changes: dict[str, Any], tmp_path: Path) -> None:
    run(tmp_path, kimg=0.008, **changes)


def test_grey_scale(tmp_path: Path) -> None:
    folder = run(tmp_path, pictures(channels=1), kimg=0.008)
    (image,) = sample_images(load_generator(folder, torch.device("cpu")), [0], 1.0)
    assert image.shape == (16, 16, 1)


def test_fine_tuning_starts_from_the_given_weights(finished: Path, tmp_path: Path) -> None:
    tuned = run(tmp_path, init=str(finished), kimg=0.004)
    first = (tuned / "samples" / "generated_000000000.png").read_bytes()
    assert first == (finished / "samples" / "generated_000000032.png").read_bytes()


def test_fine_tuning_other_networks_names_the_fields(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match=r"generator\.w_dim: .* has 8, the options ask for 4"):
        run(tmp_path, init=str(finished), w_dim=4)


def test_divergence_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._build_networks

    def broken(self: Trainer, channels: int) -> None:
        original(self, channels)
        with torch.no_grad():
            next(self.discriminator.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Trainer, "_build_networks", broken)
    with pytest.raises(StyleGAN2Error, match="generator loss is nan"):
        run(tmp_path)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 8, 8, 3), np.uint8),
        np.zeros((0, 16, 16, 3), np.uint8),
        np.zeros((3, 16, 16, 3), np.float32),
        np.zeros((3, 16, 16, 2), np.uint8),
    ],
)
def test_unusable_images_are_refused(images: NDArray[Any], tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="training images: got"):
        run(tmp_path, images)


def test_the_stream_shows_every_image_once_before_any_again() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 1), np.uint8)
    stream = ImageStream(images, mirror=False, seed=0)
    shown = to_uint8(stream.batch(0, 10))[:, 0, 0, 0].tolist()
    assert sorted(shown[:5]) == sorted(shown[5:]) == list(range(5))
    assert to_uint8(stream.batch(3, 4))[:, 0, 0, 0].tolist() == shown[3:7]


def test_mirroring_doubles_the_stream() -> None:
    images = np.array([[[[0], [255]]]], np.uint8)
    shown = to_uint8(ImageStream(images, mirror=True, seed=0).batch(0, 2))[:, 0, 0].tolist()
    assert sorted(shown) == [[0, 255], [255, 0]]
