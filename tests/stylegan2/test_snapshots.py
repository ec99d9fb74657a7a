"""Snapshots of a training: sample grids, KID, and the best one kept, also across an interruption."""

import csv
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stylegan2 import snapshots
from stylegan2.config import ResolvedOptions, TrainingOptions, resolve
from stylegan2.data import ImageStream
from stylegan2.errors import StyleGAN2Error
from stylegan2.images import image_grid
from stylegan2.loss import StyleGAN2Loss
from stylegan2.metrics import kid
from stylegan2.network_folder import read_config
from stylegan2.networks.generator import Generator
from stylegan2.sampling import load_generator
from stylegan2.snapshots import COLUMNS, Snapshots
from stylegan2.training import CHECKPOINT, Trainer, train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "resolution": 8,
    "kimg": 0.024,
    "batch": 4,
    "fmaps": 0.002,
    "channel_max": 4,
    "z_dim": 4,
    "w_dim": 4,
    "mapping_layers": 1,
    "kimg_per_tick": 0.004,
    "snapshot_ticks": 2,
    "grid_size": 2,
    "kid_images": 10,
    "g_reg_interval": 2,
    "d_reg_interval": 2,
    "p": 0.5,
}


class FakeFeatures:
    """Colours of the four quarters: cheap, and made of the pixels."""

    name = "fake"
    dim = 12
    weights_sha256 = "0" * 64

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return F.adaptive_avg_pool2d(images.expand(-1, 3, -1, -1).float(), 2).flatten(1) / 100


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> FakeFeatures:
    network = FakeFeatures()
    monkeypatch.setattr(snapshots, "load_feature_network", lambda **_: network)
    return network


def pictures(count: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def options(**changes: Any) -> ResolvedOptions:
    return resolve(TrainingOptions(**{**SMALL, **changes}))


def generator(seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    widths = {"channel_base": 64, "channel_max": 4}
    size: dict[str, Any] = {"z_dim": 4, "c_dim": 0, "w_dim": 4, "img_resolution": 8, "img_channels": 3}
    return Generator(**size, synthesis_kwargs=widths).eval().requires_grad_(False)


def taker(folder: Path, images: NDArray[np.uint8] | None = None, **changes: Any) -> Snapshots:
    resolved = options(**changes)
    stream = ImageStream(pictures() if images is None else images, resolved.mirror, 1)
    return Snapshots(stream, resolved, 1, CPU, folder, cache=folder / "features")


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def set_kid(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let successive measurements give these values."""
    remaining = iter(values)

    def measured(real: Any, fake: Any, **kwargs: Any) -> Any:
        result = kid(real, fake, **kwargs)
        return type(result)(**{**vars(result), "value": next(remaining)})

    monkeypatch.setattr(snapshots, "kid", measured)


# ----------------------------------------------------------------------------------------------------------
# One snapshot
# ----------------------------------------------------------------------------------------------------------


def test_kid_is_that_between_training_images_and_samples(tmp_path: Path, features: FakeFeatures) -> None:
    taken = taker(tmp_path)
    average = generator()
    drawn: list[Tensor] = []
    average.synthesis.register_forward_hook(lambda _, __, images: drawn.append(images))
    taken.take(average, 4000)
    shown, samples = drawn[0], torch.cat(drawn[1:])
    assert (len(shown), len(samples)) == (4, 10)
    pixels = [np.clip(images.numpy() * 127.5 + 128, 0, 255).astype(np.uint8) for images in (shown, samples)]
    as_features = FakeFeatures()
    real = as_features(torch.from_numpy(pictures().transpose(0, 3, 1, 2).copy())).numpy()
    expected = kid(real, as_features(torch.from_numpy(pixels[1])).numpy(), network_name="fake")
    row = {"kimg": 4.0, "kid": expected.value, "kid_lo": expected.lo, "kid_hi": expected.hi}
    assert taken.rows == [pytest.approx(row, rel=1e-6)]
    (written,) = read_rows(tmp_path / "kid.csv")
    assert tuple(written) == COLUMNS
    assert {name: float(value) for name, value in written.items()} == pytest.approx(row, rel=1e-5)
    with Image.open(tmp_path / "samples" / "generated_000004000.png") as file:
        grid = image_grid(pixels[0].transpose(0, 2, 3, 1), 2)
        assert np.array_equal(np.asarray(file), grid)


def test_all_snapshots_show_the_same_latents_and_leave_training_s_randomness_alone(tmp_path: Path) -> None:
    taken = taker(tmp_path)
    average = generator()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    taken.take(average, 0)
    taken.take(average, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    grids = [(tmp_path / "samples" / f"generated_00000000{seen}.png").read_bytes() for seen in (0, 8)]
    assert grids[0] == grids[1]
    assert taken.rows[0]["kid"] == taken.rows[1]["kid"]


def test_features_of_the_training_images_are_computed_once(tmp_path: Path, features: FakeFeatures) -> None:
    taken = taker(tmp_path, kid_images=2)
    taken.take(generator(), 0)
    assert features.calls == 2
    taken.take(generator(), 4)
    assert features.calls == 3
    taker(tmp_path, kid_images=2).take(generator(), 8)  # as after an interruption
    assert features.calls == 4


@pytest.mark.parametrize(("kid_images", "measure"), [(0, True), (10, False)])
def test_without_kid_there_is_only_a_grid(
    kid_images: int, measure: bool, tmp_path: Path, features: FakeFeatures
) -> None:
    taken = taker(tmp_path, kid_images=kid_images)
    taken.take(generator(), 0, measure=measure)
    taken.write_rows(tmp_path)
    assert set(contents(tmp_path)) == {"samples/generated_000000000.png"}
    assert (taken.rows, taken.best, taken.best_row, features.calls) == ([], None, None, 0)
    assert taken.tensors() == {}


def test_two_images_have_a_kid_without_an_interval(tmp_path: Path) -> None:
    taken = taker(tmp_path, pictures(2), kid_images=2)
    taken.take(generator(), 0)
    (row,) = read_rows(tmp_path / "kid.csv")
    assert row["kid"] != "" and row["kid_lo"] == row["kid_hi"] == ""


def test_kid_of_a_single_training_image_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="KID is defined for 2 training images or more, got 1"):
        taker(tmp_path, pictures(1))
    taker(tmp_path, pictures(1), kid_images=0)


def test_the_real_grid_shows_no_more_images_than_there_are(tmp_path: Path) -> None:
    taken = taker(tmp_path, pictures(3), grid_size=2, mirror=False)
    taken.show_real()
    with Image.open(tmp_path / "samples" / "real.png") as file:
        grid = np.asarray(file)
    assert grid.shape == (16, 16, 3)
    assert not grid[8:, 8:].any()
    shown = {grid[:8, :8].tobytes(), grid[:8, 8:].tobytes(), grid[8:, :8].tobytes()}
    assert shown == {image.tobytes() for image in pictures(3)}


# ----------------------------------------------------------------------------------------------------------
# The best one
# ----------------------------------------------------------------------------------------------------------


def test_the_best_snapshot_is_the_first_of_lowest_kid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_kid(monkeypatch, 0.5, -0.1, 0.2, -0.1)
    taken = taker(tmp_path)
    for index in range(4):
        taken.take(generator(index), 1000 * index)
    assert taken.best_row is not None
    assert taken.best_row["kimg"] == 1
    assert taken.best is not None
    expected = generator(1).state_dict()
    assert taken.best.keys() == expected.keys()
    assert all(torch.equal(taken.best[name], expected[name]) for name in expected)


def test_the_best_weights_do_not_move_with_the_generator(tmp_path: Path) -> None:
    taken = taker(tmp_path)
    average = generator()
    taken.take(average, 0)
    expected = generator().state_dict()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter += 1
    assert taken.best is not None
    assert all(torch.equal(taken.best[name], expected[name]) for name in expected)


def test_tensors_and_rows_can_be_put_back(tmp_path: Path) -> None:
    taken, other = taker(tmp_path), taker(tmp_path)
    other.restore(taken.tensors(), [])
    assert other.best is None
    taken.take(generator(), 0)
    others = {"generator/const": torch.zeros(1), "pl_mean": torch.zeros(())}
    other.restore({**others, **taken.tensors()}, taken.rows)
    assert other.best is not None and taken.best is not None
    assert other.best.keys() == taken.best.keys()
    assert all(torch.equal(other.best[name], taken.best[name]) for name in taken.best)
    assert other.best_row == taken.best_row


# ----------------------------------------------------------------------------------------------------------
# Within a training
# ----------------------------------------------------------------------------------------------------------

LABELS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 1]]


def run(out: Path, checkpoint_dir: Path, **changes: Any) -> Path:
    settings = {**SMALL, "cond": True, "subset": 5, "mirror": True, **changes}
    train(
        pictures(),
        TrainingOptions(**settings),
        seed=1,
        out_dir=out,
        checkpoint_dir=checkpoint_dir,
        labels=LABELS if settings["cond"] else None,
        progress=False,
    )
    return out


def interrupt_after(monkeypatch: pytest.MonkeyPatch, iterations: int) -> None:
    original = StyleGAN2Loss.accumulate_dmain
    calls = 0

    def counting(self: StyleGAN2Loss, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == iterations:
            signal.raise_signal(signal.SIGINT)
        original(self, *args, **kwargs)

    monkeypatch.setattr(StyleGAN2Loss, "accumulate_dmain", counting)


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of three snapshots of which the first is the best."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(snapshots, "load_feature_network", lambda **_: FakeFeatures())
        set_kid(patched, 0.1, 0.3, 0.2)
        return run(folder / "out", folder / "private")


@pytest.mark.parametrize("iterations", [2, 5])
def test_interrupted_and_resumed_equals_uninterrupted(
    iterations: int, reached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With labels, a subset and KID, interrupted at or after a snapshot: every exported file is the same."""
    private, out = tmp_path / "private", tmp_path / "out"
    set_kid(monkeypatch, 0.1, 0.3, 0.2)
    with monkeypatch.context() as patched:
        interrupt_after(patched, iterations)
        with pytest.raises(KeyboardInterrupt):
            run(out, private)
    assert not out.exists()
    assert (private / CHECKPOINT).exists()
    run(out, private)
    expected = contents(reached)
    assert {"kid.csv", "best/config.json", "best/generator.safetensors"} <= expected.keys()
    assert contents(out) == expected


def test_a_longer_training_forgets_the_last_snapshot_of_the_shorter_one(tmp_path: Path) -> None:
    """That one was not due: neither its grid nor its KID nor its weights are those of the longer one."""
    whole = run(tmp_path / "whole" / "out", tmp_path / "whole" / "private", snapshot_ticks=4)
    for kimg in (0.004, 0.02, 0.024):
        run(tmp_path / "parts" / "out", tmp_path / "parts" / "private", snapshot_ticks=4, kimg=kimg)
    assert [row["kimg"] for row in read_rows(whole / "kid.csv")] == ["0.016", "0.024"]
    for folder in ("whole", "parts"):
        shutil.rmtree(tmp_path / folder / "private" / "features")  # lists its metadata in any order
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_the_best_generator_is_exported_with_its_kid(reached: Path, tmp_path: Path) -> None:
    """Its weights are those that a training of only so many images ends with."""
    assert [row["kimg"] for row in read_rows(reached / "kid.csv")] == ["0.008", "0.016", "0.024"]
    best = read_config(reached / "best")
    assert best["snapshot"]["kimg"] == 0.008
    assert best["snapshot"]["kid"] == 0.1
    shorter = run(tmp_path / "shorter", tmp_path / "private", kimg=0.008, kid_images=0)
    weights = (reached / "best" / "generator.safetensors").read_bytes()
    assert weights == (shorter / "generator.safetensors").read_bytes()
    assert weights != (reached / "generator.safetensors").read_bytes()
    assert load_generator(reached / "best", CPU).c_dim == 3


def test_fine_tuning_measures_what_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path / "first", tmp_path / "p1", kimg=0.004, kid_images=0, cond=False)
    set_kid(monkeypatch, 0.1, 0.2)
    widths = dict.fromkeys(("fmaps", "channel_max", "z_dim", "w_dim", "mapping_layers"), "auto")
    tuned = run(tmp_path / "tuned", tmp_path / "p2", kimg=0.004, init=str(first), cond=False, **widths)
    assert [row["kimg"] for row in read_rows(tuned / "kid.csv")] == ["0", "0.004"]
    best = (tuned / "best" / "generator.safetensors").read_bytes()
    assert best == (first / "generator.safetensors").read_bytes()


def test_without_kid_there_is_no_best(tmp_path: Path) -> None:
    out = run(tmp_path / "out", tmp_path / "private", kid_images=0, kimg=0.004)
    assert not (out / "best").exists()
    assert not (out / "kid.csv").exists()


def test_grids_of_a_run_without_checkpoint_are_cleared(tmp_path: Path) -> None:
    taken = taker(tmp_path, kid_images=0)
    taken.take(generator(), 8)
    taken.clear()
    assert not list((tmp_path / "samples").iterdir())


# ----------------------------------------------------------------------------------------------------------
# Kept networks
# ----------------------------------------------------------------------------------------------------------

KEEP: dict[str, Any] = {"keep_snapshots": True, "snapshot_ticks": 4}  # after 0, 16 and, at the end, 24 images


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").iterdir())


def test_networks_are_kept_where_the_options_ask_for_it(tmp_path: Path) -> None:
    taken = taker(tmp_path, kid_images=0, keep_snapshots=True)
    for index in range(3):
        taken.take(generator(index), 4 * index)
    assert kept(tmp_path) == ["000000000", "000000004", "000000008"]
    for index, name in enumerate(kept(tmp_path)):
        loaded = load_generator(tmp_path / "snapshots" / name, CPU).state_dict()  # while training goes on
        expected = generator(index).state_dict()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
    (tmp_path / "snapshots" / "mine").mkdir()
    taken.clear(4)
    assert kept(tmp_path) == ["000000000", "mine"]


@pytest.fixture(scope="module")
def reached_and_kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(snapshots, "load_feature_network", lambda **_: FakeFeatures())
        return run(folder / "out", folder / "private", **KEEP)


def test_a_kept_network_is_that_of_a_shorter_training(reached_and_kept: Path, tmp_path: Path) -> None:
    assert kept(reached_and_kept) == ["000000000", "000000016", "000000024"]
    shorter = run(tmp_path / "shorter", tmp_path / "private", kimg=0.016, kid_images=0)
    assert not (shorter / "snapshots").exists()
    for name, other in (("000000016", shorter), ("000000024", reached_and_kept)):
        weights = (reached_and_kept / "snapshots" / name / "generator.safetensors").read_bytes()
        assert weights == (other / "generator.safetensors").read_bytes()
    config = read_config(reached_and_kept / "snapshots" / "000000016")
    rows = read_rows(reached_and_kept / "kid.csv")
    assert (config["images_seen"], config["snapshot"]["kimg"]) == (16, 0.016)
    assert config["snapshot"]["kid"] == pytest.approx(float(rows[0]["kid"]), rel=1e-5)
    assert config["options"] == read_config(reached_and_kept)["options"]
    assert "p" not in config  # that of the end would mislead
    first = read_config(reached_and_kept / "snapshots" / "000000000")
    assert first["snapshot"]["kimg"] == 0


@pytest.mark.parametrize("iterations", [2, 4, 5])
def test_resumed_trainings_keep_the_same_networks(
    iterations: int, reached_and_kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, out = tmp_path / "private", tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt_after(patched, iterations)
        with pytest.raises(KeyboardInterrupt):
            run(out, private, **KEEP)
    run(out, private, **KEEP)
    assert contents(out) == contents(reached_and_kept)


def test_who_goes_back_behind_a_snapshot_forgets_it(reached_and_kept: Path, tmp_path: Path) -> None:
    """As after a crash: there are networks that the checkpoint knows nothing of."""
    private, out = tmp_path / "private", tmp_path / "out"
    run(out, private, **KEEP, kimg=0.012)
    for name in ("000000016", "000000400"):
        shutil.copytree(private / "snapshots" / "000000012", private / "snapshots" / name)
    shutil.copytree(private / "snapshots" / "000000000", out / "snapshots" / "000000500")
    run(out, private, **KEEP)
    assert contents(out) == contents(reached_and_kept)
    assert kept(private) == kept(out)


def test_without_a_checkpoint_the_networks_are_the_same(reached_and_kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "snapshots" / "000000099").mkdir(parents=True)
    settings = {**SMALL, "cond": True, "subset": 5, "mirror": True, **KEEP}
    train(pictures(), TrainingOptions(**settings), seed=1, out_dir=out, labels=LABELS, progress=False)
    assert contents(out) == contents(reached_and_kept)
    assert kept(out) == kept(reached_and_kept)


def test_keeping_is_part_of_the_options_that_a_checkpoint_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of before the option have it off."""
    private = tmp_path / "private"
    original = Trainer._identity

    def without(self: Trainer) -> dict[str, Any]:
        identity = original(self)
        del identity["options"]["keep_snapshots"]
        return identity

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_identity", without)
        run(tmp_path / "out", private, kimg=0.004, kid_images=0)
    with pytest.raises(StyleGAN2Error, match="keep_snapshots: the checkpoint has False, asked for True"):
        run(tmp_path / "out", private, kid_images=0, keep_snapshots=True)
    run(tmp_path / "out", private, kid_images=0)
