"""Training stages leave a model folder whose tables and config tell of the same epoch."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

import pipeline.validation
import stages.retrain
import stages.segmenter
import stages.train_base
from pipeline.binarise import Binarisation
from pipeline.images import read_rgb, write_png, write_probability
from pipeline.inference import Predictor
from pipeline.prepared import Entry, Frame, Split, load_samples, write_prepared
from pipeline.threshold import best_f1_threshold
from pipeline.training_checkpoint import HistoryRow
from stages.training_watch import TrainingWatch

DEVELOPMENT = "data/prepared/development"
POOL = ["data/synthetic/images", "data/synthetic/probabilities"]
GRAPH = {
    "stages": {
        "train_base": {
            "cmd": "python -m stages.train_base",
            "deps": [DEVELOPMENT],
            "params": ["seed", "segmenter", "train_base"],
            "outs": ["models/base"],
        },
        "retrain": {
            "cmd": "python -m stages.retrain",
            "deps": [DEVELOPMENT, *POOL],
            "params": ["seed", "segmenter", "retrain"],
            "outs": ["models/retrained"],
        },
        "synthesize": {"cmd": "none", "params": ["seed", "synthesize"], "outs": [POOL[0]]},
    }
}
FIT_SETS: dict[str, tuple[Split, ...]] = {
    "validation": ("validation",),
    "development": ("train", "validation"),
}
TWO_STEPS = {"epochs": 2, "learning_rate": 1e-2, "final_epochs": 1, "final_learning_rate": 1e-3}
PARAMS = {
    "seed": 7,
    "runtime": {"device": "cpu", "threads": 1, "workers": 0},
    "segmenter": {"resolution": 32, "base_width": 2, "dropblock_size": 3, "validate_every": 2},
    "train_base": TWO_STEPS,
    "retrain": {
        "synthetic_count": 2,
        "order": ["real", "synthetic"],
        "real": {**TWO_STEPS, "augment": True},
        "synthetic": {"epochs": 2, "learning_rate": 1e-3, "augment": False},
    },
    "synthesize": {"pool": 2},
}


def frame(number: int) -> Frame:
    rng = np.random.default_rng(number)
    vessels = np.zeros((32, 32), bool)
    vessels[rng.integers(4, 28), :] = True
    image = rng.integers(20, 90, (32, 32, 3), dtype=np.uint8)
    image[vessels] += np.uint8(140)
    return Frame(f"{number:02d}", image, vessels, np.ones((32, 32), bool))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    splits = ("train", "train", "train", "validation")
    entries = [Entry(frame(number), split, f"{number}.tif") for number, split in enumerate(splits)]
    write_prepared(tmp_path / DEVELOPMENT, entries)
    for path in POOL:
        Path(path).mkdir(parents=True)
    names = [f"{index:06d}" for index in range(2)]
    for index, name in enumerate(names):
        drawn = frame(10 + index)
        write_png(Path(POOL[0]) / f"{name}.png", drawn.image)
        write_probability(Path(POOL[1]) / f"{name}.png", drawn.vessels.astype(np.float32))
    manifest = pd.DataFrame(
        {"id": names, "image": [f"{name}.png" for name in names], "seed": [0, 1], "psi": 0.7}
    )
    manifest.to_csv(Path(POOL[0]) / "manifest.csv", index=False)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "folder", "phases", "eligible"),
    [
        (
            stages.train_base.main,
            "models/base",
            ["real", "real", "real (final)"],
            {"real", "real (final)"},
        ),
        (
            stages.retrain.main,
            "models/retrained",
            ["real", "real", "real (final)", "synthetic", "synthetic"],
            {"synthetic"},
        ),
    ],
)
def test_tables_and_config_name_the_same_epoch(project, command, folder, phases, eligible) -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    history = pd.read_csv(project / folder / "history.csv")
    validation = pd.read_csv(project / folder / "validation.csv")
    best = json.loads((project / folder / "config.json").read_text())["best"]
    assert history["phase"].tolist() == phases
    assert set(history["phase"][history["selectable"]]) == eligible
    (kept,) = history[history["kept"]].to_dict("records")
    assert (kept["phase"], kept["epoch"]) == (best["phase"], best["epoch"])
    assert kept["validation_auc"] == pytest.approx(best["validation_auc"], abs=1e-7)
    assert kept["validation_auc"] == history["validation_auc"][history["selectable"]].max()
    assert validation["epoch"].tolist() == [epoch for epoch in (2, 3, 4, 5) if epoch <= len(phases)]
    assert not validation.isna().any(axis=None)


def test_training_can_be_followed_and_leaves_no_photograph(project, monkeypatch) -> None:
    seen: list[set[str]] = []
    original = stages.segmenter.save_model

    def look(*args: object) -> None:  # after the training, before the private folder goes
        (live,) = live_folders(project)
        seen.append({path.name for path in live.iterdir()})
        shown = read_rgb(live / "examples/epoch_00003.png")
        assert np.array_equal(shown[:32, :32], frame(3).image)  # the validation image
        original(*args)

    monkeypatch.setattr(stages.segmenter, "save_model", look)
    result = CliRunner().invoke(stages.train_base.main, [])
    assert result.exit_code == 0, result.output
    (names,) = seen  # an untrained network may be warned of
    assert names - {"warnings.csv"} == {"curves", "examples", "metrics.json", "plots", "report.html"}
    assert "report.html" in result.stderr and "epoch 3/3" in result.stderr
    assert "%|" not in result.stderr  # no bar in a log
    assert not live_folders(project)
    left = {path.name for path in (project / "models/base").rglob("*")}
    assert left == {"model.safetensors", "config.json", "history.csv", "validation.csv"}
    assert yaml.safe_load(Path("dvc.yaml").read_text()) == GRAPH


def test_a_warm_up_that_lasts_the_whole_training_is_refused(project) -> None:
    values = {**PARAMS, "train_base": {**TWO_STEPS, "warmup_steps": 9}}
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    result = CliRunner().invoke(stages.train_base.main, [])
    assert result.exit_code == 2 and "9 warmup_steps" in result.stderr
    assert not (project / "models/base").exists()


def test_an_interrupted_training_leaves_the_same_bytes(project, monkeypatch) -> None:
    assert CliRunner().invoke(stages.train_base.main, []).exit_code == 0
    folder = project / "models/base"
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    call = TrainingWatch.__call__

    def stop(self: TrainingWatch, row: HistoryRow, network: nn.Module) -> None:
        call(self, row, network)
        if row.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingWatch, "__call__", stop)
        assert CliRunner().invoke(stages.train_base.main, []).exit_code == 130
    assert len(live_folders(project)) == 1
    assert CliRunner().invoke(stages.train_base.main, []).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


def test_a_loss_that_is_not_finite_is_one_message_and_leaves_the_curves(project) -> None:
    values = {**PARAMS, "train_base": {**TWO_STEPS, "final_learning_rate": 1e30, "final_epochs": 5}}
    Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    result = CliRunner().invoke(stages.train_base.main, [])
    assert result.exit_code == 2
    assert "Error: the loss became" in result.stderr and "Traceback" not in result.output
    (live,) = live_folders(project)
    losses = pd.read_csv(live / "curves/train/loss.tsv", sep="\t")
    assert losses["step"].tolist()[:2] == [1, 2]
    assert not (project / "models/base").exists()


def live_folders(project: Path) -> list[Path]:
    return list((project / ".checkpoints/train_base").glob("*/live"))


@pytest.mark.parametrize(("images", "splits"), FIT_SETS.items())
def test_what_is_fitted_is_fitted_on_the_views_of_these_images_and_reaches_the_model(
    project: Path, monkeypatch: pytest.MonkeyPatch, images: str, splits: tuple[Split, ...]
) -> None:
    def fit(maps: object, cut: float, *, fixed: bool) -> Binarisation:
        assert not fixed
        return Binarisation(threshold=cut, min_size=3)  # a network this small may not be worth one

    monkeypatch.setattr(pipeline.validation, "fit_binarisation", fit)
    fitted = {
        **PARAMS["segmenter"],
        "threshold": images,
        "postprocess": images,
        "views": "dihedral",
    }
    Path("params.yaml").write_text(yaml.safe_dump({**PARAMS, "segmenter": fitted}, sort_keys=False))
    result = CliRunner().invoke(stages.train_base.main)
    assert result.exit_code == 0, result.output
    config = json.loads(Path("models/base/config.json").read_text())
    predictor = Predictor.from_folder(Path("models/base"), torch.device("cpu"))
    assert config["views"] == predictor.views == "dihedral"
    assert predictor.binarisation == Binarisation.model_validate(config["binarisation"])
    assert config["binarisation"]["min_size"] == 3
    samples = [sample for split in splits for sample in load_samples(Path(DEVELOPMENT), split)]
    shown = [sample.load() for sample in samples]
    averaged = [predictor.predict(one.image) for one in shown]
    assert np.array_equal(averaged[0], predictor.predict(shown[0].image, views="dihedral"))
    assert not np.array_equal(averaged[0], predictor.predict(shown[0].image, views="none"))
    scores = np.concatenate([found[one.fov] for found, one in zip(averaged, shown, strict=True)])
    labels = np.concatenate([one.vessels[one.fov] for one in shown if one.vessels is not None])
    assert config["threshold"] == best_f1_threshold(scores, labels)
