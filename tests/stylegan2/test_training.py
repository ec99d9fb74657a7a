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
from torch import Tensor

from stylegan2 import training
from stylegan2.config import TrainingOptions, resolve
from stylegan2.errors import StyleGAN2Error
from stylegan2.history import COLUMNS
from stylegan2.loss import StyleGAN2Loss
from stylegan2.sampling import load_generator, sample_images
from stylegan2.training import CHECKPOINT, Trainer, train

SMALL: dict[str, Any] = {
    "resolution": 16,
    "kimg": 0.02,
    "batch": 4,
    "fmaps": 0.004,
    "channel_max": 8,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 1,
    "kimg_per_tick": 0.008,
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


def small_trainer(folder: Path, checkpoint: Path | None = None, **changes: Any) -> Trainer:
    return Trainer(
        pictures(),
        resolve(TrainingOptions(**{**SMALL, **changes})),
        seed=1,
        device=torch.device("cpu"),
        progress_dir=folder,
        checkpoint=checkpoint,
    )


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
        "generator_raw.safetensors",
        "history.csv",
        "samples/generated_000000000.png",
        "samples/generated_000000008.png",
        "samples/generated_000000016.png",
        "samples/generated_000000020.png",
        "samples/real.png",
    }
    with (finished / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["kimg"] for row in rows] == ["0.008", "0.016", "0.02"]
    assert all(row["loss_G"] and row["loss_D"] and row["r_t"] for row in rows)
    config = json.loads((finished / "config.json").read_text())
    assert (config["images_seen"], config["seed"], config["options"]["batch"]) == (20, 1, 4)


def test_the_result_can_be_sampled(finished: Path) -> None:
    (image,) = sample_images(load_generator(finished, torch.device("cpu")), [3], 0.7)
    assert image.shape == (16, 16, 3)
    assert image.std() > 0


def test_equal_seeds_give_equal_files_and_others_do_not(finished: Path, tmp_path: Path) -> None:
    torch.manual_seed(1234)  # what went before must not matter
    assert contents(run(tmp_path / "same")) == contents(finished)
    other = contents(run(tmp_path / "other", seed=2, kimg=0.004))
    for name in ("samples/real.png", "samples/generated_000000000.png"):
        assert other[name] != contents(finished)[name]


@pytest.mark.parametrize(("number", "iterations"), [(signal.SIGINT, 1), (signal.SIGTERM, 4)])
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


def test_going_on_with_other_threads_or_operations_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private, out = tmp_path / "private", tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(out, checkpoint_dir=private)
    with monkeypatch.context() as patched:  # alike: nothing to say
        interrupt_after(patched, 1, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            run(out, checkpoint_dir=private)
    assert "same bits" not in caplog.text
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    monkeypatch.setattr(training, "processor", lambda: "another one")
    try:
        run(out, checkpoint_dir=private)
    finally:
        torch.set_num_threads(threads)
    message = [record.getMessage() for record in caplog.records if record.name == "stylegan2.training"][-1]
    assert f"computed with threads {threads}, now {threads + 1}; processor '" in message
    assert "the result will not be the same bits" in message


def test_half_precision_without_cuda_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "out", num_fp16_res=1)
    assert "num_fp16_res: half precision needs CUDA; on cpu everything computes in float32" in caplog.text


def test_a_checkpoint_after_every_iteration_changes_nothing(finished: Path, tmp_path: Path) -> None:
    out = run(tmp_path / "out", checkpoint_dir=tmp_path / "private", checkpoint_minutes=0.0)
    assert contents(out) == contents(finished)


def test_an_interruption_while_exporting_loses_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, out = tmp_path / "private", tmp_path / "out"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def unexpected(self: Trainer) -> None:
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "export", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(out, checkpoint_dir=private)
    monkeypatch.setattr(Trainer, "train_iteration", unexpected)
    run(out, checkpoint_dir=private)
    assert contents(out) == contents(finished)


def test_a_checkpoint_is_not_overwritten_with_weights_that_are_not_finite(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path, checkpoint=tmp_path / CHECKPOINT)
    trainer.train_iteration()
    trainer.save()
    good = (tmp_path / CHECKPOINT).read_bytes()
    trainer.train_iteration()
    with torch.no_grad():
        next(trainer.average.parameters())[0] = float("inf")
    with pytest.raises(StyleGAN2Error, match=rf"after 8 images 1 of .* average/.*{CHECKPOINT} was not over"):
        trainer.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == good


def test_losses_are_looked_at_before_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA, the last ones have not been read by then."""
    trainer = small_trainer(tmp_path, checkpoint=tmp_path / CHECKPOINT)
    trainer.train_iteration()

    def diverged() -> None:
        raise StyleGAN2Error("training diverged: the loss is nan")

    monkeypatch.setattr(trainer.loss, "raise_if_diverged", diverged)
    with pytest.raises(StyleGAN2Error, match="the loss is nan"):
        trainer.save()
    assert not (tmp_path / CHECKPOINT).exists()


@pytest.mark.parametrize("first", [0.004, 0.016, 0.02])
@pytest.mark.parametrize("snapshot_ticks", [1, 2])
def test_a_finished_training_goes_on_as_if_it_had_been_longer_from_the_start(
    first: float, snapshot_ticks: int, tmp_path: Path
) -> None:
    """Amid a tick, at its end with a snapshot or without one; ticks are 8 images long."""
    for folder, lengths in (("whole", [0.036]), ("parts", [first, 0.036])):
        for kimg in lengths:
            private, out = tmp_path / folder / "private", tmp_path / folder / "out"
            run(out, checkpoint_dir=private, kimg=kimg, snapshot_ticks=snapshot_ticks)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert json.loads((tmp_path / "parts/out/config.json").read_text())["images_seen"] == 36


def test_a_training_does_not_go_back(tmp_path: Path) -> None:
    run(tmp_path / "out", checkpoint_dir=tmp_path / "private", kimg=0.016)
    before = contents(tmp_path)
    with pytest.raises(StyleGAN2Error, match=r"kimg: the checkpoint has seen 16 images, asked for 8$"):
        run(tmp_path / "out", checkpoint_dir=tmp_path / "private", kimg=0.008)
    with pytest.raises(StyleGAN2Error, match=r"lr: the checkpoint has 0\.0025, asked for 0\.001$"):
        run(tmp_path / "out", checkpoint_dir=tmp_path / "private", kimg=0.02, lr=0.001)
    assert contents(tmp_path) == before


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
    with (finished / "history.csv").open(newline="") as file:
        history = [float(row["p"]) for row in csv.DictReader(file)]
    steps = np.diff([0.5, *history]) / (4 * 2 / 100)  # batch · ada_interval / (1000 · ada_kimg)
    assert np.abs(steps) == pytest.approx([1, 1, 0], abs=1e-4)  # after iterations 2, 4 and 5
    assert json.loads((finished / "config.json").read_text())["p"] == pytest.approx(history[-1])
    fixed = run(tmp_path, aug="fixed", p=0.25, kimg=0.008)
    assert json.loads((fixed / "config.json").read_text())["p"] == 0.25


@pytest.mark.parametrize("changes", [{"aug": "noaug", "p": 0}, {"cfg": "cifar", "mbstd_group": 2}])
def test_other_settings_run(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = run(tmp_path, kimg=0.008, **changes)
    (image,) = sample_images(load_generator(folder, torch.device("cpu")), [0], 1.0)
    assert image.shape == (16, 16, 3)


def test_grey_scale(tmp_path: Path) -> None:
    folder = run(tmp_path, pictures(channels=1), kimg=0.008)
    (image,) = sample_images(load_generator(folder, torch.device("cpu")), [0], 1.0)
    assert image.shape == (16, 16, 1)


PHASES = ("accumulate_gmain", "accumulate_greg", "accumulate_dmain", "accumulate_dreg")


def test_course_of_the_iterations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path, g_reg_interval=2, d_reg_interval=3)
    course: list[Any] = []

    def spy(phase: str) -> Any:
        def accumulate(*_: Any, gain: float | None = None, **__: Any) -> None:
            trained = [
                name
                for name, network in (("G", trainer.generator), ("D", trainer.discriminator))
                if all(parameter.requires_grad for parameter in network.parameters())
            ]
            course.append((phase.removeprefix("accumulate_"), gain, *trained))

        return accumulate

    for phase in PHASES:
        monkeypatch.setattr(trainer.loss, phase, spy(phase))
    steps = {id(trainer.optimizer_g): "step G", id(trainer.optimizer_d): "step D"}
    monkeypatch.setattr(
        training, "step_with_gradients", lambda optimizer: course.append(steps[id(optimizer)])
    )
    monkeypatch.setattr(training, "update_average", lambda *_: course.append("average"))
    gmain, greg = [("gmain", None, "G"), "step G"], [("greg", 2, "G"), "step G"]
    dmain, dreg = [("dmain", None, "D"), "step D"], [("dreg", 3, "D"), "step D"]
    for expected in (
        [*gmain, *greg, *dmain, *dreg],
        [*gmain, *dmain],
        [*gmain, *greg, *dmain],
        [*gmain, *dmain, *dreg],
        [*gmain, *greg, *dmain],
        [*gmain, *dmain],
        [*gmain, *greg, *dmain, *dreg],
    ):
        trainer.train_iteration()
        assert course == [*expected, "average"]
        course.clear()


@pytest.mark.parametrize(
    "changes", [{"g_reg_interval": None, "d_reg_interval": None}, {"pl_weight": 0.0, "gamma": 0.0}]
)
def test_no_regularisation_without_interval_or_weight(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_trainer(tmp_path, **changes)
    course: list[str] = []
    for phase in PHASES:
        monkeypatch.setattr(trainer.loss, phase, lambda *_, phase=phase, **__: course.append(phase))
    trainer.train_iteration()
    assert course == ["accumulate_gmain", "accumulate_dmain"]


@pytest.mark.parametrize(
    ("intervals", "shares"), [((4, 16), (4 / 5, 16 / 17)), ((2, 3), (2 / 3, 3 / 4)), ((None, None), (1, 1))]
)
def test_the_optimisers_are_corrected_for_lazy_regularisation(
    intervals: tuple[int | None, int | None], shares: tuple[float, float], tmp_path: Path
) -> None:
    trainer = small_trainer(tmp_path, lr=0.01, g_reg_interval=intervals[0], d_reg_interval=intervals[1])
    networks = trainer.generator, trainer.discriminator
    optimizers = trainer.optimizer_g, trainer.optimizer_d
    for network, optimizer, share in zip(networks, optimizers, shares, strict=True):
        (group,) = optimizer.param_groups
        assert list(map(id, group["params"])) == list(map(id, network.parameters()))
        assert group["lr"] == pytest.approx(0.01 * share)
        assert group["betas"] == pytest.approx((0.0, 0.99**share))
        assert group["eps"] == 1e-8


def test_share_of_the_old_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path, ema_kimg=0.01, ema_rampup=0.5)
    found: list[float] = []

    def spy(average: torch.nn.Module, network: torch.nn.Module, beta: float) -> None:
        assert average is trainer.average
        assert network is trainer.generator
        found.append(beta)

    monkeypatch.setattr(training, "update_average", spy)
    for phase in PHASES:
        monkeypatch.setattr(trainer.loss, phase, lambda *_, **__: None)
    for _ in range(7):
        trainer.train_iteration()
    half_lives = [2, 4, 6, 8, 10, 10]  # images: half of those seen before the batch, at most 10
    assert found == pytest.approx([0.0, *(0.5 ** (4 / half_life) for half_life in half_lives)])


class AugmentSpy:
    """Stands for the pipe; keeps what it is given and what it gives."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.given: list[Tensor] = []

    def __call__(self, images: Tensor, rng: torch.Generator | None) -> Tensor:
        assert rng is not None
        self.seen.append(images)
        self.given.append(images * 0.5)
        return self.given[-1]


def test_what_is_augmented_and_judged_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path, d_reg_interval=16)
    assert trainer.loss.augment is trainer.augment  # the one whose p is adjusted
    spy = AugmentSpy()
    generated: list[Tensor] = []
    judged: list[Tensor] = []
    logits: list[Tensor] = []
    reported: list[Tensor] = []
    monkeypatch.setattr(trainer.loss, "augment", spy)
    monkeypatch.setattr(trainer.controller, "report", reported.append)
    trainer.generator.synthesis.register_forward_hook(lambda _, __, images: generated.append(images))
    trainer.discriminator.register_forward_hook(lambda _, inputs, __: judged.append(inputs[0]))
    trainer.discriminator.register_forward_hook(lambda _, __, output: logits.append(output))
    for iteration, regularised in enumerate([True, False]):
        for record in (spy.seen, spy.given, generated, judged, logits, reported):
            record.clear()
        real = trainer.stream.batch(4 * iteration, 4)
        trainer.train_iteration()
        # Gmain: generated. Dmain: generated, real. Dreg: real.
        expected = [generated[0], generated[-1], real, *[real] * regularised]
        assert len(spy.seen) == len(judged) == len(expected)
        assert all(map(torch.equal, spy.seen, expected))
        assert all(seen is given for seen, given in zip(judged, spy.given, strict=True))
        assert [images.requires_grad for images in spy.seen] == [True, False, False, *[True] * regularised]
        assert len(reported) == 1 + regularised
        assert all(map(torch.equal, reported, logits[2:]))


def test_p_follows_the_verdicts_on_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = small_trainer(tmp_path, target=0.6)
    assert trainer.augment is not None
    # Mean signs of two iterations each: 1, 0.5, −1.
    verdicts = iter([[1, 1], [1, 1], [1, 1], [1, -1], [-1, -1], [-1, -1]])
    for phase in PHASES:
        monkeypatch.setattr(trainer.loss, phase, lambda *_, **__: None)
    monkeypatch.setattr(
        trainer.loss,
        "accumulate_dmain",
        lambda *_, **__: trainer.loss.report("scores_real", torch.tensor(next(verdicts)) * 0.3),
    )
    found = []
    for _ in range(6):
        trainer.train_iteration()
        found.append(float(trainer.augment.p))
    assert found == pytest.approx([0.5, 0.58, 0.58, 0.5, 0.5, 0.42])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_mixed_styles_begin_with_the_phases_own_latents(
    probability: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = small_trainer(tmp_path, style_mixing_prob=probability, pl_batch_shrink=1)
    latents: list[Tensor] = []
    mapped: list[tuple[Tensor, Tensor]] = []
    synthesised: list[Tensor] = []
    original = trainer._latents

    def recorded(rng: torch.Generator) -> Tensor:
        latents.append(original(rng))
        return latents[-1]

    monkeypatch.setattr(trainer, "_latents", recorded)
    trainer.generator.mapping.register_forward_hook(lambda _, inputs, ws: mapped.append((inputs[0], ws)))
    trainer.generator.synthesis.register_forward_hook(lambda _, inputs, __: synthesised.append(inputs[0]))
    trainer.train_iteration()
    assert len(latents) == len(synthesised) == 3  # Gmain, Greg, Dmain
    for index, (z, ws) in enumerate(zip(latents, synthesised, strict=True)):
        if probability == 0:
            assert torch.equal(mapped[index][0], z)
            assert torch.equal(ws, mapped[index][1])
            continue
        (own_z, own), (other_z, other) = mapped[2 * index : 2 * index + 2]
        assert torch.equal(own_z, z)
        assert not torch.equal(other_z, z)
        from_own = [torch.equal(ws[:, layer], own[:, layer]) for layer in range(ws.shape[1])]
        from_other = [torch.equal(ws[:, layer], other[:, layer]) for layer in range(ws.shape[1])]
        first = from_other.index(True)
        assert from_own == [True] * first + [False] * (len(from_own) - first)
        assert from_other == [not own_layer for own_layer in from_own]
        assert first > 0


def test_divergence_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._build_networks

    def broken(self: Trainer, channels: int, c_dim: int) -> None:
        original(self, channels, c_dim)
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
