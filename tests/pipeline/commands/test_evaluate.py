import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.commands.evaluate import DATASETS, RESULTS
from pipeline.evaluation import write_predictions
from pipeline.frames import Statistics
from pipeline.images import read_probability, write_png
from pipeline.inference import Predictor
from pipeline.labelled_data import DATASETS as READABLE
from pipeline.model_folder import ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model
from pipeline.prepared import Entry, Frame, write_prepared
from pipeline.provenance import DEVELOPMENT
from stages.fingerprint import digest_paths


def frame(number: int) -> Frame:
    rng = np.random.default_rng(number)
    fov = np.zeros((36, 40), bool)
    fov[2:-2, 2:-2] = True
    vessels = (rng.random(fov.shape) < 0.1) & fov
    vessels[10:14, 5:35] = True
    return Frame(f"{number:02d}", rng.integers(40, 255, (36, 40, 3), dtype=np.uint8), vessels, fov)


def write_model(folder: Path, data_sha256: str = "0" * 64) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=Architecture(base_width=1),
        resolution="native",
        statistics=Statistics(mean=(0.4, 0.3, 0.2), std=(0.2, 0.2, 0.2)),
        threshold=0.5,
        params={},
        versions={},
        git_commit=None,
        data_sha256=data_sha256,
    )
    network = build_model(config.architecture)
    *_, weight, bias = network.parameters()  # of the last convolution: spread probabilities around 0.5
    with torch.no_grad():
        weight *= 200
        bias.fill_(-9.8)
    save_model(folder, network, config)
    return folder


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    """A working folder with a model and a prepared test set of three images."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("models/base"))
    write_prepared(Path("data/prepared/test"), [Entry(frame(n), "test", "x") for n in (1, 2, 3)])
    return tmp_path


def evaluate(*extra: str, **options: str) -> Result:
    given = {"model": "models/base", "data": "data/prepared/test", "dataset": "prepared", "output": "out"}
    given |= {"device": "cpu", "threads": "1", "bootstrap-samples": "100"} | options
    pairs = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return CliRunner().invoke(main, ["evaluate", *pairs, *extra])


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def settings(output: str = "out") -> dict:
    return json.loads(Path(output, "evaluation.json").read_text())


def test_the_datasets_of_the_option_are_those_that_can_be_read() -> None:
    assert DATASETS == READABLE


def test_results_and_table(project: Path) -> None:
    result = evaluate()
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(RESULTS)
    assert sorted(path.name for path in Path("out/predictions").iterdir()) == ["01.png", "02.png", "03.png"]
    metrics, full_frame = (
        json.loads(Path("out", f"{name}.json").read_text()) for name in ("metrics", "full_frame")
    )
    for part in (
        "3 images of data/prepared/test (prepared, split test)",
        "models/base, threshold 0.5 (the model's own), views none",
        "not known: no data/prepared/development above the model or here",
        "Field of view  as the dataset gives it",
    ):
        assert part in result.output
    (f1,) = [line for line in result.output.splitlines() if line.startswith("F1 (Dice)")]
    numbers = [part for part in f1.split() if part[0] == "0" and part[-1] != "]"]
    expected = [summary[average]["f1"] for summary in (metrics, full_frame) for average in ("pooled", "mean")]
    assert numbers == [f"{value:.4f}" for value in expected]
    (warning,) = [line for line in result.output.splitlines() if line.startswith("Warning")]
    assert "only 3 images are scored: 95% intervals over fewer than 8 images are too short" in warning
    topology = json.loads(Path("out", "topology.json").read_text())["mean"]
    for label, figure, decimals in (
        ("clDice", "cldice", 4),
        ("components per mask", "components", 1),
        ("β0 error", "beta0_error", 1),
    ):
        (row,) = [line for line in result.output.splitlines() if line.startswith(label)]
        value, low, high = (f"{topology[f'{figure}{end}']:.{decimals}f}" for end in ("", "_lo", "_hi"))
        assert row.removeprefix(label).strip().startswith(f"{value} [{low}, {high}]")
        assert row.count("[") == 2
    table = pd.read_csv("out/per_image.csv", dtype={"id": str})
    assert list(table["id"]) == ["01", "01", "02", "02", "03", "03"] and set(table["model"]) == {"base"}


def test_raw_images_score_like_prepared_ones(project: Path) -> None:
    for number in (1, 2, 3):
        drawn = frame(number)
        for kind, array in {"images": drawn.image, "labels": drawn.vessels, "masks": drawn.fov}.items():
            Path("raw", kind).mkdir(parents=True, exist_ok=True)
            write_png(Path("raw", kind, f"{drawn.id}.png"), array)
    assert evaluate().exit_code == 0
    result = evaluate(data="raw", dataset="folder", output="out_raw")
    assert result.exit_code == 0, result.output
    prepared, raw = contents(Path("out")), contents(Path("out_raw"))
    assert prepared.pop("evaluation.json") != raw.pop("evaluation.json")
    assert prepared == raw
    assert (settings("out_raw")["dataset"], settings("out_raw")["split"]) == ("folder", "all")


def test_threshold_and_views_are_used_and_recorded(project: Path) -> None:
    evaluate()
    result = evaluate("--views", "flips", "--threshold", "0.9999", output="other")
    assert result.exit_code == 0, result.output
    assert "threshold 0.9999 (as given), views flips" in result.output
    assert "fitted to views" not in result.output  # nothing that was fitted is used
    assert (settings("other")["views"], settings("other")["threshold"]) == ("flips", 0.9999)
    assert settings()["threshold_is_the_models_own"] and not settings("other")["threshold_is_the_models_own"]
    sensitivities = [
        json.loads(Path(folder, "metrics.json").read_text())["pooled"]["sensitivity"]
        for folder in ("out", "other")
    ]
    assert sensitivities[0] > 0.2 and sensitivities[1] == 0
    plain, flips = (read_probability(Path(folder, "predictions/01.png")) for folder in ("out", "other"))
    expected = Predictor.from_folder(Path("models/base"), torch.device("cpu")).predict(
        frame(1).image, views="flips"
    )
    assert np.abs(flips - expected).max() < 1e-4
    assert np.abs(flips - plain).max() > 0.01


def test_masks_are_made_the_models_way_unless_a_threshold_is_given(project: Path) -> None:
    plain = evaluate()
    config = json.loads(Path("models/base/config.json").read_text())
    config["binarisation"] = {"threshold": 0.5, "hysteresis_low": 0.4, "min_size": 30}
    Path("models/base/config.json").write_text(json.dumps(config))
    result = evaluate(output="fitted")
    assert result.exit_code == 0, result.output
    assert (
        "threshold 0.5 with hysteresis down to 0.4, parts of 30 pixels or more (the model's own)"
        in result.output
    )
    assert settings("fitted")["binarisation"] == config["binarisation"]
    evaluate("--threshold", "0.5", output="cut")
    assert settings()["binarisation"] is settings("cut")["binarisation"] is None
    figures = {name: contents(Path(name))["per_image.csv"] for name in ("out", "fitted", "cut")}
    assert plain.exit_code == 0 and figures["out"] == figures["cut"] != figures["fitted"]


@pytest.mark.parametrize("dataset", ["prepared", "folder"])
def test_images_that_the_model_was_trained_on_are_named(project: Path, dataset: str) -> None:
    entries = [Entry(frame(n), "train" if n < 3 else "validation", "x") for n in (1, 2, 3, 4)]
    write_prepared(Path(DEVELOPMENT), entries)
    write_model(Path("models/base"), digest_paths([DEVELOPMENT]))
    options = {"data": DEVELOPMENT}
    if dataset == "folder":
        Path("raw").mkdir()
        Path("raw/images").symlink_to(Path(DEVELOPMENT, "images").resolve())
        Path("raw/labels").symlink_to(Path(DEVELOPMENT, "vessels").resolve())
        options["data"] = "raw"
    result = evaluate("--split", "all", dataset=dataset, **options)
    assert result.exit_code == 0, result.output
    assert "Warning: the model was TRAINED on 2 of the 4 images that are scored (01, 02)" in result.output
    assert "epoch and threshold chosen on 2 of the 4 images that are scored (03, 04)" in result.output
    assert "2 images and 2 for validation" in result.output and "none of which" not in result.output
    used = settings()["scored_images_used_by_the_model"]
    assert used == {"train": ["01", "02"], "validation": ["03", "04"]}


def test_new_images_are_said_to_be_new(project: Path) -> None:
    write_prepared(
        Path(DEVELOPMENT), [Entry(frame(n), split, "x") for n, split in ((7, "train"), (8, "validation"))]
    )
    write_model(Path("models/base"), digest_paths([DEVELOPMENT]))
    result = evaluate()
    assert "1 images and 1 for validation, none of which is scored" in result.output
    assert "Warning: the model was" not in result.output and settings()["training_data_found"]


def test_everything_wrong_is_said_at_once(project: Path) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("keep")
    result = evaluate("--tile", "3", model="absent", dataset="drive", device="gpu")
    assert result.exit_code == 2
    assert "nothing was evaluated (5 problems)" in result.output
    for part in (
        "out: holds what is no result of an evaluation (mine.txt); expected",
        "tile: got 3 pixels; expected",
        "device 'gpu' is not known; expected",
        "absent/config.json: missing; expected",
        "data/prepared/test: not usable as drive (",
    ):
        assert part in result.output
    assert contents(Path("out")) == {"mine.txt": b"keep"}
    assert "Traceback" not in result.output


def test_an_earlier_evaluation_is_replaced_on_demand_alone(project: Path) -> None:
    assert evaluate().exit_code == 0
    before = contents(Path("out"))
    refused = evaluate("--threshold", "0.2")
    assert refused.exit_code == 2
    assert (
        "out: holds an earlier evaluation (agreement.json, evaluation.json, full_frame.json, …)"
        in refused.output
    )
    assert contents(Path("out")) == before
    assert evaluate("--threshold", "0.2", "--overwrite").exit_code == 0
    assert contents(Path("out")).keys() == before.keys() and contents(Path("out")) != before
    assert evaluate("--overwrite").exit_code == 0
    assert contents(Path("out")) == before


@pytest.mark.parametrize("overwrite", [True, False])
def test_foreign_files_are_never_replaced(project: Path, overwrite: bool) -> None:
    evaluate()
    Path("out/predictions/mine.txt").write_text("keep")
    before = contents(Path("out"))
    result = evaluate(*(["--overwrite"] if overwrite else []))
    assert result.exit_code == 2 and "predictions/mine.txt" in result.output
    assert contents(Path("out")) == before


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("data/prepared/test/out", "lies in the data folder data/prepared/test"),
        ("models/base", "lies in the model folder models/base"),
        ("models/base/config.json/out", "config.json: not a folder"),
        (".", "holds what is no result"),
    ],
)
def test_places_that_are_no_place_for_results(project: Path, output: str, says: str) -> None:
    before = contents(project)
    result = evaluate("--overwrite", output=output)
    assert result.exit_code == 2 and says in result.output
    assert contents(project) == before


@pytest.mark.parametrize("fails", ["predict", "write"])
def test_nothing_half_written_stays(project: Path, monkeypatch, fails: str) -> None:
    evaluate()
    before = contents(project)

    def no_room(*arguments, **options):
        raise OSError(28, "No space left on device", "place")

    name = "write_predictions" if fails == "predict" else "write_per_image"
    monkeypatch.setattr(f"pipeline.evaluation.{name}", no_room)
    for options in ({"output": "new/deep"}, {}):
        result = evaluate("--overwrite", **options)
        assert result.exit_code == 2
        assert "place: cannot be written (No space left on device)" in result.output
    assert contents(project) == before
    assert not Path("new").exists()
    assert not list(project.glob(".*"))


def test_a_label_of_one_class_is_reported_and_leaves_nothing(project: Path) -> None:
    empty = frame(9)
    empty.vessels[:] = False
    write_prepared(Path("bad"), [Entry(empty, "test", "x")])
    result = evaluate(data="bad")
    assert result.exit_code == 2 and "09 (fov)" in result.output
    assert not Path("out").exists() and not list(project.glob(".*"))


def test_debug_shows_the_traceback(project: Path) -> None:
    assert evaluate("--debug", model="absent").exception.__class__.__name__ == "UserError"


def test_predictions_are_those_of_the_stage(project: Path) -> None:
    from pipeline.prepared import load_samples

    samples = load_samples(Path("data/prepared/test"), "test", allow_test=True)
    model = Predictor.from_folder(Path("models/base"), torch.device("cpu"))
    write_predictions(model, samples, Path("expected"))
    evaluate()
    assert contents(Path("out/predictions")) == contents(Path("expected"))


def test_one_image_has_no_interval(project: Path) -> None:
    write_prepared(Path("one"), [Entry(frame(1), "test", "x")])
    result = evaluate(data="one")
    assert result.exit_code == 0, result.output
    assert "Warning: only 1 image is scored" in result.output and "no figure has an interval" in result.output
    assert "[" not in result.output.split("Field of view")[1] and "nan" not in result.output
    f1 = json.loads(Path("out", "metrics.json").read_text())["pooled"]["f1"]
    (row,) = [line for line in result.output.splitlines() if line.startswith("F1 (Dice)")]
    assert row.split()[2:4] == [f"{f1:.4f}", "–"]
    assert pd.read_csv("out/intervals.csv")[["low", "high"]].isna().all(axis=None)
    assert "beta0_error" in json.loads(Path("out", "topology.json").read_text())["mean"]
    assert "_lo" not in Path("out", "agreement.json").read_text()


def test_enough_images_are_not_warned_of(project: Path) -> None:
    write_prepared(Path("eight"), [Entry(frame(number), "test", "x") for number in range(8)])
    result = evaluate(data="eight")
    assert result.exit_code == 0 and "Warning" not in result.output


def test_views_that_the_threshold_was_not_fitted_to_are_warned_of(project: Path) -> None:
    for output, extra, warned in (("a", ["--views", "flips"], True), ("b", ["--views", "none"], False)):
        result = evaluate(*extra, output=output)
        assert result.exit_code == 0, result.output
        assert ("fitted to views none, and is used with views flips" in result.output) == warned
        assert (settings(output)["model_views"], settings(output)["views"]) == ("none", extra[1])


@pytest.mark.parametrize("value", ["0", "1", "nan"])
def test_a_threshold_that_marks_everything_or_nothing_is_refused(project: Path, value: str) -> None:
    result = evaluate("--threshold", value)
    assert result.exit_code == 2 and "Invalid value for '--threshold'" in result.output
    assert not Path("out").exists()
