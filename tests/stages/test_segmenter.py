"""Training stages leave a model folder whose tables and config tell of the same epoch."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner

import stages.retrain
import stages.train_base
from pipeline.images import write_png, write_probability
from pipeline.prepared import Entry, Frame, write_prepared

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
