import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

import stages.evaluate
import stages.report
from pipeline.cli import main as vesselforge
from pipeline.ensemble import MEMBERS, MEMBERS_FOLDER, EnsembleConfig
from pipeline.evaluation import PER_IMAGE_COLUMNS
from pipeline.images import read_gray, write_png, write_probability
from pipeline.metrics.pixel import METRIC_NAMES
from pipeline.model_folder import ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model
from pipeline.prepared import Entry, Frame, write_prepared

MODELS = ("base", "retrained", "ensemble")
METRICS = [f"metrics/{folder}{name}.json" for folder in ("", "full_frame/") for name in MODELS]
EXTRA = [f"metrics/{folder}/{name}.json" for folder in ("topology", "agreement") for name in MODELS]
PLOTS = ["metrics/per_image.csv", "metrics/intervals.csv", "plots/roc", "plots/pr"]
TRAINED = [f"models/{name}" for name in MODELS]
SYNTHETIC = ["data/synthetic/images", "data/synthetic/probabilities"]

GRAPH = {
    "stages": {
        "evaluate": {
            "cmd": "python -m stages.evaluate",
            "deps": ["data/prepared/test", *TRAINED],
            "params": ["seed", "evaluate"],
            "outs": ["predictions"],
            "metrics": [{path: {"cache": False}} for path in [*METRICS, *EXTRA]],
            "plots": [{path: {"cache": False}} for path in PLOTS],
        },
        "report": {
            "cmd": "python -m stages.report",
            "deps": [
                "data/prepared/test",
                "predictions",
                *TRAINED,
                "models/gan",
                *SYNTHETIC,
                *METRICS,
                *PLOTS,
            ],
            "params": ["seed", "report"],
            "outs": ["report"],
        },
    }
}
PARAMS = {
    "seed": 7,
    "runtime": {"device": "cpu", "threads": 1},
    "segmenter": {},
    "evaluate": {"curve_points": 40, "bootstrap_samples": 100},
    "report": {"sample_count": 2, "bootstrap_samples": 100},
}
PROVENANCE = {"versions": {"python": "3.11"}, "git_commit": None, "data_sha256": "0"}


def write_models(folder: Path) -> None:
    architecture = Architecture(base_width=2, dropblock_size=3)
    config = ModelConfig(
        architecture=architecture,
        resolution=32,
        statistics={"mean": (0.4, 0.3, 0.2), "std": (0.2, 0.2, 0.2)},
        threshold=0.5,
        params={},
        **PROVENANCE,
    )
    history = pd.DataFrame(
        {
            "phase": ["real"] * 2,
            "epoch": [1, 2],
            "learning_rate": 1e-3,
            "train_loss": [1.0, 0.5],
            "validation_loss": [1.0, 0.6],
            "validation_auc": [0.6, 0.7],
            "kept": [False, True],
        }
    )
    for seed, name in enumerate(MEMBERS):
        torch.manual_seed(seed)
        network = build_model(architecture)
        for place in (folder / name, folder / "ensemble" / MEMBERS_FOLDER / name):
            save_model(place, network, config)
            history.to_csv(place / "history.csv", index=False)
    ensemble = EnsembleConfig(rule="mean", weight=0.5, threshold=0.4, **PROVENANCE)
    (folder / "ensemble" / "config.json").write_text(ensemble.model_dump_json())


def write_generator_and_pool(root: Path) -> None:
    rng = np.random.default_rng(1)
    (root / "models" / "gan" / "samples").mkdir(parents=True)
    history = pd.DataFrame({"tick": [1, 2], "kimg": [1.0, 2.0], "loss_G": [0.7, 0.8], "pl_mean": [None, 0.1]})
    history.to_csv(root / "models" / "gan" / "history.csv", index=False)
    write_png(
        root / "models" / "gan" / "samples" / "000002.png", rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    )
    for path in SYNTHETIC:
        (root / path).mkdir(parents=True)
    rows = []
    for index in range(3):
        name = f"{index:06d}.png"
        rows.append({"id": f"{index:06d}", "image": name, "seed": index, "psi": 0.7})
        write_png(root / SYNTHETIC[0] / name, rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
        write_probability(root / SYNTHETIC[1] / name, rng.random((32, 32)).astype(np.float32))
    pd.DataFrame(rows).to_csv(root / SYNTHETIC[0] / "manifest.csv", index=False)


def frame(number: int) -> Frame:
    rng = np.random.default_rng(number)
    fov = np.zeros((30, 36), bool)
    fov[1:-1, 1:-1] = True
    vessels = (rng.random((30, 36)) < 0.2) & fov
    vessels[12:17, 4:30] = True  # a thick one
    return Frame(f"{number:02d}", rng.integers(0, 255, (30, 36, 3), dtype=np.uint8), vessels, fov)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS, sort_keys=False))
    entries = [Entry(frame(number), "test", f"phantom(7,{number})") for number in range(1, 4)]
    entries.append(Entry(replace(frame(5), vessels=None), "unlabelled", "05_test.tif"))
    write_prepared(tmp_path / "data" / "prepared" / "test", entries)
    write_models(tmp_path / "models")
    write_generator_and_pool(tmp_path)
    return tmp_path


def run(command):
    result = CliRunner().invoke(command, [])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def contents(root: Path) -> dict[str, bytes]:
    written = [root / "predictions", root / "metrics", root / "plots", root / "report"]
    files = [path for folder in written if folder.exists() for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(files)}


def test_evaluate_then_report(project):
    assert run(stages.evaluate.main).exit_code == 0
    written = contents(project)
    expected = {f"predictions/{name}/{number}.png" for name in MODELS for number in ("01", "02", "03", "05")}
    expected |= {f"predictions/submission/{name}/5.png" for name in MODELS}
    expected |= {f"plots/{curve}/{name}.csv" for curve in ("roc", "pr") for name in MODELS}
    expected |= {*METRICS, *EXTRA, "metrics/per_image.csv", "metrics/intervals.csv"}
    assert set(written) == expected
    for path in METRICS:
        metrics = json.loads((project / path).read_text())
        assert {part: sorted(figures) for part, figures in metrics.items()} == {
            "mean": sorted(METRIC_NAMES),
            "pooled": sorted(METRIC_NAMES),
        }
    for path in EXTRA:
        metrics = json.loads((project / path).read_text())
        assert sum(map(len, metrics.values())) == 15
        for part in metrics.values():
            for name in [name for name in part if f"{name}_lo" in part]:
                assert part[f"{name}_lo"] <= part[name] <= part[f"{name}_hi"]
    table = pd.read_csv(project / "metrics" / "per_image.csv", dtype={"id": str})
    assert tuple(table.columns) == PER_IMAGE_COLUMNS
    assert set(table["id"]) == {"01", "02", "03"}  # the unlabelled image has no figures
    assert len(pd.read_csv(project / "plots" / "roc" / "base.csv")) <= 40
    assert set(np.unique(read_gray(project / "predictions" / "submission" / "base" / "5.png"))) <= {0, 255}

    assert run(stages.report.main).exit_code == 0
    page = (project / "report" / "index.html").read_text(encoding="utf-8")
    assert "3 labelled test images of 36×30 pixels: drawn fundus phantoms" in page
    assert "Too few test images to tell" in page
    assert page.count('alt="pseudo-label of synthetic image') == 2  # report.sample_count
    assert "loss_G" in page
    assert "curve_points: 40" in page
    assert "threads" not in page  # runtime decides no result
    assert "evaluate from raw data; report from evaluate" in page

    first = contents(project)
    assert run(stages.evaluate.main).exit_code == 0
    assert run(stages.report.main).exit_code == 0
    assert contents(project) == first


def test_metrics_differ_between_models_and_regions(project):
    run(stages.evaluate.main)
    pooled = [json.loads((project / path).read_text())["pooled"]["auc"] for path in METRICS]
    assert len(set(pooled)) == 6


@pytest.mark.parametrize("name", MODELS)
def test_the_command_computes_the_same_files(project, name):
    assert run(stages.evaluate.main).exit_code == 0
    options = ["-m", f"models/{name}", "--data", "data/prepared/test", "--dataset", "prepared", "-o", "out"]
    options += ["--seed", "7", "--bootstrap-samples", "100", "--device", "cpu", "--threads", "1"]
    result = CliRunner().invoke(vesselforge, ["evaluate", *options])
    assert result.exit_code == 0, result.output
    assert "1 without label left out" in result.output
    for file in ("metrics", "full_frame", "topology", "agreement"):
        place = "metrics" if file == "metrics" else f"metrics/{file}"
        assert Path("out", f"{file}.json").read_bytes() == Path(place, f"{name}.json").read_bytes()
    for file in ("per_image.csv", "intervals.csv"):
        header, *rows = Path("metrics", file).read_text().splitlines()
        expected = [header, *(row for row in rows if row.startswith(f"{name},"))]
        assert Path("out", file).read_text().splitlines() == expected
    for path in Path("out/predictions").iterdir():
        assert path.read_bytes() == Path("predictions", name, path.name).read_bytes()


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("evaluate", {"curve_points": 1}, "evaluate.curve_points: got 1"),
        ("report", {"bootstrap_sample": 100}, "did you mean bootstrap_samples?"),
    ],
)
def test_wrong_parameters_leave_nothing_behind(project, section, value, says):
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {section: value}))
    result = run(stages.evaluate.main)
    assert result.exit_code == 2
    assert says in result.output
    assert contents(project) == {}


def test_report_without_evaluate_says_what_to_run(project):
    result = run(stages.report.main)
    assert result.exit_code == 2
    assert "metrics/base.json is missing: run `dvc repro evaluate`" in result.output


def test_broken_model_fails_before_anything_is_published(project):
    (project / "models" / "ensemble" / "config.json").write_text("{}")
    result = run(stages.evaluate.main)
    assert result.exit_code == 2
    assert "expected 'segmenter' or 'ensemble'" in result.output
    assert contents(project) == {}


def test_kid_joins_the_history_though_its_counts_are_whole(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("tick,kimg,loss_G\n1,0.504,1.5\n2,1,2.5\n", encoding="utf-8")
    (tmp_path / "kid.csv").write_text("kimg,kid,kid_lo,kid_hi\n0,5.5,5,6\n1,4.5,4,5\n", encoding="utf-8")
    joined = stages.report._gan_history(tmp_path)
    assert joined["kimg"].tolist() == [0, 0.504, 1]
    assert joined["kid"].fillna(-1).tolist() == [5.5, -1, 4.5]
    assert joined["loss_G"].fillna(-1).tolist() == [-1, 1.5, 2.5]
