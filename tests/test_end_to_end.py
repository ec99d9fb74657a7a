"""The whole graph, at its smallest, through `dvc` as a user runs it."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from stages.graph import read_graph
from stages.params_file import read_yaml

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    ".dvc/config",
    ".dvc/plots",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "params.yaml",
    "pipeline",
    "stages",
    "stylegan2",
)
STAGES = list(read_graph(ROOT / "dvc.yaml"))
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def tiny_params() -> dict[str, Any]:
    """The default preset with a few steps of everything, at 32 pixels."""
    params = read_yaml(ROOT / "presets/default.yaml")
    for section, values in TINY.items():
        params[section] = {**params[section], **values}
    return params


TINY: dict[str, dict[str, Any]] = {
    "runtime": {"threads": 2, "workers": 0},
    "segmenter": {"resolution": 64, "base_width": 4, "validate_every": 1},
    "prepare": {"validation_count": 2, "phantom": {"size": 64, "train_count": 4, "test_count": 5}},
    "train_base": {"epochs": 3, "final_epochs": 1},
    "train_gan": {"resolution": 16, "kimg": 0.032, "batch": 4, "kimg_per_tick": 0.016, "init": None},
    "synthesize": {"pool": 6},
    "retrain": {
        "synthetic_count": 4,
        "synthetic": {"epochs": 1, "learning_rate": 1e-3, "augment": True},
        "real": {"epochs": 2, "learning_rate": 1e-3, "augment": False},
    },
    "evaluate": {"bootstrap_samples": 100},
    "report": {"sample_count": 4, "bootstrap_samples": 100},
}


class Project:
    """A copy of the project in a folder of its own, driven through the command line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
        }

    def run(self, *command: str, expect: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == expect, (
            f"{' '.join(command)} ended with {done.returncode}:\n{output[-6000:]}"
        )
        return output

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and name the stages that ran."""
        return re.findall(r"Running stage '(\w+)'", self.run("dvc", "repro", *arguments))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "state")

    def metrics(self) -> dict[str, Any]:
        return {
            str(p.relative_to(self.root)): json.loads(p.read_text())
            for p in self.root.glob("metrics/**/*.json")
        }

    def weights(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.root)): p.read_bytes() for p in self.root.glob("models/**/*.safetensors")
        }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose graph ran once; tests take copies of it."""
    project = Project(tmp_path_factory.mktemp("finished"))
    for name in COPIED:
        source, target = ROOT / name, project.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for folder in ("data/raw", "data/pretrained"):
        (project.root / folder).mkdir(parents=True)
        shutil.copy(ROOT / folder / "README.md", project.root / folder)
    (project.root / "params.yaml").write_text(yaml.safe_dump(tiny_params(), sort_keys=False))
    project.run("git", "init", "--quiet")
    assert project.repro() == STAGES
    project.commit()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Iterator[Project]:
    shutil.copytree(finished.root, tmp_path / "project", symlinks=True)
    yield Project(tmp_path / "project")


def test_every_output_is_there_and_the_report_needs_nothing_else(finished: Project) -> None:
    for node in read_graph(finished.root / "dvc.yaml").values():
        for out in node.outs:
            assert (finished.root / out).exists(), out
    page = (finished.root / "report/index.html").read_text()
    assert [path.name for path in (finished.root / "report").iterdir()] == ["index.html"]
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page), "the page must carry everything itself"
    assert not list(finished.root.rglob("*.partial"))


def test_metrics_suit_dvc(finished: Project) -> None:
    metrics = finished.metrics()
    assert len(metrics) == 12
    for name, content in metrics.items():
        values = [value for group in content.values() for value in group.values()]
        extra = name.split("/")[1] in {"topology", "agreement"}
        assert 12 <= len(values) <= 15 if extra else len(values) == 16, name  # there may be no thick vessel
        assert all(isinstance(value, float | int) and math.isfinite(value) for value in values), name
        assert extra or all(0 <= value <= 1 for value in values), name
    shown = finished.run("dvc", "metrics", "show")
    assert "pooled.f1" in shown
    finished.run("dvc", "plots", "show", "--out", str(finished.root / ".dvc/tmp/plots"))


def test_a_second_run_does_nothing(project: Project) -> None:
    assert project.repro() == []


def test_the_number_of_synthetic_images_reruns_only_what_follows(project: Project) -> None:
    params = read_yaml(project.root / "params.yaml")
    params["retrain"]["synthetic_count"] -= 1
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert project.repro() == ["retrain", "ensemble", "evaluate", "report"]
    diff = project.run("dvc", "metrics", "diff")
    assert "metrics/retrained.json" in diff
    assert "metrics/base.json" not in diff


def test_a_comment_in_the_reports_code_reruns_only_the_report(project: Project) -> None:
    with (project.root / "stages/report.py").open("a") as file:
        file.write("\n# a comment\n")
    assert project.repro() == ["report"]


def test_the_same_seed_gives_the_same_metrics_and_weights(project: Project) -> None:
    before = project.metrics()
    weights = project.weights()
    for folder in ("data/prepared", "data/synthetic", "models", "metrics", "predictions", "report", "plots"):
        shutil.rmtree(project.root / folder)
    assert project.repro("--force") == STAGES
    assert project.metrics() == before
    assert project.weights() == weights
    assert len(weights) == 8  # four of segmenters (two are the members of the ensemble), four of the GAN


def test_a_stage_cannot_read_the_test_split(project: Project) -> None:
    with (project.root / "stages/train_base.py").open() as file:
        code = file.read()
    leak = 'def main(run: StageRun) -> None:\n    open("data/prepared/test/manifest.csv")\n'
    patched = re.sub(r"def main\(run: StageRun\) -> None:\n", leak, code)
    assert patched != code
    (project.root / "stages/train_base.py").write_text(patched)
    output = project.run("dvc", "repro", "train_base", expect=255)
    assert "only evaluate and report may see the test split" in output


def test_bad_parameters_stop_before_anything_runs(project: Project) -> None:
    params = read_yaml(project.root / "params.yaml")
    params["prepare"]["dataset"] = "drvie"
    params["retrain"]["synthetic_cuont"] = 3
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    output = project.run(sys.executable, "-m", "stages.prepare", expect=2)
    assert "prepare.dataset: got 'drvie'" in output
    assert "retrain.synthetic_cuont: unknown key; did you mean synthetic_count?" in output
    assert "Traceback" not in output
    assert (project.root / "data/prepared/development").exists(), "the earlier result must survive"


def test_predict_segments_a_persons_own_images(finished: Project, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 91, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "eye.jpg"), image)
    cv2.imwrite(str(tmp_path / "other.tif"), image[:50])
    command = ("vesselforge", "predict", str(tmp_path / "eye.jpg"), str(tmp_path / "other.tif"))
    finished.run(*command, "-o", str(tmp_path / "out"))
    for stem, height in (("eye", 70), ("other", 50)):
        mask = cv2.imread(str(tmp_path / f"out/{stem}_mask.png"), cv2.IMREAD_UNCHANGED)
        probability = cv2.imread(str(tmp_path / f"out/{stem}_probability.png"), cv2.IMREAD_UNCHANGED)
        overlay = cv2.imread(str(tmp_path / f"out/{stem}_overlay.png"))
        assert mask.shape == probability.shape == (height, 91) == overlay.shape[:2]
        assert probability.dtype == np.uint16
        assert set(np.unique(mask)) <= {0, 255}
