"""Saving the state of a training run, and going on from it bit for bit.

A checkpoint is one safetensors file: weights, optimiser moments and best weights as tensors, everything
else as JSON in the file's metadata. It is written under another name and then renamed, so that a run that
is killed while writing leaves the previous one.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError

CHECKPOINT_FILE = "training.safetensors"


@dataclass(frozen=True)
class HistoryRow:
    """One epoch. The columns of history.csv.

    Attributes:
        phase: its name.
        epoch: counted from 1 through all phases.
        learning_rate: of the epoch's last step.
        train_loss: mean over the epoch's examples; of the network's own predictions, also where deep
            supervision looks at others besides.
        validation_loss, validation_auc: None in epochs without validation.
        selectable: whether the epoch's weights may be kept as the result.
    """

    phase: str
    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float | None
    validation_auc: float | None
    selectable: bool


def best_row(history: Sequence[HistoryRow]) -> HistoryRow | None:
    """Find the selectable epoch of the largest validation AUC, the earliest among equals.

    Returns:
        None before any selectable epoch was validated.
    """
    candidates = [row for row in history if row.selectable and row.validation_auc is not None]
    return max(candidates, key=lambda row: row.validation_auc or 0.0, default=None)


@dataclass
class TrainingState:
    """Everything that a run carries from one epoch to the next; random draws depend on the epoch alone.

    Attributes:
        network: what the optimiser works on.
        averaged: exponential moving average of its weights; the network itself when there is none.
        optimizer: Adam.
        steps: optimiser steps so far.
        best: weights of the epoch that `best_row` names; empty before there is one.
        history: finished epochs.
    """

    network: nn.Module
    averaged: nn.Module
    optimizer: torch.optim.Adam
    steps: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[HistoryRow] = field(default_factory=list)

    def snapshot(self) -> "Snapshot":
        """Copy the state to the CPU."""
        groups = {"network": self.network.state_dict(), "best": self.best}
        if self.averaged is not self.network:
            groups["averaged"] = self.averaged.state_dict()
        for index, moments in self.optimizer.state_dict()["state"].items():
            groups[f"adam.{index}"] = moments
        tensors = {
            f"{group}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for group, content in groups.items()
            for name, tensor in content.items()
        }
        return Snapshot(tensors, self.steps, [asdict(row) for row in self.history])

    def restore(self, snapshot: "Snapshot") -> None:
        """Take over a snapshot of a run with the same settings."""
        groups: dict[str, dict[str, Tensor]] = {}
        for key, tensor in snapshot.tensors.items():
            group, name = key.split("/", 1)
            groups.setdefault(group, {})[name] = tensor
        self.network.load_state_dict(groups["network"])
        if self.averaged is not self.network:
            self.averaged.load_state_dict(groups["averaged"])
        moments = {
            int(group.removeprefix("adam.")): content
            for group, content in groups.items()
            if group.startswith("adam.")
        }
        self.optimizer.load_state_dict(
            {"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )
        self.best = groups.get("best", {})
        self.steps = snapshot.steps
        self.history = [HistoryRow(**row) for row in snapshot.history]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state at rest: tensors on the CPU, and what JSON can hold."""

    tensors: dict[str, Tensor]
    steps: int
    history: list[dict[str, Any]]


class CheckpointFile:
    """The checkpoint of one run in its private folder.

    Attributes:
        folder: created when missing; None keeps no checkpoint.
        minutes: at least so many between two writes.
        identity: what the run is (JSON values); another run's checkpoint is refused.
    """

    def __init__(self, folder: Path | None, minutes: float, identity: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / CHECKPOINT_FILE
        self.identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self._seconds = 60 * minutes
        self._written_at = time.monotonic()
        self._unwritten: Snapshot | None = None

    def load(self) -> Snapshot | None:
        """Read the checkpoint, if there is one.

        Raises:
            UserError: it is broken, or of a run with other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        advice = f"delete {self.path} to start afresh"
        try:
            with safe_open(self.path, framework="pt") as file:
                record = json.loads(file.metadata()["record"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{self.path} is not a checkpoint of ours ({error}); {advice}") from error
        if record["identity"] != self.identity:
            raise UserError(f"{self.path} belongs to a run with other settings or data; {advice}")
        return Snapshot(tensors, record["steps"], record["history"])

    def keep(self, snapshot: Snapshot) -> None:
        """Remember the state after an epoch, and write it when it is time."""
        self._unwritten = snapshot
        if time.monotonic() - self._written_at >= self._seconds:
            self.flush()

    @contextlib.contextmanager
    def saved_on_interrupt(self) -> Iterator[None]:
        """Write the last finished epoch when the block is left by an interrupt from the keyboard."""
        try:
            yield
        except KeyboardInterrupt:
            self.flush()
            raise

    def flush(self) -> None:
        """Write the remembered state now, unless it is on disk already."""
        if self.path is None or self._unwritten is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "identity": self.identity,
            "steps": self._unwritten.steps,
            "history": self._unwritten.history,
        }
        partial = self.path.with_suffix(".partial")
        save_file(self._unwritten.tensors, partial, metadata={"record": json.dumps(record)})
        partial.replace(self.path)
        self._written_at = time.monotonic()
        self._unwritten = None
