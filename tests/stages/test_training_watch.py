"""Watching a training: it changes nothing, its curves survive an interruption, and it warns of dead masks."""

import logging
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.frames import Statistics
from pipeline.images import read_rgb
from pipeline.overlay import FALSE_ALARM, HIT, MISS
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Execution, Phase, TrainedSegmenter, train_segmenter
from pipeline.training_checkpoint import HistoryRow
from pipeline.training_data import TrainingFrame, ValidationFrame
from stages.training_watch import TrainingWatch, checkpoint_history, common_mask, example_predictions

SIZE = 16
STATISTICS = Statistics(mean=(0, 0, 0), std=(1, 1, 1))
PARAMS = SegmenterParams(
    base_width=2, dropblock_size=3, dropblock_keep=0.9, resolution=SIZE, batch_size=2, validate_every=2
)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # dvclive looks for a repository around the working directory
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(seed: int) -> ValidationFrame:
    rng = np.random.default_rng(seed)
    vessels = np.zeros((SIZE, SIZE), bool)
    vessels[rng.integers(3, SIZE - 3), :] = True
    image = rng.integers(20, 90, (SIZE, SIZE, 3), dtype=np.uint8)
    image[vessels] += np.uint8(140)
    fov = np.ones((SIZE, SIZE), bool)
    return ValidationFrame(TrainingFrame(f"{seed}", image, vessels * np.uint8(255), fov), vessels, fov)


TRAIN = [picture(seed).working for seed in range(4)]
VALIDATION = [picture(seed) for seed in (100, 101)]


class Red(nn.Module):
    """Logit: `slope` · red + `offset`, red in 0..1."""

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([slope, offset]))

    def forward(self, images: Tensor) -> Tensor:
        return self.weights[0] * images[:, :1] + self.weights[1]


SPLITS, ALL_VESSEL, ALL_BACKGROUND = Red(100.0, -45.0), Red(0.0, 9.0), Red(0.0, -9.0)


def phases(epochs: int = 8) -> list[Phase]:
    return [Phase("one", TRAIN, epochs // 2, 1e-2, True), Phase("two", TRAIN[:2], epochs // 2, 1e-3, False)]


def make_watch(folder: Path, plan: Sequence[Phase] | None = None, **options: object) -> TrainingWatch:
    plan = phases() if plan is None else plan
    return TrainingWatch(folder, plan, VALIDATION, STATISTICS, 0.5, **options)  # type: ignore[arg-type]


def row(epoch: int, auc: float | None = 0.9) -> HistoryRow:
    loss = None if auc is None else 0.25
    return HistoryRow("one", epoch, 1e-3, 1 / epoch, loss, auc, True)


def run(
    checkpoint_dir: Path | None, on_epoch: object, plan: Sequence[Phase] | None = None
) -> TrainedSegmenter:
    execution = Execution(progress=False, checkpoint_dir=checkpoint_dir, checkpoint_minutes=1e-9)
    plan = phases() if plan is None else plan
    return train_segmenter(
        plan,
        VALIDATION,
        PARAMS,
        STATISTICS,
        seed=3,
        execution=execution,
        on_epoch=on_epoch,  # type: ignore[arg-type]
    )


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    table = pd.read_csv(folder / "curves" / f"{name}.tsv", sep="\t")
    return list(table.itertuples(index=False, name=None))


def test_curves_are_the_history_and_watching_changes_nothing(tmp_path: Path) -> None:
    with make_watch(tmp_path / "live") as watch:
        watched = run(None, watch)
    alone = run(None, None)
    assert watched.history == alone.history
    weights = alone.network.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in watched.network.state_dict().items())
    assert curve(tmp_path / "live", "train/loss") == [(r.epoch, r.train_loss) for r in alone.history]
    assert curve(tmp_path / "live", "learning_rate") == [(r.epoch, r.learning_rate) for r in alone.history]
    for name, field in (("validation/auc", "validation_auc"), ("validation/loss", "validation_loss")):
        expected = [(r.epoch, getattr(r, field)) for r in alone.history if r.epoch % 2 == 0]
        assert curve(tmp_path / "live", name) == expected
    assert "validation/auc" in (tmp_path / "live/report.html").read_text()
    assert not (tmp_path / "dvc.yaml").exists()


def test_after_an_interruption_curves_and_examples_are_those_of_one_run(tmp_path: Path) -> None:
    with make_watch(tmp_path / "live") as watch:
        run(None, watch)
    again = tmp_path / "again"

    def stop(after: HistoryRow, network: nn.Module) -> None:
        first(after, network)
        if after.epoch == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), make_watch(again / "live", checkpoint_dir=again) as first:
        run(again, stop)
    # Of a process that was killed later than its last checkpoint: epochs that will be run again.
    first(row(6), SPLITS)
    assert [past.epoch for past in checkpoint_history(again / "training.safetensors")] == [1, 2, 3, 4, 5]
    with make_watch(again / "live", checkpoint_dir=again) as second:
        run(again, second)
    for name in ("train/loss", "validation/auc", "validation/loss", "learning_rate"):
        assert curve(again / "live", name) == curve(tmp_path / "live", name)
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "live/examples").iterdir()}
    assert pictures == {path.name: path.read_bytes() for path in (again / "live/examples").iterdir()}
    assert sorted(pictures) == [f"epoch_{epoch:05d}.png" for epoch in (2, 4, 6, 8)]


def test_a_resumed_report_shows_the_last_examples_at_once(tmp_path: Path) -> None:
    run(tmp_path, None)
    make_watch(tmp_path / "live")(row(2), ALL_VESSEL)
    resumed = make_watch(tmp_path / "live", phases(20), checkpoint_dir=tmp_path)
    resumed(row(9, None), SPLITS)
    drawn = read_rgb(tmp_path / "live/examples/epoch_00002.png")
    assert np.array_equal(read_rgb(tmp_path / "live/plots/images/examples.png"), drawn)


def test_pictures_are_spread_over_the_training(tmp_path: Path) -> None:
    watch = make_watch(tmp_path, phases(80))
    for epoch in range(1, 81):
        watch(row(epoch, 0.9 if epoch % 3 == 0 or epoch == 80 else None), SPLITS)
    drawn = sorted(int(path.stem.removeprefix("epoch_")) for path in (tmp_path / "examples").iterdir())
    assert drawn == [
        3,
        12,
        21,
        30,
        42,
        51,
        60,
        72,
        80,
    ]  # the first, and the first in each eighth or at its end


def test_the_picture_shows_photograph_probability_and_comparison() -> None:
    frame = VALIDATION[0].working
    shown = example_predictions(SPLITS, [frame], STATISTICS, 0.5)
    photograph, probability, comparison = (
        shown[:SIZE, left : left + SIZE] for left in (0, SIZE + 4, 2 * (SIZE + 4))
    )
    assert np.array_equal(photograph, frame.image)
    red = frame.image[..., 0] / 255
    expected = np.round(255 / (1 + np.exp(45 - 100 * red)))
    assert np.abs(probability[..., 1] - expected).max() <= 1
    vessel = frame.target == 255
    assert (comparison[vessel] == HIT.colour).all()
    everything = example_predictions(ALL_VESSEL, [frame], STATISTICS, 0.5)[:SIZE, 2 * (SIZE + 4) :]
    nothing = example_predictions(ALL_BACKGROUND, [frame], STATISTICS, 0.5)[:SIZE, 2 * (SIZE + 4) :]
    assert (everything[~vessel] == FALSE_ALARM.colour).all() and (nothing[vessel] == MISS.colour).all()


def test_no_more_than_four_rows_and_large_frames_shrink() -> None:
    large = TrainingFrame(
        "large", np.zeros((500, 800, 3), np.uint8), np.zeros((500, 800), np.uint8), np.ones((500, 800), bool)
    )
    four = example_predictions(SPLITS, [large, *TRAIN[:3]], STATISTICS, 0.5)
    assert four.shape[1] == 3 * 400 + 2 * 4  # in height the legend comes on top
    assert four.shape[0] > 4 * 250 + 3 * 4
    assert np.array_equal(example_predictions(SPLITS, [large, *TRAIN], STATISTICS, 0.5), four)


@pytest.mark.parametrize(
    ("network", "expected"),
    [(SPLITS, "mixed"), (ALL_VESSEL, "all vessel"), (ALL_BACKGROUND, "all background")],
)
def test_masks_of_one_kind_are_told(network: Red, expected: str) -> None:
    assert common_mask(network, VALIDATION, STATISTICS, 0.5) == expected


def test_one_frame_of_vessel_and_one_of_background_are_mixed() -> None:
    bright = np.full((SIZE, SIZE, 3), 255, np.uint8)
    shape = VALIDATION[0]
    frames = [
        ValidationFrame(TrainingFrame("", image, shape.working.target, shape.fov), shape.vessels, shape.fov)
        for image in (bright, bright * np.uint8(0))
    ]
    assert common_mask(SPLITS, frames, STATISTICS, 0.5) == "mixed"
    assert common_mask(SPLITS, frames[:1], STATISTICS, 0.5) == "all vessel"


def test_pixels_outside_the_field_of_view_do_not_count() -> None:
    fov = ~VALIDATION[0].vessels
    frame = ValidationFrame(VALIDATION[0].working, VALIDATION[0].vessels, fov)
    assert common_mask(SPLITS, [frame], STATISTICS, 0.5) == "all background"


def test_a_dead_mask_is_warned_of_once_and_not_in_the_first_tenth(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = make_watch(tmp_path, phases(40))
    for epoch in range(1, 5):
        watch(row(epoch), ALL_BACKGROUND)
    assert not caplog.records
    for epoch in range(5, 9):
        watch(row(epoch), ALL_BACKGROUND)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "epoch 5 of 40" in record.message and "all background" in record.message
    # Resumed after epoch 8 with the same mask: known already. Then the network comes alive.
    resumed = make_watch(tmp_path, phases(40))
    resumed(row(9), ALL_BACKGROUND)
    assert len(caplog.records) == 1
    resumed(row(10), SPLITS)
    assert "no longer all background" in caplog.messages[-1]
    table = pd.read_csv(tmp_path / "warnings.csv")
    assert table["epoch"].tolist() == [5, 10] and table["mask"].tolist() == ["all background", "mixed"]
    # Resumed before the warning: it is given again, and stands once.
    make_watch(tmp_path, phases(40))(row(5), ALL_BACKGROUND)
    assert pd.read_csv(tmp_path / "warnings.csv")["epoch"].tolist() == [5]


def test_a_loss_that_is_not_finite_leaves_the_curves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = [Phase("fine", TRAIN, 2, 1e-3, False), Phase("broken", TRAIN, 2, 1e30, False)]
    with (
        pytest.raises(UserError, match=r"the loss became .* in epoch 3"),
        make_watch(tmp_path / "live", plan) as watch,
    ):
        run(None, watch, plan)
    assert [epoch for epoch, _ in curve(tmp_path / "live", "train/loss")] == [1, 2]
    assert '"step": 2' in (tmp_path / "live/metrics.json").read_text()
    assert str(tmp_path / "live") in caplog.messages[-1]


def test_lines_of_progress_foresee_the_end(tmp_path: Path) -> None:
    lines: list[str] = []
    now = 1000.0
    watch = make_watch(tmp_path, say=lines.append, clock=lambda: now)
    # Epochs 1 to 4 have four frames, 5 to 8 two; a frame takes 10 s. Resumed behind epoch 2.
    for epoch, seconds, auc in (
        (3, 40, None),
        (4, 40, 0.91),
        (5, 20, 0.92),
        (6, 20, 0.93),
        (7, 20, None),
        (8, 1, 0.95),
    ):
        now += seconds
        watch(row(epoch, auc), SPLITS)
    assert lines == [
        "epoch 4/8 (one): loss 0.2500, validation AUC 0.9100, 0:01:20 elapsed, 0:01:20 left",
        "epoch 6/8 (one): loss 0.1667, validation AUC 0.9300, 0:02:00 elapsed, 0:00:40 left",
        "epoch 8/8 (one): loss 0.1250, validation AUC 0.9500, 0:02:21 elapsed, 0:00:00 left",
    ]


def test_the_time_left_leaves_out_what_starting_took(tmp_path: Path) -> None:
    lines: list[str] = []
    now = 0.0
    watch = make_watch(tmp_path, say=lines.append, clock=lambda: now)
    for epoch, seconds in ((1, 900), (2, 40)):  # epochs 1 to 4 have four frames, 5 to 8 two
        now += seconds
        watch(row(epoch), SPLITS)
    assert lines[0].endswith("0:15:00 elapsed")  # nothing to foresee the end from
    assert lines[1].endswith("0:15:40 elapsed, 0:02:40 left")  # 16 frames at 10 s


@pytest.fixture
def studio() -> Iterator[tuple[str, list[str]]]:
    """Pose as DVC Studio: the address, and what was posted."""
    posted: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("token", ["DVC_STUDIO_TOKEN", "STUDIO_TOKEN", "configuration", "dvc exp run"])
def test_nothing_is_sent_to_dvc_studio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, studio: tuple[str, list[str]], token: str
) -> None:
    url, posted = studio
    for name in [name for name in os.environ if name.startswith(("DVC_", "STUDIO_"))]:
        monkeypatch.delenv(name)
    me = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    for command in (
        ("init", "-q"),
        (*me, "commit", "-q", "--allow-empty", "-m", "first"),
        ("remote", "add", "origin", "https://example.org/eyes.git"),
    ):
        subprocess.run(("git", *command), check=True)
    (tmp_path / ".dvc").mkdir()
    lines = "[core]\n    analytics = false\n"
    if token == "configuration":
        lines += f"[studio]\n    token = secret\n    url = {url}\n"
    (tmp_path / ".dvc/config").write_text(lines)
    if token.endswith("TOKEN"):
        monkeypatch.setenv(token, "secret")
        monkeypatch.setenv("DVC_STUDIO_URL", url)
    if token == "dvc exp run":
        monkeypatch.setenv("DVC_STUDIO_TOKEN", "secret")
        monkeypatch.setenv("DVC_STUDIO_URL", url)
        monkeypatch.setenv("DVC_STUDIO_REPO_URL", "https://example.org/eyes.git")
        monkeypatch.setenv("DVC_STUDIO_OFFLINE", "false")
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
        monkeypatch.setenv("DVC_EXP_NAME", "blind-cat")
    before = dict(os.environ)
    with make_watch(tmp_path / "live") as watch:
        watch(row(1), SPLITS)
        watch(row(2), SPLITS)
    assert watch._curves is not None
    watch._curves._live._wait_for_studio_updates_posted()  # a thread of dvclive's sends
    assert not posted
    assert dict(os.environ) == before
    assert (tmp_path / "live/examples/epoch_00001.png").exists()


def test_a_repository_without_a_commit_ends_the_watch_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["dvc", "init", "-q"], check=True)
    with make_watch(tmp_path / "live") as watch:
        trained = run(None, watch)
    assert len(trained.history) == 8
    assert "Empty git repo" in caplog.text and "training goes on" in caplog.text


def test_a_full_disk_ends_the_watch_and_not_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "live").write_text("a file where the folder should be")
    lines: list[str] = []
    with make_watch(tmp_path / "live", say=lines.append) as watch:
        trained = run(None, watch)
    assert len(trained.history) == 8 and lines
    assert len(caplog.records) == 1 and "training goes on" in caplog.messages[0]
