"""Tables and pictures of base segmenters on DRIVE: one evaluation and one model folder a seed.

    vesselforge evaluate -m SEED0/models/base --dataset drive --data data/raw/drive -o eval0   # and so on
    python docs/results/drive-base/summary.py eval0 eval1 … --model SEED0/models/base --model …

Writes tables.md, curves.svg, masks.png (of the first) and the figures of each evaluation beside this file.
Photographs and labels of DRIVE are not shown: they may not be redistributed. Models come in the order of the
evaluations. With `pip install mlscorecheck` the figures are tested with it for consistency.
"""

import json
from pathlib import Path

import click
import cv2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from mlscorecheck.check.bundles.retina import check_drive_vessel_aggregated

from pipeline.binarise import Binarisation
from pipeline.images import read_probability, write_png

matplotlib.rcParams["svg.hashsalt"] = "drive-base"  # equal figures, equal bytes
HERE = Path(__file__).parent
FIGURES = ("f1", "auc", "sensitivity", "specificity", "precision", "accuracy", "average_precision")
SHAPES = ("cldice", "components", "beta0_error")
CALIBRES = ("thin_recall", "thick_recall")


@click.command()
@click.argument("evaluations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--variants", is_flag=True, help="The evaluations are no seeds of one recipe: no mean and spread."
)
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, path_type=Path))
def main(evaluations: tuple[Path, ...], variants: bool, models: tuple[Path, ...]) -> None:
    """Write everything that shows how the seeds did."""
    for folder in evaluations:
        require_test_figures(folder)
    names = [name_of(folder) for folder in evaluations]
    if models and len(models) != len(evaluations):
        raise click.UsageError(f"{len(models)} models for {len(evaluations)} evaluations; give one for each")
    if len(set(names)) < len(names):
        raise click.UsageError(f"evaluations of equal names: {', '.join(names)}; rename the folders")
    parts = [
        pixel_table("inside the field of view", evaluations, "metrics.json", spread=not variants),
        pixel_table("full frame", evaluations, "full_frame.json", spread=not variants),
        shape_table(evaluations, spread=not variants),
        *(intervals(folder) for folder in evaluations),
        *(consistency(folder) for folder in evaluations),
    ]
    (HERE / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    draw_masks(evaluations[0])
    for folder in evaluations:
        keep_figures(folder)
    if models:
        draw_curves(dict(zip(names, models, strict=True)))


def load(folder: Path, file: str) -> dict[str, dict[str, float]]:
    """Read one file of figures: pooled and mean."""
    figures: dict[str, dict[str, float]] = json.loads((folder / file).read_text(encoding="utf-8"))
    return figures


def name_of(folder: Path) -> str:
    """Call an evaluation by its folder."""
    return folder.resolve().name


def require_test_figures(folder: Path) -> None:
    """Stop at an evaluation of other images, or at another threshold than the model's own."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    expected = {"dataset": "drive", "split": "test", "threshold_is_the_models_own": True}
    wrong = [f"{key}: {found.get(key)!r}" for key, value in expected.items() if found.get(key) != value]
    images = pd.read_csv(folder / "per_image.csv")["id"].nunique()
    if images != 20:
        wrong.append(f"images: {images}")
    if wrong:
        raise click.UsageError(
            f"{folder}: {', '.join(wrong)}; expected the 20 test images at the model's threshold"
        )


def row(name: str, values: list[float], digits: int) -> str:
    """One row of a table."""
    return f"| {name} | " + " | ".join(f"{value:.{digits}f}" for value in values) + " |"


def with_spread(rows: dict[str, list[float]], digits: int, spread: bool) -> list[str]:
    """One row a seed, and below them mean and standard deviation over the seeds if there are several."""
    lines = [row(name, values, digits) for name, values in rows.items()]
    if spread and len(rows) > 1:
        table = np.array(list(rows.values()))
        lines.append(row("mean", list(table.mean(axis=0)), digits))
        lines.append(row("standard deviation", list(table.std(axis=0, ddof=1)), digits))
    return lines


def pixel_table(title: str, evaluations: tuple[Path, ...], file: str, *, spread: bool) -> str:
    """All pixels pooled, and F1 as the mean of images."""
    head = [
        f"| {title} | " + " | ".join(FIGURES) + " | f1, mean of images |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    rows = {}
    for folder in evaluations:
        found = load(folder, file)
        rows[name_of(folder)] = [found["pooled"][name] for name in FIGURES] + [found["mean"]["f1"]]
    return "\n".join(head + with_spread(rows, 4, spread))


def shape_table(evaluations: tuple[Path, ...], *, spread: bool) -> str:
    """Whether vessels hang together, and which are found."""
    names = (*SHAPES, *CALIBRES)
    head = ["| inside the field of view | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    rows = {}
    for folder in evaluations:
        found = load(folder, "topology.json")
        rows[name_of(folder)] = [found["mean"][name] for name in SHAPES] + [
            found["pooled"][name] for name in CALIBRES
        ]
    return "\n".join(head + with_spread(rows, 3, spread))


def intervals(folder: Path) -> str:
    """The 95% intervals over images of one seed's pooled figures."""
    table = pd.read_csv(folder / "intervals.csv")
    lines = [f"| {name_of(folder)}, pooled | field of view | full frame |", "|---|---|---|"]
    for name in FIGURES:
        cells = []
        for region in ("fov", "full_frame"):
            found = table[(table.region == region) & (table.average == "pooled") & (table.figure == name)]
            cells += [f"{r.value:.4f} [{r.low:.4f}, {r.high:.4f}]" for r in found.itertuples()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def consistency(folder: Path) -> str:
    """Let mlscorecheck judge whether DRIVE's test images can give such figures."""
    lines = [
        f"| mlscorecheck, {name_of(folder)}, four decimals | mean of scores | score of means |",
        "|---|---|---|",
    ]
    for title, file, region in (
        ("field of view", "metrics.json", "fov"),
        ("full frame", "full_frame.json", "all"),
    ):
        verdicts = []
        for average, aggregation in (("mean", "mos"), ("pooled", "som")):
            found = load(folder, file)[average]
            scores = {"acc": found["accuracy"], "sens": found["sensitivity"], "spec": found["specificity"]}
            rounded = {name: round(value, 4) for name, value in scores.items()}
            result = check_drive_vessel_aggregated("test", 1, rounded, 1e-4, verbosity=0)
            inconsistent = result["inconsistency"][f"inconsistency_{region}_{aggregation}"]
            verdicts.append("inconsistent" if inconsistent else "consistent")
        lines.append(f"| {title} | {verdicts[0]} | {verdicts[1]} |")
    return "\n".join(lines)


def draw_masks(folder: Path) -> None:
    """What the model marks in the best, median and worst image, at half size."""
    table = pd.read_csv(folder / "per_image.csv", dtype={"id": str})
    ranked = table[table.region == "fov"].sort_values("f1")["id"].tolist()
    settings = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    fitted = settings.get("binarisation") or {"threshold": settings["threshold"]}
    binarisation = Binarisation.model_validate(fitted)
    pictures = []
    for identity in (ranked[-1], ranked[len(ranked) // 2], ranked[0]):
        probability = read_probability(folder / "predictions" / f"{identity}.png")
        marked = binarisation.mask(probability).astype(np.uint8) * 255
        size = (marked.shape[1] // 2, marked.shape[0] // 2)
        pictures.append(cv2.resize(marked, size, interpolation=cv2.INTER_AREA))
    write_png(HERE / "masks.png", np.repeat(np.concatenate(pictures, axis=1)[:, :, None], 3, axis=2))


def keep_figures(folder: Path) -> None:
    """Copy what an evaluation says in numbers; its predictions are too large."""
    kept = HERE / "figures" / name_of(folder).replace(" ", "-")
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.csv")]):
        (kept / path.name).write_bytes(path.read_bytes())


def draw_curves(models: dict[str, Path]) -> None:
    """Training loss and validation AUC over the epochs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, model in models.items():
        history = pd.read_csv(model / "history.csv")
        left.plot(history.epoch, history.train_loss, lw=0.8, label=name)
        validated = history.dropna(subset=["validation_auc"])
        right.plot(validated.epoch, validated.validation_auc, lw=0.8, label=name)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation AUC (field of view)", ylim=(0.95, None))
    right.legend()
    figure.savefig(HERE / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
