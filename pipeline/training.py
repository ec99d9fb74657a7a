"""Training a segmenter: phases of epochs, Adam, the best epoch by validation AUC, exact resume.

All randomness of an epoch follows from (seed, epoch): a run that was stopped and resumed gives the same
bits on the CPU as one that was not, and so does any number of loader threads.
"""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.augment import make_example
from pipeline.binarise import Binarisation
from pipeline.errors import Problems, UserError
from pipeline.frames import Statistics, network_input, pad_together
from pipeline.losses import deep_supervision_loss, segmentation_losses
from pipeline.models.deep_supervision import DeeplySupervised
from pipeline.models.registry import build_model
from pipeline.segmenter_params import SegmenterParams
from pipeline.training_checkpoint import CheckpointFile, HistoryRow, TrainingState, best_row
from pipeline.training_data import TrainingFrame, ValidationFrame
from pipeline.validation import ValidationScore, check_validation, choose_binarisation, validate

Precision = Literal["float32", "bfloat16"]
T = TypeVar("T")
R = TypeVar("R")

# What a random stream is for; part of its seed.
_WEIGHTS, _DROPBLOCK, _ORDER, _EXAMPLES = range(4)


@dataclass(frozen=True, eq=False)
class Phase:
    """A stretch of training on one set of frames. Weights and optimiser state go on to the next phase.

    Attributes:
        name: for the history.
        frames: at least one.
        epochs: may be 0.
        learning_rate: of Adam; constant within the phase unless there is a final one.
        augment: whether frames are augmented.
        selectable: whether one of its epochs may become the result. False for a phase that only prepares a
            later one: were its epochs selectable, the result could be a network that never saw what the
            later phase shows it.
        final_learning_rate: what the rate falls to along half a cosine over the phase; None: constant.
        warmup_steps: first steps of the phase, over which the rate rises from 0 in a straight line.
    """

    name: str
    frames: Sequence[TrainingFrame]
    epochs: int
    learning_rate: float
    augment: bool
    selectable: bool = True
    final_learning_rate: float | None = None
    warmup_steps: int = 0

    # ------------------------------------------------------------------------------------------------------
    # Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, one cycle over S steps; linear warm-up over W:
    #   η_s = min(1, (s + 1) / W) · (η_min + ½ (η_max − η_min) (1 + cos(π s / S)))
    def rate(self, step: int, steps: int) -> float:
        """Give the learning rate of step `step` (from 0) of the phase's `steps`."""
        rate = self.learning_rate
        if self.final_learning_rate is not None:
            low = self.final_learning_rate
            rate = low + 0.5 * (rate - low) * (1 + math.cos(math.pi * step / steps))
        return rate * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else rate


@dataclass(frozen=True)
class Execution:
    """How to run, which (on the CPU) does not change the result.

    Attributes:
        device: of the network.
        workers: threads that prepare batches ahead; 0 prepares them in between.
        precision: `bfloat16` computes in mixed precision, on CUDA only.
        checkpoint_dir: private folder to resume from; None keeps no checkpoint.
        checkpoint_minutes: between checkpoints; one is also written on an interrupt from the keyboard.
        progress: whether to show a bar.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    precision: Precision = "float32"
    checkpoint_dir: Path | None = None
    checkpoint_minutes: float = 5.0
    progress: bool = True


@dataclass(frozen=True, eq=False)
class TrainedSegmenter:
    """The result: the network of the best epoch, on the CPU in evaluation mode.

    Attributes:
        network: with the weights of `best`.
        threshold: named by the parameters, or fitted as they say.
        binarisation: how masks are made; None where it is the threshold alone.
        best: the epoch with the largest validation AUC among those of selectable phases.
        history: every epoch.
    """

    network: nn.Module
    threshold: float
    binarisation: Binarisation | None
    best: HistoryRow
    history: tuple[HistoryRow, ...]

    def write_history(self, path: Path) -> None:
        """Write one row per epoch as CSV: fields of `HistoryRow`, and `kept`, true in the row of `best`."""
        table = self._table()
        table["kept"] = table["epoch"] == self.best.epoch
        _write_csv(table, path)

    def write_validation(self, path: Path) -> None:
        """Write the validated epochs alone as CSV: epoch, validation_loss, validation_auc, no blank cell."""
        table = self._table()[["epoch", "validation_loss", "validation_auc"]]
        _write_csv(table.dropna(), path)

    def _table(self) -> pd.DataFrame:
        return pd.DataFrame([asdict(row) for row in self.history])


def train_segmenter(
    phases: Sequence[Phase],
    validation: Sequence[ValidationFrame],
    params: SegmenterParams,
    statistics: Statistics,
    *,
    seed: int,
    labelled_training: Sequence[ValidationFrame] = (),
    execution: Execution | None = None,
    on_epoch: Callable[[HistoryRow, nn.Module], None] | None = None,
) -> TrainedSegmenter:
    """Train a network from scratch through all phases and keep the best selectable epoch's weights.

    Args:
        phases: in order; at least one epoch of a selectable phase in all.
        validation: frames that choose the epoch (and the threshold); never trained on.
        labelled_training: the real training images at native size, where the threshold or post-processing is
            fitted on `development`: there they count beside `validation`.
        params: architecture, loss, optimiser, augmentation.
        statistics: of the real training images, to normalise every input with.
        seed: >= 0; decides weights, order, augmentation and DropBlock.
        execution: device and the like; the CPU by default.
        on_epoch: called after each epoch with its row and the averaged network, which is in evaluation mode
            when the epoch was validated; to watch, not to change it.

    Raises:
        UserError: nothing to train on or to validate with, a warm-up that lasts a whole phase, the loss is no
            longer finite, or the checkpoint belongs to another run.
    """
    execution = execution or Execution()
    schedule = _schedule(phases)
    _check_warm_up(phases, params)
    check_validation(validation)
    if params.fits_on_development and not labelled_training:
        raise UserError("fitting on `development` needs labelled training images; got none")
    checkpoint = CheckpointFile(
        execution.checkpoint_dir,
        execution.checkpoint_minutes,
        _identity(phases, validation, params, statistics, seed),
    )
    with _own_random_state(execution.device):
        state = _initial_state(params, seed, execution.device)
        if snapshot := checkpoint.load():
            state.restore(snapshot)
        trainer = _EpochTrainer(state, params, statistics, seed, execution)
        done = len(state.history)
        with (
            tqdm(
                schedule[done:], "train", len(schedule), initial=done, disable=not execution.progress
            ) as bar,
            checkpoint.saved_on_interrupt(),
        ):
            for epoch in bar:
                train_loss = trainer.run(epoch)
                score = None
                if epoch.is_last_of_phase or epoch.number % params.validate_every == 0:
                    _check_finite(epoch, state)
                    score = validate(state.averaged, validation, statistics, params.loss)
                row = _finish_epoch(state, epoch, train_loss, score)
                checkpoint.keep(state.snapshot())
                bar.set_postfix(_figures(state.history), refresh=False)
                if on_epoch is not None:
                    on_epoch(row, state.averaged)

    network, best = _best(state)
    threshold, binarisation = choose_binarisation(
        network,
        {"validation": validation, "development": [*labelled_training, *validation]},
        statistics,
        params.threshold,
        params.postprocess,
        params.views,
    )
    return TrainedSegmenter(network, threshold, binarisation, best, tuple(state.history))


def _best(state: TrainingState) -> tuple[nn.Module, HistoryRow]:
    """Give the network that is kept, on the CPU and without what only training has, and its epoch."""
    best = best_row(state.history)
    if best is None:
        raise AssertionError("the last epoch of every phase is validated")
    state.averaged.load_state_dict(state.best)
    network = state.averaged.cpu().eval()
    return (network.network if isinstance(network, DeeplySupervised) else network), best


@dataclass(frozen=True)
class _Epoch:
    number: int  # from 1, through all phases
    index: int  # from 0, within its phase
    phase: Phase
    is_last_of_phase: bool


def _schedule(phases: Sequence[Phase]) -> list[_Epoch]:
    schedule: list[_Epoch] = []
    for phase in phases:
        if phase.epochs and not phase.frames:
            raise UserError(f"phase {phase.name} has no frames to train on; give it some, or 0 epochs")
        for index in range(phase.epochs):
            schedule.append(_Epoch(len(schedule) + 1, index, phase, index == phase.epochs - 1))
    if not schedule:
        raise UserError("there are 0 epochs in all; expected at least one")
    if not any(epoch.phase.selectable for epoch in schedule):
        raise UserError("no phase with epochs is selectable; expected one whose epochs may become the result")
    return schedule


def _check_warm_up(phases: Sequence[Phase], params: SegmenterParams) -> None:
    """Refuse phases that would end before they reach their learning rate."""
    problems = Problems("the training cannot start")
    for phase in phases:
        steps = phase.epochs * _steps_per_epoch(phase, params)
        if phase.epochs and phase.warmup_steps >= steps:
            problems.add(
                f"phase {phase.name} has {phase.warmup_steps} warmup_steps, and {steps} steps in all "
                f"({phase.epochs} epochs of {steps // phase.epochs}); expected fewer warmup_steps than "
                "steps: lower warmup_steps, or raise epochs"
            )
    problems.raise_if_any()


def _steps_per_epoch(phase: Phase, params: SegmenterParams) -> int:
    """Count the batches of an epoch, the last of which may be smaller."""
    return -(-len(phase.frames) * params.examples_per_frame // params.batch_size)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


class _EpochTrainer:
    """Runs single epochs on a state."""

    def __init__(
        self,
        state: TrainingState,
        params: SegmenterParams,
        statistics: Statistics,
        seed: int,
        execution: Execution,
    ) -> None:
        self.state = state
        self.params = params
        self.statistics = statistics
        self.seed = seed
        self.execution = execution

    def run(self, epoch: _Epoch) -> float:
        """Train for one epoch and return the mean loss of the network's own predictions of its examples."""
        torch.manual_seed(_torch_seed(self.seed, _DROPBLOCK, epoch.number))
        self.state.network.train()
        total, shown = 0.0, 0
        steps = _steps_per_epoch(epoch.phase, self.params)
        for step, (images, targets) in enumerate(self._batches(epoch), epoch.index * steps):
            for group in self.state.optimizer.param_groups:
                group["lr"] = epoch.phase.rate(step, epoch.phase.epochs * steps)
            losses = self._step(images.to(self.execution.device), targets.to(self.execution.device))
            for level, loss in enumerate(losses):
                if not math.isfinite(loss):
                    whose = f"the loss of side head {level}" if level else "the loss"
                    raise _diverged(f"{whose} became {loss}", epoch, self.state)
            total += losses[0] * len(images)
            shown += len(images)
        return total / shown

    def _step(self, images: Tensor, targets: Tensor) -> list[float]:
        """Update the weights once; give the losses of what was predicted, the network's own first."""
        state = self.state
        with self._autocast():
            predictions = _predictions(state.network, images)
        losses = segmentation_losses(predictions, targets, self.params.loss)
        state.optimizer.zero_grad(set_to_none=True)
        deep_supervision_loss(losses).backward()
        state.optimizer.step()
        state.steps += 1
        if state.averaged is not state.network:
            _update_average(state.averaged, state.network, self.params.ema_decay, state.steps)
        return losses.tolist()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.execution.precision == "bfloat16" and self.execution.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _batches(self, epoch: _Epoch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [N, 3, H, W] and targets [N, 1, H, W] of the epoch's examples, in random order."""
        frames = epoch.phase.frames
        count = len(frames) * self.params.examples_per_frame
        order = _generator(self.seed, _ORDER, epoch.number).permutation(count).tolist()
        size = self.params.batch_size
        chunks = [order[start : start + size] for start in range(0, len(order), size)]

        def make_batch(indices: list[int]) -> tuple[Tensor, Tensor]:
            settings = self.params.augmentation if epoch.phase.augment else None
            examples = [
                make_example(
                    frames[index % len(frames)],
                    self.params.crop,
                    settings,
                    _generator(self.seed, _EXAMPLES, epoch.number, index),
                )
                for index in indices
            ]
            images = network_input([example.image for example in examples], self.statistics)
            targets = pad_together([example.target for example in examples])
            return images, torch.from_numpy(targets)[:, None]  # [N, 1, H, W]

        yield from prefetch(make_batch, chunks, self.execution.workers)


def prefetch(make: Callable[[T], R], items: Sequence[T], workers: int) -> Iterator[R]:
    """Map `make` over `items` in order, up to `workers` items ahead in as many threads; 0 uses none."""
    if workers == 0:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _initial_state(params: SegmenterParams, seed: int, device: torch.device) -> TrainingState:
    torch.manual_seed(_torch_seed(seed, _WEIGHTS))
    plain = build_model(params.architecture)
    network = (DeeplySupervised(plain) if params.deep_supervision else plain).to(device)
    averaged = deepcopy(network) if params.ema_decay > 0 else network
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=params.weight_decay)
    return TrainingState(network, averaged, optimizer)


def _predictions(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Give what the loss looks at, the network's own logits [N, 1, H, W] first."""
    return network.predictions(images) if isinstance(network, DeeplySupervised) else [network(images)]


def _finish_epoch(
    state: TrainingState, epoch: _Epoch, train_loss: float, score: ValidationScore | None
) -> HistoryRow:
    """Note the epoch in the history, and keep its weights if they are the best so far."""
    row = HistoryRow(
        phase=epoch.phase.name,
        epoch=epoch.number,
        learning_rate=state.optimizer.param_groups[0]["lr"],
        train_loss=train_loss,
        validation_loss=None if score is None else score.loss,
        validation_auc=None if score is None else score.auc,
        selectable=epoch.phase.selectable,
    )
    state.history.append(row)
    if best_row(state.history) is row:
        weights = state.averaged.state_dict()
        state.best = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
    return row


def _check_finite(epoch: _Epoch, state: TrainingState) -> None:
    tensors = [tensor for tensor in state.averaged.state_dict().values() if tensor.is_floating_point()]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise _diverged("weights are no longer finite", epoch, state)


def _diverged(what: str, epoch: _Epoch, state: TrainingState) -> UserError:
    rate = state.optimizer.param_groups[0]["lr"]  # of the last step: within a phase it may rise and fall
    return UserError(
        f"{what} in epoch {epoch.number} (phase {epoch.phase.name}, learning rate {rate:g}); expected finite "
        "numbers: lower the learning rate, or set runtime.precision to float32"
    )


# ----------------------------------------------------------------------------------------------------------
# Exponential moving average of the weights:  θ̄ ← d θ̄ + (1 − d) θ,  with d = min(decay, (1 + t) / (10 + t))
# at step t, so that the random start is forgotten at once. Batch statistics are copied.
def _update_average(averaged: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        pairs = zip(averaged.parameters(), network.parameters(), strict=True)
        for mean, value in pairs:
            mean.lerp_(value, 1 - decay)
        for kept, current in zip(averaged.buffers(), network.buffers(), strict=True):
            kept.copy_(current)


def _identity(
    phases: Sequence[Phase],
    validation: Sequence[ValidationFrame],
    params: SegmenterParams,
    statistics: Statistics,
    seed: int,
) -> dict[str, Any]:
    """Describe a run: a checkpoint must come from an equal one."""
    return {
        "seed": seed,
        "params": params.model_dump(),
        "statistics": statistics.model_dump(),
        "phases": [
            {
                "name": phase.name,
                "epochs": phase.epochs,
                "learning_rate": phase.learning_rate,
                "augment": phase.augment,
                "selectable": phase.selectable,
                "final_learning_rate": phase.final_learning_rate,
                "warmup_steps": phase.warmup_steps,
                "frames": [frame.id for frame in phase.frames],
            }
            for phase in phases
        ],
        "validation": [frame.working.id for frame in validation],
    }


@contextlib.contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's global generators to the caller as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, *stream])


def _torch_seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0])


def _figures(history: Sequence[HistoryRow]) -> dict[str, str]:
    row, best = history[-1], best_row(history)
    figures = {"phase": row.phase, "loss": f"{row.train_loss:.4f}"}
    if best is not None:
        figures["best AUC"] = f"{best.validation_auc:.4f}"
    return figures
