"""The segmenter's benchmark runs, and the plain way that it compares with is the same computation."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.scripts import load_script

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "segmenter_training.py"
TINY = ["--size", "32", "--base-width", "2", "--rounds", "1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_script(SCRIPT)


def test_both_ways_are_timed_and_agree(module: ModuleType) -> None:
    process = run(*TINY, "--json")
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    assert set(result["compared"]) == {"training step", "inference"}
    for row in result["compared"].values():
        assert all(row[way][unit] > 0 for way in ("plain", "ours") for unit in ("wall_s", "cpu_s"))
        assert row["ratio_wall"] == pytest.approx(row["plain"]["wall_s"] / row["ours"]["wall_s"])
    assert len(result["ours_alone"]) == 4
    differences = result["relative_differences"]
    assert set(differences) == {"loss", "gradients", "logits"}
    assert max(differences.values()) < 1e-3
    text = module.table(result)
    assert "| training step |" in text and "| DRIVE image, views: dihedral |" in text


def test_the_plain_dropblock_follows_the_same_distribution(module: ModuleType) -> None:
    from pipeline.models.blocks import DropBlock

    shares = []
    for drop in (module.PlainDropBlock(7, 0.82), DropBlock(7, 0.82)):
        torch.manual_seed(0)
        output = drop.train()(torch.ones(50, 20, 24, 24))
        assert output.mean() == pytest.approx(1, abs=1e-4)
        shares.append((output > 0).float().mean().item())
    assert shares[0] == pytest.approx(shares[1], abs=0.01)


@pytest.mark.parametrize("arguments", [["--size", "20"], ["--keep", "0"], ["--rounds", "0"]])
def test_impossible_settings_end_in_a_message(arguments: list[str]) -> None:
    process = run(*arguments)
    assert process.returncode == 2
    assert "error: --" in process.stderr and "Traceback" not in process.stderr
