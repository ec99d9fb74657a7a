"""The benchmark runs, measures what it says, and compares only what can be compared."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cli import main as cli
from pipeline.frames import Statistics
from pipeline.images import write_probability
from pipeline.labelled_data import open_labelled
from pipeline.model_folder import ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model
from tests.scripts import load_script

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TINY = ["--resolution", "16", "--fmaps", "0.008", "--channel-max", "8", "--w-dim", "16", "--batch", "4"]
TINY += ["--threads", "1", "--rounds", "1"]


def load(name: str) -> ModuleType:
    return load_script(BENCHMARKS / f"{name}.py")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    process = run("gan_training.py", *TINY, "--json")
    assert process.returncode == 0, process.stderr
    (only,) = json.loads(process.stdout)["results"]
    return dict(only)


def test_every_number_is_there_and_positive(result: dict[str, Any]) -> None:
    assert set(result["phases_s"]) == {"Gmain", "Greg", "Dmain", "Dreg", "EMA"}
    assert set(result["unit_pieces_s"]) == {"convolution", "matrices", "pointwise"}
    for name in ("unit_s", "sec_per_kimg", "units_per_kimg", "images_per_s", "peak_rss_gb"):
        assert result[name] > 0, name
    assert all(seconds > 0 for seconds in [*result["phases_s"].values(), *result["unit_pieces_s"].values()])
    assert 0.05 < result["peak_rss_gb"] < 5
    assert 0 < result["cores_used"] < 1.2  # one thread; the two clocks tick differently
    assert result["environment"]["torch"] == torch.__version__
    assert result["config"]["resolution"] == 16


def test_the_parts_make_up_the_whole(result: dict[str, Any]) -> None:
    phases = result["phases_s"]
    iteration = phases["Gmain"] + phases["Greg"] / 4 + phases["Dmain"] + phases["Dreg"] / 16 + phases["EMA"]
    assert result["sec_per_kimg"] == pytest.approx(iteration * 1000 / 4)
    assert result["units_per_kimg"] == pytest.approx(result["sec_per_kimg"] / result["unit_s"])
    assert result["unit_s"] == pytest.approx(sum(result["unit_pieces_s"].values()))
    images = result["images_per_s"] * result["unit_s"]
    assert result["sampling_images_per_unit"] == pytest.approx(images)
    assert result["units_per_kimg_lo"] == result["units_per_kimg"] == result["units_per_kimg_hi"]  # one round


def test_another_configuration_is_not_compared(result: dict[str, Any]) -> None:
    assert result["baseline"] is None
    assert "ratio_to_baseline" not in result
    assert "threads 1, not 2" in result["differences_from_baseline"]
    assert "resolution 16, not 64 or 128" in result["differences_from_baseline"]


@pytest.mark.parametrize("resolution", [64, 128])
def test_the_defaults_are_the_configuration_of_the_baseline(
    resolution: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load("gan_training")
    monkeypatch.setattr(sys, "argv", ["gan_training.py"])
    settings = vars(module.parse_arguments())
    assert settings["resolution"] == [64, 128]
    assert module.differences_from_baseline({**settings, "resolution": resolution}) == []


def test_the_baseline_is_that_of_the_development_data(shared_dir: Path) -> None:
    path = shared_dir / "bench" / "reference.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    reference = json.loads(path.read_text(encoding="utf-8"))
    baseline = load("gan_training").BASELINE
    for ours, theirs in (
        ("units_per_kimg", "train_units_per_kimg"),
        ("sampling_images_per_unit", "sample_images_per_unit"),
        ("peak_rss_gb", "peak_rss_gb"),
    ):
        assert {str(key): value for key, value in baseline[ours].items()} == reference[theirs]
    for name in ("fmaps", "channel_max", "w_dim", "mapping_layers", "batch"):
        assert baseline["config"][name] == reference["config"][name]


def test_the_table_shows_ratios_where_there_is_a_baseline(result: dict[str, Any]) -> None:
    module = load("gan_training")
    assert "no comparison with the baseline: threads 1, not 2" in module.table(result)
    names = ("units_per_kimg", "sampling_images_per_unit", "peak_rss_gb")
    compared = {
        **result,
        "baseline": {"source": "somewhere", "units_per_kimg": 720, **dict.fromkeys(names[1:], 20.0)},
        "ratio_to_baseline": {"units_per_kimg": 0.87, **dict.fromkeys(names[1:], 1.5)},
    }
    row = next(line for line in module.table(compared).splitlines() if line.startswith("units per 1,000"))
    assert row.split()[-2:] == ["720", "0.87"]


def test_a_network_that_cannot_be_built_ends_in_a_message() -> None:
    process = run("gan_training.py", *TINY, "--resolution", "24")
    assert process.returncode == 1
    assert "img_resolution: got 24" in process.stderr
    assert "measuring times at 24 px failed" in process.stderr
    assert process.stdout == ""


def test_the_unit_is_the_work_it_describes() -> None:
    """The calibration's pieces, against their definition written once more; the numbers are compared."""
    calibration = load("calibration").Calibration()
    assert calibration.images.shape == (8, 64, 64, 64)
    assert calibration.kernels.shape == (64, 64, 3, 3)
    assert calibration.matrix.shape == (1024, 1024)
    assert calibration.maps.shape == (8, 64, 128, 128)
    seen: dict[str, Any] = {}
    calibration.kernels.register_hook(lambda gradient: seen.update(kernels=gradient))
    calibration.maps.register_hook(lambda gradient: seen.update(maps=gradient))
    calibration.measure()
    centre = calibration.images.detach().sum(
        dim=(0, 2, 3)
    )  # derivative by the kernel's centre: sum of inputs
    torch.testing.assert_close(seen["kernels"][0, :, 1, 1], centre, rtol=1e-3, atol=0.05)
    slope = torch.where(1.5 * calibration.maps.detach() + 0.1 > 0, 1.0, 0.2) * 1.5 * 2**0.5
    torch.testing.assert_close(seen["maps"], slope)
    assert {name: len(times) for name, times in calibration.take().items()} == {
        "convolution": 1,
        "matrices": 1,
        "pointwise": 1,
    }
    assert calibration.take() == {}


def test_waiting_for_data_is_measured() -> None:
    process = run("segmenter_loading.py", "--epochs", "2", "--frames", "1", "--size", "192", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["steps"] == 2 * 4  # 16 crops of one frame, 4 a step
    assert 0 <= found["median_wait_s"] <= found["longest_wait_s"] < found["step_s"] * found["steps"]
    assert 0 < found["share_of_waiting"] < 1


def test_scoring_is_timed(tmp_path: Path) -> None:
    data, evaluation = tmp_path / "data", tmp_path / "evaluation"
    drawn = CliRunner().invoke(
        cli, ["phantoms", "-o", str(data), "--count", "2", "--size", "64", "--processes", "1"]
    )
    assert drawn.exit_code == 0, drawn.output
    (evaluation / "predictions").mkdir(parents=True)
    with open_labelled("phantom", data) as labelled:
        for sample in labelled.samples:
            vessels = sample.load().vessels
            assert vessels is not None
            write_probability(evaluation / "predictions" / f"{sample.id}.png", np.float32(0.9) * vessels)
    settings = {"threshold": 0.5, "binarisation": None, "bootstrap_samples": 100, "seed": 0}
    (evaluation / "evaluation.json").write_text(json.dumps(settings), encoding="utf-8")
    process = run("scoring.py", str(evaluation), "--dataset", "phantom", "--data", str(data))
    assert process.returncode == 0, process.stderr
    assert re.search(r": 2 images, \d+ intervals, \d+\.\d s of the clock", process.stdout)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    architecture = Architecture(base_width=2)
    config = ModelConfig(
        architecture=architecture,
        resolution=128,  # which the benchmark leaves aside
        statistics=Statistics(mean=(0.5, 0.3, 0.2), std=(0.2, 0.2, 0.2)),
        threshold=0.5,
        params={},
        versions={},
        git_commit=None,
        data_sha256="0",
    )
    torch.manual_seed(0)
    save_model(tmp_path / "model", build_model(architecture), config)
    return tmp_path / "model"


def test_tiles_are_measured_and_compared_with_the_whole(model: Path) -> None:
    process = run("tiled_prediction.py", str(model), "--side", "512", "--tiles", "416", "512", "--json")
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert {way: row["tiles"] for way, row in found.items()} == {"0": 1, "416": 4, "512": 1}
    assert "largest_difference" not in found["0"]
    assert 0 < found["416"]["largest_difference"] < 1e-5  # other sums, so not the whole image once more
    assert found["512"]["largest_difference"] == 0  # which this is
    assert all(row["loaded_gb"] < row["peak_gb"] < 2 for row in found.values())
    assert all(row["clock_s"] > 0 and row["processor_s"] > 0 for row in found.values())


@pytest.mark.parametrize("arguments", [["--side", "8"], ["--threads", "0"], ["--tiles", "17"]])
def test_a_tile_that_cannot_be_ends_in_a_message(model: Path, arguments: list[str]) -> None:
    process = run("tiled_prediction.py", str(model), *arguments)
    assert process.returncode == 2
    assert "error: " in process.stderr and "Traceback" not in process.stderr
