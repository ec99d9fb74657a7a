"""The page on DRIVE: its tables of results follow from the kept figures."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from pipeline.images import write_probability
from tests.scripts import load_script

PAGE = Path(__file__).resolve().parent.parent / "docs/results/drive-base"
SEEDS = ("seed-0", "seed-1", "seed-2")


@pytest.fixture(scope="module")
def summary() -> ModuleType:
    return load_script(PAGE / "summary.py")


def restored(kept: Path, into: Path, summary: ModuleType) -> list[Path]:
    """Give kept evaluations, the first with invented maps, as the real ones are too large to keep."""
    folders = []
    for seed in SEEDS:
        folder = into / seed
        folder.mkdir()
        for path in (kept / "figures" / seed).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        folders.append(folder)
    (folders[0] / "predictions").mkdir()
    for name, probability in zip(summary.shown_images(folders[0])["id"], (0.1, 0.5, 0.9), strict=True):
        write_probability(
            folders[0] / "predictions" / f"{name}.png", np.full((584, 565), probability, np.float32)
        )
    return folders


def tables(text: str) -> list[str]:
    """All tables but those that need mlscorecheck or the models."""
    without = ("mlscorecheck", "sha256")
    return [table for table in text.strip().split("\n\n") if not any(word in table for word in without)]


@pytest.mark.parametrize("kept", [PAGE, PAGE / "half-the-epochs"], ids=lambda path: path.name)
def test_the_tables_follow_from_the_kept_figures(
    tmp_path: Path, summary: ModuleType, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "consistency", lambda folder: f"| mlscorecheck, {folder.name} |")
    evaluations = restored(kept, tmp_path, summary)
    out = tmp_path / "out"
    result = CliRunner().invoke(summary.main, [*map(str, evaluations), "--into", str(out)])
    assert result.exit_code == 0, result.output
    assert tables((out / "tables.md").read_text()) == tables((kept / "tables.md").read_text())
    assert sorted(path.name for path in (out / "figures").iterdir()) == list(SEEDS)


def test_the_pages_rows_are_those_of_the_tables(summary: ModuleType) -> None:
    page = (PAGE / "README.md").read_text(encoding="utf-8")
    for file, region, key in (
        ("metrics.json", "field of view", "fov"),
        ("full_frame.json", "full frame", "full_frame"),
    ):
        rows = []
        for seed in SEEDS:
            pooled = summary.load(PAGE / "figures" / seed, file)["pooled"]
            names = ("f1", "auc", "sensitivity", "specificity", "accuracy")
            rows.append([pooled[name] for name in names])
            (row,) = re.findall(
                rf"^\| ours, {seed.replace('-', ' ')} \| {region} \| (.*) \|$", page, flags=re.MULTILINE
            )
            assert [cell.split(" ")[0] for cell in row.split(" | ")] == [f"{v:.4f}" for v in rows[-1]]
            found = pd.read_csv(PAGE / "figures" / seed / "intervals.csv")
            pooled_rows = found[(found.region == key) & (found.average == "pooled")].set_index("figure")
            for figure, cell in zip(names[:2], row.split(" | "), strict=False):
                low, high = pooled_rows.loc[figure, ["low", "high"]]
                assert cell.endswith(f" [{low:.4f}, {high:.4f}]")
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
        (row,) = re.findall(rf"^\| \*\*ours, mean ± sd\*\* \| {region} \| (.*) \|$", page, flags=re.MULTILINE)
        cells = row.replace("*", "").split(" | ")
        assert cells == [f"{m:.4f} ± {s:.4f}" for m, s in zip(mean, spread, strict=True)]
        assert cells[0] in page.split("|")[0] and cells[1] in page.split("|")[0]  # the headline


def test_the_pages_shapes_are_those_of_the_tables(summary: ModuleType) -> None:
    page = (PAGE / "README.md").read_text(encoding="utf-8").replace("*", "")
    rows = []
    for seed in SEEDS:
        shapes = summary.load(PAGE / "figures" / seed, "topology.json")
        rows.append(
            [shapes["mean"][name] for name in ("cldice", "components", "beta0_error")]
            + [shapes["pooled"][name] for name in ("thin_recall", "thick_recall")]
        )
        (line,) = [
            line
            for line in page.splitlines()
            if line.startswith(f"| ours, {seed.replace('-', ' ')} | ") and line.count("|") == 7
        ]
        cells = line.strip("| ").split(" | ")[1:]
        for cell, value, digits in zip(cells, rows[-1], (3, 1, 1, 3, 3), strict=True):
            assert float(cell) == pytest.approx(value, abs=0.5 * 10**-digits + 1e-9)  # 15.95 may be 16.0
    mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1)
    cells = " | ".join(
        f"{m:.{n}f} ± {s:.{n}f}" for m, s, n in zip(mean[:4], spread[:4], (3, 1, 1, 3), strict=True)
    )
    assert f"| ours, mean ± sd | {cells} | {mean[4]:.3f} |" in page


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("split", "all", "split: 'all'"), ("threshold_is_the_models_own", False, "threshold_is_the_models_own")],
)
def test_other_images_and_thresholds_are_refused(
    tmp_path: Path, summary: ModuleType, key: str, value: object, named: str
) -> None:
    evaluations = restored(PAGE, tmp_path, summary)
    path = evaluations[1] / "evaluation.json"
    text = path.read_text(encoding="utf-8")
    old = '"test"' if key == "split" else "true"
    new = f'"{value}"' if key == "split" else "false"
    assert f'"{key}": {old}' in text
    path.write_text(text.replace(f'"{key}": {old}', f'"{key}": {new}'), encoding="utf-8")
    result = CliRunner().invoke(summary.main, [*map(str, evaluations), "--into", str(path.parent / "out")])
    assert result.exit_code == 2 and named in result.output
    assert not (path.parent / "out" / "tables.md").exists()
