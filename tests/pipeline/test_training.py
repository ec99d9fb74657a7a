"""Training on small drawn pictures: it learns, keeps the best epoch, and resumes bit for bit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import pipeline.training as training
from pipeline.augment import Augmentation, Example
from pipeline.errors import UserError
from pipeline.models.registry import build_model
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Execution, Phase, TrainedSegmenter, prefetch, train_segmenter
from pipeline.training_checkpoint import CHECKPOINT_FILE, HistoryRow, best_row
from pipeline.training_data import TrainingFrame, ValidationFrame, input_statistics, working_frame
from pipeline.validation import validate

SIZE = 32
PARAMS = SegmenterParams(
    base_width=4,
    dropblock_size=3,
    dropblock_keep=0.95,
    resolution=SIZE,
    batch_size=3,
    augmentation=Augmentation(rotation=20, scale=0.1),
)
QUIET = Execution(progress=False)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these networks are too small to share out
    yield
    torch.set_num_threads(threads)


def picture(seed: int) -> ValidationFrame:
    """Bright lines on noise."""
    rng = np.random.default_rng(seed)
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[rng.integers(3, SIZE - 3), :] = True
    vessels[:, rng.integers(3, SIZE - 3)] = True
    image = rng.integers(20, 90, (SIZE, SIZE, 3), dtype=np.uint8)
    image[vessels] += np.uint8(140)
    fov = np.zeros((SIZE, SIZE), bool)
    fov[2:-2, 2:-2] = True
    return ValidationFrame(working_frame(f"picture {seed}", image, vessels, fov, SIZE), vessels, fov)


TRAIN = [picture(seed).working for seed in range(7)]
VALIDATION = [picture(seed) for seed in (100, 101)]
STATISTICS = input_statistics(TRAIN)


def phases(first: int = 3, second: int = 2) -> list[Phase]:
    return [Phase("first", TRAIN, first, 1e-2, True), Phase("second", TRAIN[:4], second, 1e-3, False)]


def train(
    plan: Sequence[Phase] | None = None, params: SegmenterParams = PARAMS, seed: int = 0, **options: object
) -> TrainedSegmenter:
    options.setdefault("execution", QUIET)
    plan = phases() if plan is None else plan
    return train_segmenter(plan, VALIDATION, params, STATISTICS, seed=seed, **options)  # type: ignore[arg-type]


def same(a: TrainedSegmenter, b: TrainedSegmenter) -> bool:
    weights_a, weights_b = a.network.state_dict(), b.network.state_dict()
    equal_weights = all(torch.equal(weights_a[name], weights_b[name]) for name in weights_a)
    return a.history == b.history and a.best == b.best and a.threshold == b.threshold and equal_weights


def test_it_learns_bright_lines() -> None:
    trained = train([Phase("only", TRAIN, 12, 1e-2, True)])
    assert trained.best.validation_auc is not None and trained.best.validation_auc > 0.97
    assert trained.history[-1].train_loss < 0.6 * trained.history[0].train_loss


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_deep_supervision_learns_and_leaves_a_plain_network(ema_decay: float) -> None:
    plan = [Phase("only", TRAIN, 12, 1e-2, True)]
    update = {"ema_decay": ema_decay, "deep_supervision": True}
    trained = train(plan, PARAMS.model_copy(update=update))
    plain = build_model(PARAMS.architecture)
    assert trained.network.state_dict().keys() == plain.state_dict().keys()
    assert not trained.network.training
    score = validate(trained.network, VALIDATION, STATISTICS, PARAMS.loss)
    assert score.auc == trained.best.validation_auc > 0.95
    without = train(plan, PARAMS.model_copy(update={"ema_decay": ema_decay}))
    assert not same(trained, without)


def test_deep_supervision_begins_with_the_same_weights_and_notes_the_networks_own_loss() -> None:
    one_step = [Phase("only", TRAIN[:1], 1, 1e-2, True)]
    plain, deep = (
        train(one_step, PARAMS.model_copy(update={"deep_supervision": deep})) for deep in (False, True)
    )
    assert plain.history[0].train_loss == deep.history[0].train_loss
    assert not same(plain, deep)


def test_what_is_learnt_from_is_the_loss_of_deep_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    params = PARAMS.model_copy(update={"deep_supervision": True})
    one_step = [Phase("only", TRAIN[:1], 1, 1e-2, True)]
    weighted = train(one_step, params)
    for name, loss, equal in (
        ("by hand", lambda x: (4 * x[0] + 2 * x[1] + x[2]) / 7, True),
        ("unweighted", lambda x: x.mean(), False),
    ):
        monkeypatch.setattr(training, "deep_supervision_loss", loss)
        weights = zip(
            train(one_step, params).network.parameters(), weighted.network.parameters(), strict=True
        )
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in weights) == equal, name


def test_phases_run_in_order_with_their_own_frames_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, bool]] = []
    original = training.make_example

    def spy(
        frame: TrainingFrame, crop: int | None, settings: Augmentation | None, rng: np.random.Generator
    ) -> Example:
        shown.append((frame.id, settings is not None))
        return original(frame, crop, settings, rng)

    monkeypatch.setattr(training, "make_example", spy)
    history = train().history
    assert [(row.phase, row.epoch, row.learning_rate) for row in history] == [
        ("first", 1, 1e-2),
        ("first", 2, 1e-2),
        ("first", 3, 1e-2),
        ("second", 4, 1e-3),
        ("second", 5, 1e-3),
    ]
    ids = sorted(frame.id for frame in TRAIN)
    for epoch in range(3):
        assert sorted(shown[7 * epoch : 7 * epoch + 7]) == [(name, True) for name in ids]
    for start in (21, 25):
        assert sorted(shown[start : start + 4]) == [(name, False) for name in ids[:4]]
    assert shown[:7] != shown[7:14]  # another order each epoch


def test_the_learning_rate_reaches_the_optimiser() -> None:
    frozen = train([Phase("frozen", TRAIN, 2, 1e-12, False)])
    torch.manual_seed(123)  # the caller's generator does not matter
    again = train([Phase("frozen", TRAIN, 1, 1e-12, False)])
    for name, parameter in frozen.network.named_parameters():
        assert torch.allclose(parameter, dict(again.network.named_parameters())[name], atol=1e-9)


def test_a_cosine_falls_from_the_first_rate_to_the_final_one_behind_a_warm_up() -> None:
    phase = Phase("p", TRAIN, 1, 0.1, True, final_learning_rate=0.02, warmup_steps=4)
    rates = [phase.rate(step, 8) for step in range(9)]
    # by hand: 0.02 + 0.04 (1 + cos(pi s / 8)), times 1/4, 2/4, 3/4 in the first three steps
    expected = [0.025, 0.0484776, 0.0662132, 0.0753073, 0.06, 0.0446927, 0.0317157, 0.0230448, 0.02]
    assert rates == pytest.approx(expected, abs=1e-6)
    assert [Phase("p", TRAIN, 1, 0.1, True).rate(step, 8) for step in (0, 5)] == [0.1, 0.1]


def test_a_cosine_runs_over_all_steps_of_its_phase_and_starts_anew_in_the_next() -> None:
    plan = [
        Phase("steady", TRAIN, 1, 5e-3, True),
        Phase("falling", TRAIN, 2, 1e-2, True, final_learning_rate=0.0),
    ]
    rows = train(plan).history
    steps = 6  # two epochs of 7 frames in batches of 3
    last = [0.5e-2 * (1 + math.cos(math.pi * step / steps)) for step in (2, 5)]
    assert [row.learning_rate for row in rows] == pytest.approx([5e-3, *last])


def test_an_epoch_shows_each_frame_as_often_as_asked_with_changes_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[str, bytes]] = []
    original = training.make_example

    def spy(
        frame: TrainingFrame, crop: int | None, settings: Augmentation | None, rng: np.random.Generator
    ) -> Example:
        example = original(frame, crop, settings, rng)
        shown.append((frame.id, example.image.tobytes()))
        return example

    monkeypatch.setattr(training, "make_example", spy)
    params = PARAMS.model_copy(update={"examples_per_frame": 3, "crop": 16})
    train([Phase("only", TRAIN[:4], 1, 1e-3, True)], params)
    assert sorted(name for name, _ in shown) == sorted(3 * [frame.id for frame in TRAIN[:4]])
    assert len(set(shown)) == 12


def test_who_watches_gets_the_averaged_network_after_every_epoch() -> None:
    seen: list[tuple[int, bool]] = []
    params = PARAMS.model_copy(update={"validate_every": 2, "ema_decay": 0.9})
    trained = train(params=params, on_epoch=lambda row, network: seen.append((row.epoch, network.training)))
    validated = [row.epoch for row in trained.history if row.validation_auc is not None]
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5]
    assert not any(training for epoch, training in seen if epoch in validated)


def test_the_best_epoch_is_kept() -> None:
    trained = train([Phase("only", TRAIN, 6, 3e-2, True)])
    aucs = [row.validation_auc for row in trained.history]
    assert None not in aucs
    assert trained.best == trained.history[int(np.argmax(aucs))]  # type: ignore[arg-type]
    score = validate(trained.network, VALIDATION, STATISTICS, PARAMS.loss)
    assert score.auc == trained.best.validation_auc
    assert score.loss == pytest.approx(trained.best.validation_loss, abs=1e-6)


def test_the_earlier_epoch_wins_a_tie() -> None:
    rows = [
        HistoryRow("p", epoch, 1e-3, 0.5, 0.5, auc, selectable=True)
        for epoch, auc in enumerate((None, 0.8, 0.9, 0.9), start=1)
    ]
    assert best_row(rows) is rows[2]
    assert best_row(rows[:1]) is None


def junk_last(good_selectable: bool = False) -> list[Phase]:
    """A phase that learns, then one that unlearns: its targets are upside down."""
    junk = [replace(frame, id=f"junk {frame.id}", target=255 - frame.target) for frame in TRAIN]
    return [
        Phase("good", TRAIN, 4, 1e-2, False, selectable=good_selectable),
        Phase("junk", junk, 3, 1e-2, False),
    ]


def test_only_selectable_phases_give_the_result() -> None:
    trained = train(junk_last())
    aucs = [row.validation_auc or 0.0 for row in trained.history]
    assert max(aucs[4:]) < max(aucs[:4])  # by validation AUC alone the first phase would win
    assert trained.best.phase == "junk"
    assert trained.best == trained.history[4 + int(np.argmax(aucs[4:]))]
    assert [row.selectable for row in trained.history] == [False] * 4 + [True] * 3
    assert validate(trained.network, VALIDATION, STATISTICS, PARAMS.loss).auc == trained.best.validation_auc
    assert train(junk_last(good_selectable=True)).best.phase == "good"


@pytest.mark.parametrize("stop_at", [2, 4, 5])
def test_resuming_keeps_to_selectable_phases(tmp_path: Path, stop_at: int) -> None:
    def interrupt(row: HistoryRow, _: nn.Module) -> None:
        if row.epoch == stop_at:
            raise KeyboardInterrupt

    keeping = Execution(checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(junk_last(), execution=keeping, on_epoch=interrupt)
    with pytest.raises(UserError, match="other settings"):
        train(junk_last(good_selectable=True), execution=keeping)
    assert same(train(junk_last(), execution=keeping), train(junk_last()))


def test_a_run_without_a_selectable_epoch_is_refused() -> None:
    with pytest.raises(UserError, match="no phase with epochs is selectable"):
        train([Phase("first", TRAIN, 1, 1e-2, True, selectable=False), Phase("last", TRAIN, 0, 1e-2, True)])


def test_validation_is_skipped_between_but_not_at_the_end_of_a_phase() -> None:
    params = PARAMS.model_copy(update={"validate_every": 2})
    history = train(params=params).history
    assert [row.validation_auc is not None for row in history] == [False, True, True, True, True]
    assert [row.validation_loss is None for row in history] == [True, False, False, False, False]


def test_same_seed_same_bits_another_seed_not() -> None:
    first = train()
    torch.manual_seed(99)
    assert same(first, train())
    assert not same(first, train(seed=1))


def test_loader_threads_do_not_change_the_result() -> None:
    assert same(train(), train(execution=Execution(workers=3, progress=False)))


def test_the_callers_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(phases(1, 0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, ema_decay: float, deep: bool
) -> None:
    params = PARAMS.model_copy(update={"ema_decay": ema_decay, "deep_supervision": deep})

    def interrupt(row: HistoryRow, _: nn.Module) -> None:
        if row.epoch == stop_at:
            raise KeyboardInterrupt

    keeping = Execution(checkpoint_dir=tmp_path, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(params=params, execution=keeping, on_epoch=interrupt)
    assert (tmp_path / CHECKPOINT_FILE).exists()
    epochs: list[int] = []
    resumed = train(params=params, execution=keeping, on_epoch=lambda row, _: epochs.append(row.epoch))
    assert epochs == list(range(stop_at + 1, 6))
    assert same(resumed, train(params=params))


def test_an_interrupt_within_an_epoch_goes_back_to_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = training.make_example, [0]

    def interrupt(
        frame: TrainingFrame, crop: int | None, settings: Augmentation | None, rng: np.random.Generator
    ) -> Example:
        calls[0] += 1
        if calls[0] == 2 * 7 + 5:  # the second batch of the third epoch
            raise KeyboardInterrupt
        return original(frame, crop, settings, rng)

    keeping = Execution(checkpoint_dir=tmp_path, progress=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training, "make_example", interrupt)
        train(execution=keeping)
    assert same(train(execution=keeping), train())


def test_checkpoints_are_written_when_it_is_time(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(row: HistoryRow, _: nn.Module) -> None:
        if row.epoch == 3:
            raise KilledError  # nothing is saved on the way out, as with a killed process

    keeping = Execution(checkpoint_dir=tmp_path, checkpoint_minutes=1e-9, progress=False)
    with pytest.raises(KilledError):
        train(execution=keeping, on_epoch=kill)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    epochs: list[int] = []
    assert same(train(execution=keeping, on_epoch=lambda row, _: epochs.append(row.epoch)), train())
    assert epochs == [4, 5]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    keeping = Execution(checkpoint_dir=tmp_path, checkpoint_minutes=1e-9, progress=False)
    first = train(execution=keeping)
    epochs: list[int] = []
    assert same(train(execution=keeping, on_epoch=lambda row, _: epochs.append(row.epoch)), first)
    assert epochs == []


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    keeping = Execution(checkpoint_dir=tmp_path, checkpoint_minutes=1e-9, progress=False)
    train(phases(1, 0), execution=keeping)
    with pytest.raises(UserError, match=r"other settings or data; delete .*safetensors"):
        train(phases(1, 0), execution=keeping, seed=1)
    with pytest.raises(UserError, match="other settings"):
        train(phases(2, 0), execution=keeping)


def test_a_broken_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_FILE).write_bytes(b"no safetensors")
    with pytest.raises(UserError, match=r"training\.safetensors is not a checkpoint"):
        train(execution=Execution(checkpoint_dir=tmp_path, progress=False))


def test_a_loss_that_is_no_number_stops_with_advice() -> None:
    with pytest.raises(UserError, match=r"loss became (nan|inf) in epoch 1 .*lower the learning rate"):
        train([Phase("wild", TRAIN, 3, math.inf, False)])


def test_the_rate_of_the_failing_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.segmentation_losses
    steps = 0

    def broken_fifth(*args: object) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return original(*args) * (math.nan if steps == 5 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "segmentation_losses", broken_fifth)
    # Two epochs of three steps: the fifth is 4/6 down the cosine, 0.02 (1 + cos(2π/3)) / 2 = 0.005.
    with pytest.raises(UserError, match=r"epoch 2 \(phase falling, learning rate 0.005\)"):
        train([Phase("falling", TRAIN, 2, 0.02, True, final_learning_rate=0.0)])


def test_a_side_heads_loss_that_is_no_number_stops_too(monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.segmentation_losses

    def broken_second(*args: object) -> torch.Tensor:
        return original(*args) * torch.tensor([1, math.nan, 1])  # type: ignore[arg-type]

    monkeypatch.setattr(training, "segmentation_losses", broken_second)
    with pytest.raises(UserError, match="loss of side head 1 became nan in epoch 1"):
        train(params=PARAMS.model_copy(update={"deep_supervision": True}))


def test_warm_ups_as_long_as_their_phases_are_all_refused() -> None:
    plan = [
        Phase("fine", TRAIN, 2, 1e-3, True, warmup_steps=5),  # of six steps
        Phase("same", TRAIN, 2, 1e-3, True, warmup_steps=6),
        Phase("longer", TRAIN[:4], 1, 1e-3, True, warmup_steps=3),
    ]
    with pytest.raises(UserError) as caught:
        train(plan)
    assert "phase same has 6 warmup_steps, and 6 steps in all" in str(caught.value)
    assert "phase longer has 3 warmup_steps, and 2 steps in all" in str(caught.value)
    assert "fine" not in str(caught.value)
    twice = PARAMS.model_copy(update={"examples_per_frame": 2})
    with pytest.raises(UserError, match="longer has 3 warmup_steps, and 3 steps"):
        train(plan, twice)
    assert len(train(plan[:1]).history) == 2


def test_nothing_to_do_is_an_error() -> None:
    with pytest.raises(UserError, match="0 epochs in all"):
        train(phases(0, 0))
    with pytest.raises(UserError, match="phase empty has no frames"):
        train([Phase("empty", [], 1, 1e-3, False)])


def test_unusable_validation_images_are_all_named() -> None:
    good = VALIDATION[0]
    blank = ValidationFrame(good.working, np.zeros_like(good.vessels), good.fov)
    full = ValidationFrame(good.working, np.ones_like(good.vessels), good.fov)
    with pytest.raises(UserError, match=r"(?s)2 problems.*no vessel.*only vessels"):
        train_segmenter(phases(), [blank, good, full], PARAMS, STATISTICS, seed=0, execution=QUIET)
    with pytest.raises(UserError, match="there is none"):
        train_segmenter(phases(), [], PARAMS, STATISTICS, seed=0, execution=QUIET)


def test_crops_and_frames_of_different_sizes_train() -> None:
    rng = np.random.default_rng(0)
    wide = working_frame(
        "wide", rng.integers(0, 256, (20, 45, 3), dtype=np.uint8), rng.random((20, 45)) < 0.2, None, "native"
    )
    for crop in (None, 16):
        trained = train(
            [Phase("mixed", [*TRAIN[:2], wide], 1, 1e-3, True)], PARAMS.model_copy(update={"crop": crop})
        )
        assert math.isfinite(trained.history[0].train_loss)


def test_the_threshold_is_named_or_fitted() -> None:
    plan = [Phase("only", TRAIN, 4, 1e-2, True)]
    assert train(plan, PARAMS.model_copy(update={"threshold": 0.3})).threshold == 0.3
    fitted = train(plan, PARAMS.model_copy(update={"threshold": "validation"})).threshold
    assert 0 < fitted < 1
    assert fitted == pytest.approx(round(fitted, 3))


def test_history_has_a_row_per_epoch_and_no_timings(tmp_path: Path) -> None:
    trained = train(params=PARAMS.model_copy(update={"validate_every": 2}))
    trained.write_history(tmp_path / "history.csv")
    table = pd.read_csv(tmp_path / "history.csv")
    assert list(table) == [
        "phase",
        "epoch",
        "learning_rate",
        "train_loss",
        "validation_loss",
        "validation_auc",
        "selectable",
        "kept",
    ]
    assert table["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert table["validation_auc"].isna().tolist() == [True, False, False, False, False]
    assert table["epoch"][table["kept"]].tolist() == [trained.best.epoch]


def test_the_validation_table_has_no_blank_cell(tmp_path: Path) -> None:
    trained = train(params=PARAMS.model_copy(update={"validate_every": 2}))
    trained.write_validation(tmp_path / "validation.csv")
    table = pd.read_csv(tmp_path / "validation.csv")
    assert list(table) == ["epoch", "validation_loss", "validation_auc"]
    assert table["epoch"].tolist() == [2, 3, 4, 5]
    expected = [row.validation_auc for row in trained.history[1:]]
    assert table["validation_auc"].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_prefetch_keeps_order_and_passes_errors_on(workers: int) -> None:
    assert list(prefetch(lambda x: x * x, range(9), workers)) == [x * x for x in range(9)]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda x: 1 // x, [1, 0, 2], workers))


def test_weights_that_are_no_longer_finite_are_an_error_before_they_are_validated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = training._EpochTrainer.run

    def broken_last_step(trainer: training._EpochTrainer, epoch: training._Epoch) -> float:
        loss = original(trainer, epoch)
        with torch.no_grad():
            next(trainer.state.network.parameters()).fill_(math.nan)
        return loss

    monkeypatch.setattr(training._EpochTrainer, "run", broken_last_step)
    with pytest.raises(UserError, match=r"weights are no longer finite in epoch 1 \(phase first"):
        train()
