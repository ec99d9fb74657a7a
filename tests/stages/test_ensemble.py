"""The stage `ensemble` fits what it is told to fit on the validation images of both members."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

import stages.ensemble
from pipeline.binarise import Binarisation
from pipeline.binarise_fit import LabelledMap, fit_binarisation
from pipeline.ensemble import combine, fit_weight
from pipeline.inference import Predictor
from pipeline.model_folder import ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model
from pipeline.prepared import Entry, Frame, write_prepared
from pipeline.threshold import best_f1_threshold

DEVELOPMENT = "data/prepared/development"
MEMBERS = ["models/base", "models/retrained"]
GRAPH = {
    "stages": {
        "ensemble": {
            "cmd": "python -m stages.ensemble",
            "deps": [DEVELOPMENT, *MEMBERS],
            "params": ["ensemble"],
            "outs": ["models/ensemble"],
        }
    }
}


def frame(number: int) -> Frame:
    rng = np.random.default_rng(number)
    vessels = rng.random((24, 32)) < 0.2
    vessels[10:13] = True
    fov = np.zeros((24, 32), bool)
    fov[2:-2, 2:-2] = True
    return Frame(f"{number:02d}", rng.integers(0, 255, (24, 32, 3), dtype=np.uint8), vessels, fov)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    entries = [Entry(frame(n), "validation" if n > 1 else "train", f"{n}.tif") for n in range(4)]
    write_prepared(tmp_path / DEVELOPMENT, entries)
    for seed, folder in enumerate(MEMBERS):
        torch.manual_seed(seed)
        architecture = Architecture(base_width=2, dropblock_size=3)
        config = ModelConfig.model_validate(
            {
                "architecture": architecture,
                "resolution": "native",
                "statistics": {"mean": (0.5, 0.5, 0.5), "std": (0.3, 0.3, 0.3)},
                "threshold": 0.5,
                "params": {},
                "versions": {},
                "git_commit": None,
                "data_sha256": "0",
            }
        )
        save_model(tmp_path / folder, build_model(architecture), config)
    return tmp_path


def run(params: dict[str, object]) -> dict[str, object]:
    content = {"seed": 7, "runtime": {"device": "cpu", "threads": 1}, "ensemble": params}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(stages.ensemble.main, [], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    values: dict[str, object] = json.loads(Path("models/ensemble/config.json").read_text())
    return values


def test_nothing_is_fitted_unless_told(project: Path) -> None:
    config = run({})
    assert (config["rule"], config["weight"], config["threshold"]) == ("mean", 0.5, 0.5)
    assert "binarisation" not in config


@pytest.mark.parametrize("threshold", [0.45, "validation"])
def test_weight_threshold_and_masks_are_fitted_on_validation(project: Path, threshold: float | str) -> None:
    config = run({"rule": "weighted", "threshold": threshold, "postprocess": "validation"})
    members = [Predictor.from_folder(Path(folder), torch.device("cpu")) for folder in MEMBERS]
    frames = [frame(2), frame(3)]
    maps = [[member.predict(one.image) for one in frames] for member in members]
    labels = np.concatenate([one.vessels[one.fov] for one in frames if one.vessels is not None])
    pixels = [
        np.concatenate([found[one.fov] for found, one in zip(of_member, frames, strict=True)])
        for of_member in maps
    ]
    weight = fit_weight(pixels, labels)
    assert config["weight"] == weight
    combined = [combine(pair, "weighted", weight=weight, thresholds=[]) for pair in zip(*maps, strict=True)]
    scores = np.concatenate([found[one.fov] for found, one in zip(combined, frames, strict=True)])
    cut = best_f1_threshold(scores, labels) if threshold == "validation" else threshold
    assert config["threshold"] == cut
    labelled = [
        LabelledMap(found, one.vessels, one.fov)
        for found, one in zip(combined, frames, strict=True)
        if one.vessels is not None
    ]
    expected = fit_binarisation(labelled, float(cut), fixed=threshold != "validation")
    made = config.get("binarisation")
    assert (None if made is None else Binarisation.model_validate(made)) == expected
    assert Predictor.from_folder(Path("models/ensemble"), torch.device("cpu")).binarisation == expected
