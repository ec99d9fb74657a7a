"""What happened in training: averages over a tick, one row of history.csv each."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegan2.files import write_atomically

COLUMNS = (
    "tick",
    "kimg",
    "p",
    "r_t",
    "loss_G",
    "loss_D",
    "scores_real",
    "scores_fake",
    "pl_mean",
    "pl_penalty",
    "r1_penalty",
)
Row = dict[str, float | None]


class TickAverages:
    """Averages of the values reported since the last tick."""

    def __init__(self) -> None:
        # On CUDA they stay there: reading one waits for all that the GPU has to do.
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def report(self, name: str, values: Tensor) -> None:
        """Take note of values of any shape."""
        values = values.detach()
        total = values.sum(dtype=torch.float32)
        self._sums[name] = self._sums.get(name, 0.0) + (total.double() if total.is_cuda else float(total))
        self._counts[name] = self._counts.get(name, 0) + values.numel()

    def mean(self, name: str) -> float | None:
        """Give the mean since the last tick; None when nothing was reported."""
        return float(self._sums[name]) / self._counts[name] if self._counts.get(name) else None

    def clear(self) -> None:
        """Begin a new tick."""
        self._sums.clear()
        self._counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs, ready for JSON."""
        sums = {name: float(total) for name, total in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._sums = dict(state["sums"])
        self._counts = dict(state["counts"])


def write_history(path: Path, rows: list[Row]) -> None:
    """Write history.csv: six significant digits, empty where nothing was measured, no timings."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_format(row[name]) for name in COLUMNS])
    write_atomically(path, text.getvalue().encode())


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
