"""Following a training while it runs: curves, example predictions, warnings, and lines of progress.

Nothing here changes the training, and nothing of it is a result: the files are for people, and gone with the
private folder they lie in once the training succeeds. They are rebuilt from the checkpoint's history after an
interruption, so that the curves are whole. Nothing is sent anywhere: these are photographs of people's eyes.
"""

import contextlib
import csv
import datetime
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import nn

from pipeline.frames import Statistics, native_probability, predict_logits, scale_frame
from pipeline.images import read_rgb, write_png
from pipeline.overlay import comparison_overlay, with_legend
from pipeline.training import Phase
from pipeline.training_checkpoint import CHECKPOINT_FILE, HistoryRow
from pipeline.training_data import TrainingFrame, ValidationFrame

log = logging.getLogger(__name__)

CURVES_FOLDER = "curves"
EXAMPLES_FOLDER = "examples"
WARNINGS_FILE = "warnings.csv"
MOST_EXAMPLES = 4

_PICTURES = 8  # spread over the training, and one at the first validation
_LOOKS = 40  # at most so many checks of the mask: one costs a prediction
_FIRST_LOOK = 0.1  # of the training; before, a mask may well be empty
_PANEL = 400  # longest side of a picture's panels, in pixels
_GAP = 4
_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_REPORTS = 5.0  # dvclive's page reloads itself as often
_REPORT_SHARE = 200  # a report is written again after so many times the seconds it took: at most 0.5%

_OFFLINE = "DVC_STUDIO_OFFLINE"

MaskKind = Literal["mixed", "all background", "all vessel"]


@dataclass(frozen=True)
class _Warning:
    epoch: int
    mask: MaskKind
    message: str


class TrainingWatch:
    """Called after every epoch by `train_segmenter`; a context manager, which leaves the last curves on disk.

    In `folder` appear `report.html` (dvclive's page of curves and the latest examples, which reloads itself),
    `curves/**.tsv` (for `dvc plots show`), `examples/epoch_NNNNN.png` and, if there is
    something to warn of, `warnings.csv`. A disk that cannot be written ends the watch with a warning, not
    the training.

    Args:
        folder: private to the run; what an earlier part of the run left there is replaced.
        phases: as given to `train_segmenter`.
        validation: the first `MOST_EXAMPLES` are drawn, all may be looked at.
        statistics: to normalise the input with.
        threshold: probability from which on a pixel is vessel.
        checkpoint_dir: as given to `train_segmenter`: where the history before an interruption is.
        say: takes a line of progress after validated epochs, at most one every 30 s, and one after the last
            epoch; None where a bar shows it already.
        clock: seconds.
    """

    def __init__(
        self,
        folder: Path,
        phases: Sequence[Phase],
        validation: Sequence[ValidationFrame],
        statistics: Statistics,
        threshold: float,
        *,
        checkpoint_dir: Path | None = None,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._validation = validation
        self._statistics = statistics
        self._threshold = threshold
        self._checkpoint = None if checkpoint_dir is None else checkpoint_dir / CHECKPOINT_FILE
        # How much there is to do in each epoch: phases differ in their number of frames.
        self._work = [len(phase.frames) for phase in phases for _ in range(phase.epochs)]
        self._progress = _Progress(self._work, say, clock)
        self._clock = clock
        self._curves: _Curves | None = None
        self._previous = 0  # validated epoch before this one; 0: none
        self._warnings: list[_Warning] = []
        self._blind = False

    def __call__(self, row: HistoryRow, network: nn.Module) -> None:
        """Take note of an epoch.

        Args:
            row: the epoch.
            network: as it was validated, in evaluation mode, where the row has a validation AUC.
        """
        self._progress.note(row)
        if not self._blind:
            try:
                self._watch(row, network)
            except OSError as error:
                self._blind = True
                log.warning("no more curves and examples, while the training goes on: %s", error)
        if row.validation_auc is not None:
            self._previous = row.epoch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._curves is None or self._blind:
            return
        try:
            self._curves.publish()
        except OSError as problem:
            log.warning("the last curves could not be written: %s", problem)
            return
        if isinstance(error, Exception):
            log.warning("curves and examples until the error are in %s", self.folder)

    def _watch(self, row: HistoryRow, network: nn.Module) -> None:
        if self._curves is None:
            self._begin(row)
        assert self._curves is not None
        self._curves.add(row)
        if row.validation_auc is not None:
            if self._is_time(row.epoch, _LOOKS) and row.epoch > _FIRST_LOOK * len(self._work):
                self._look_at_masks(row.epoch, network)
            if self._previous == 0 or self._is_time(row.epoch, _PICTURES):
                self._draw(row.epoch, network)
        self._curves.publish_if_time(self._clock(), is_last=row.epoch == len(self._work))

    def _begin(self, row: HistoryRow) -> None:
        """Start the curves with the epochs before this one, which an earlier process ran."""
        earlier = [past for past in checkpoint_history(self._checkpoint) if past.epoch < row.epoch]
        self._previous = max((past.epoch for past in earlier if past.validation_auc is not None), default=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        warnings = _read_warnings(self.folder / WARNINGS_FILE)
        self._warnings = [warning for warning in warnings if warning.epoch < row.epoch]
        self._curves = _Curves(self.folder)
        for past in earlier:
            self._curves.add(past)
        drawn = sorted((self.folder / EXAMPLES_FOLDER).glob("epoch_*.png"))
        older = [path for path in drawn if path.name < _example_name(row.epoch)]
        if older:
            self._curves.show(read_rgb(older[-1]))

    def _is_time(self, epoch: int, times: int) -> bool:
        """Whether one of so many equal parts of the training ended since the last validation.

        It depends on the epochs alone: a resumed run does what an uninterrupted one does.
        """
        total = len(self._work)
        return times * epoch // total > times * self._previous // total

    def _look_at_masks(self, epoch: int, network: nn.Module) -> None:
        mask = common_mask(network, self._validation, self._statistics, self._threshold)
        before = self._warnings[-1].mask if self._warnings else "mixed"
        if mask == before:
            return
        message = (
            f"epoch {epoch}: the masks of the validation images are no longer {before}"
            if mask == "mixed"
            else (
                f"epoch {epoch} of {len(self._work)}: the mask of every validation image is {mask} at the "
                f"threshold {self._threshold:g}; if the next ones are too, stop the training and lower the "
                "learning rate, or check the labels of the training images"
            )
        )
        log.warning(message)
        self._warnings.append(_Warning(epoch, mask, message))
        _write_warnings(self.folder / WARNINGS_FILE, self._warnings)

    def _draw(self, epoch: int, network: nn.Module) -> None:
        frames = [frame.working for frame in self._validation]
        picture = example_predictions(network, frames, self._statistics, self._threshold)
        path = self.folder / EXAMPLES_FOLDER / _example_name(epoch)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        write_png(partial, picture)
        partial.replace(path)
        assert self._curves is not None
        self._curves.show(picture)


def checkpoint_history(path: Path | None) -> list[HistoryRow]:
    """Read the finished epochs of a checkpoint that `train_segmenter` has accepted; none if there is none."""
    if path is None or not path.exists():
        return []
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    return [HistoryRow(**row) for row in record["history"]]


def common_mask(
    network: nn.Module, frames: Sequence[ValidationFrame], statistics: Statistics, threshold: float
) -> MaskKind:
    """Say whether the masks of all frames are nothing but background, or nothing but vessel.

    Looks at no more frames than it has to: at one, as a rule.

    Args:
        network: in evaluation mode.
        frames: at least one; the mask is judged inside the field of view, at native size.
        statistics: to normalise the input with.
        threshold: probability from which on a pixel is vessel.
    """
    kinds: set[MaskKind] = set()
    for frame in frames:
        logits = predict_logits(network, frame.working.image, statistics)
        marked = native_probability(logits, *frame.vessels.shape)[frame.fov] >= threshold
        if not marked.any():
            kinds.add("all background")
        elif marked.all():
            kinds.add("all vessel")
        else:
            return "mixed"
        if len(kinds) > 1:
            return "mixed"
    return kinds.pop()


def example_predictions(
    network: nn.Module, frames: Sequence[TrainingFrame], statistics: Statistics, threshold: float
) -> NDArray[np.uint8]:
    """Draw predictions, a row for each of the first `MOST_EXAMPLES` frames.

    Equal weights and frames give equal pixels on the CPU.

    Args:
        network: in evaluation mode.
        frames: at least one, at working resolution.
        statistics: to normalise the input with.
        threshold: probability from which on a pixel is vessel.

    Returns:
        uint8 [H, W, 3]: photograph, probability (black 0, white 1) and comparison with the label side by
        side, panels of at most 400 px, and below them what the colours mean.
    """
    rows = []
    for frame in frames[:MOST_EXAMPLES]:
        probability = predict_logits(network, frame.image, statistics).sigmoid().numpy()
        gray = (probability * 255).round().astype(np.uint8)
        overlay = comparison_overlay(frame.image, probability >= threshold, frame.target >= 128, frame.fov)
        full = (frame.image, np.repeat(gray[:, :, None], 3, axis=2), overlay)
        rows.append([_at_most(panel, _PANEL) for panel in full])
    height = max(panels[0].shape[0] for panels in rows)
    width = max(panels[0].shape[1] for panels in rows)
    canvas = np.zeros((len(rows) * (height + _GAP) - _GAP, 3 * (width + _GAP) - _GAP, 3), np.uint8)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            top, left = row * (height + _GAP), column * (width + _GAP)
            canvas[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return with_legend(canvas)


def _example_name(epoch: int) -> str:
    return f"epoch_{epoch:05d}.png"


def _at_most(panel: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    return scale_frame(panel, side) if max(panel.shape[:2]) > side else panel


class _Curves:
    """dvclive, kept from everything but its own folder: no dvc.yaml, no experiment, no DVC Studio."""

    def __init__(self, folder: Path) -> None:
        from dvclive import Live  # loads dvc: half a second that only a training has to spend

        # Were DVCLIVE_RESUME set, dvclive would go on behind the curves that are rebuilt here.
        (folder / "metrics.json").unlink(missing_ok=True)
        curves, link = folder / CURVES_FOLDER, folder / "plots" / "metrics"
        if curves.exists():
            shutil.rmtree(curves)
        curves.mkdir()
        # A folder named `metrics` must not be deleted in a stage: rmtree opens it by its bare name, which
        # cannot be told from the project's metrics/, and that is closed to training.
        link.unlink(missing_ok=True)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path("..", CURVES_FOLDER), target_is_directory=True)
        with _without_studio(), _failing_as_os_error():
            self._live: Live = Live(dir=str(folder), report="html", dvcyaml=None, save_dvc_exp=False)
        # Sending happens in a thread of its own, which looks for a token again: skip every event as well.
        skipped: set[str] | None = getattr(self._live, "_studio_events_to_skip", None)
        if skipped is not None:
            skipped |= {"start", "data", "done"}
        self._next = 0.0

    def add(self, row: HistoryRow) -> None:
        self._live.step = row.epoch
        figures = {
            "learning_rate": row.learning_rate,
            "train/loss": row.train_loss,
            "validation/loss": row.validation_loss,
            "validation/auc": row.validation_auc,
        }
        with _failing_as_os_error():
            for name, value in figures.items():
                if value is not None:
                    self._live.log_metric(name, value)

    def show(self, picture: NDArray[np.uint8]) -> None:
        with _failing_as_os_error():
            self._live.log_image("examples.png", picture)

    def publish_if_time(self, now: float, *, is_last: bool) -> None:
        if now >= self._next or is_last:
            start = time.monotonic()
            self.publish()
            pause = _REPORT_SHARE * (time.monotonic() - start)
            self._next = now + max(_SECONDS_BETWEEN_REPORTS, pause)

    def publish(self) -> None:
        with _failing_as_os_error():
            self._live.sync()


@contextlib.contextmanager
def _failing_as_os_error() -> Iterator[None]:
    """Make any error of dvclive one that ends the watch alone.

    In a repository without a commit, for instance, it raises what a library behind its libraries defines.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"dvclive failed with {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _without_studio() -> Iterator[None]:
    """Switch DVC Studio off, whatever tokens environment and DVC's configuration hold."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OFFLINE]
        else:
            os.environ[_OFFLINE] = before


class _Progress:
    """Lines of text for logs, where a bar would be noise."""

    def __init__(
        self, work: Sequence[int], say: Callable[[str], None] | None, clock: Callable[[], float]
    ) -> None:
        self._work = work
        self._say = say
        self._clock = clock
        self._start = clock()
        # Epoch of this process and its end: what it took holds start-up, and foretells nothing.
        self._first: tuple[int, float] | None = None
        self._last_line: float | None = None

    def note(self, row: HistoryRow) -> None:
        """Say how far the training is, if it is time."""
        now, total = self._clock(), len(self._work)
        if self._first is None:
            self._first = (row.epoch, now)
        due = self._last_line is None or now - self._last_line >= _SECONDS_BETWEEN_LINES
        if self._say is None or row.validation_auc is None or not (due or row.epoch == total):
            return
        self._last_line = now
        self._say(
            f"epoch {row.epoch}/{total} ({row.phase}): loss {row.train_loss:.4f}, validation AUC "
            f"{row.validation_auc:.4f}, {_duration(now - self._start)} elapsed{self._left(row.epoch, now)}"
        )

    def _left(self, epoch: int, now: float) -> str:
        """Foresee the end from the epochs after the first one; empty while there is only that one."""
        assert self._first is not None
        first, end = self._first
        done, rest = sum(self._work[first:epoch]), sum(self._work[epoch:])
        if not rest:
            return f", {_duration(0)} left"
        return f", {_duration((now - end) * rest / done)} left" if done else ""


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _write_warnings(path: Path, warnings: Sequence[_Warning]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("epoch", "mask", "message"))
        writer.writerows((warning.epoch, warning.mask, warning.message) for warning in warnings)
    partial.replace(path)


def _read_warnings(path: Path) -> list[_Warning]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds: dict[str, MaskKind] = {kind: kind for kind in ("mixed", "all background", "all vessel")}
    return [_Warning(int(row["epoch"]), kinds[row["mask"]], row["message"]) for row in rows]
