"""Tables and pictures of base segmenters on DRIVE: one evaluation and one model folder a seed.

    vesselforge evaluate -m SEED0/models/base --dataset drive --data data/raw/drive -o eval0   # and so on
    python docs/results/drive-base/summary.py eval0 eval1 … --model SEED0/models/base --model … --into FOLDER

Writes tables.md, curves.svg, masks.png (of the first evaluation), the figures of each evaluation and the
history of each model into a folder. Photographs and labels of DRIVE are not shown: they may not be
redistributed; `--overlays FOLDER` draws the same images with hits and misses, for your own eyes. Models come
in the order of the evaluations. Needs `pip install mlscorecheck`, which tests accuracy, sensitivity and
specificity for consistency.
"""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import click
import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import pyplot as plt

from pipeline.binarise import Binarisation
from pipeline.checks import read_item
from pipeline.errors import Problems, UserError
from pipeline.images import read_probability, write_png
from pipeline.overlay import comparison_overlay, with_legend
from pipeline.readers.raw import open_raw
from pipeline.readers.registry import READERS

matplotlib.rcParams["svg.hashsalt"] = "drive-base"  # equal figures, equal bytes
HERE = Path(__file__).parent
RAW = Path("data/raw/drive")
FIGURES = ("f1", "auc", "sensitivity", "specificity", "precision", "accuracy", "average_precision")
SHAPES = ("cldice", "components", "beta0_error")
CALIBRES = ("thin_recall", "thick_recall")
AGREEMENT = ("mcc", "iou", "ece")
REGIONS = {"fov": "inside the field of view", "full_frame": "full frame"}


@click.command()
@click.argument("evaluations", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--variants", is_flag=True, help="The evaluations are no seeds of one recipe: no mean and spread."
)
@click.option("--model", "models", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--into", default=HERE, type=click.Path(path_type=Path), help="Where to write.")
@click.option("--overlays", type=click.Path(path_type=Path), help="Where to draw hits and misses; private.")
def main(
    evaluations: tuple[Path, ...],
    variants: bool,
    models: tuple[Path, ...],
    into: Path,
    overlays: Path | None,
) -> None:
    """Write everything that shows how the seeds did."""
    into.mkdir(parents=True, exist_ok=True)
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
        agreement_table(evaluations, spread=not variants),
        images_table(evaluations),
        *(intervals(folder) for folder in evaluations),
        *(consistency(folder) for folder in evaluations),
    ]
    if models:
        parts.append(weights_table(dict(zip(names, models, strict=True))))
    draw_masks(evaluations[0], into)
    (into / "tables.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    for folder in evaluations:
        keep_figures(folder, into)
    if models:
        draw_curves(dict(zip(names, models, strict=True)), into)
    if overlays is not None:
        draw_overlays(evaluations[0], overlays)


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


def agreement_table(evaluations: tuple[Path, ...], *, spread: bool) -> str:
    """Correlation, overlap and calibration of all pixels, and how far the outlines lie apart, in pixels."""
    head = [
        "| field of view | " + " | ".join(AGREEMENT) + " | distance |",
        "|---" * (len(AGREEMENT) + 2) + "|",
    ]
    rows = {}
    for folder in evaluations:
        found = load(folder, "agreement.json")
        rows[name_of(folder)] = [found["pooled"][name] for name in AGREEMENT] + [
            found["mean"]["mean_surface_distance"]
        ]
    return "\n".join(head + with_spread(rows, 4, spread))


def ranked_images(folder: Path, region: str = "fov") -> pd.DataFrame:
    """The images of one evaluation, from the best F1 to the worst."""
    table = pd.read_csv(folder / "per_image.csv", dtype={"id": str})
    return table[table.region == region].sort_values("f1", ascending=False, ignore_index=True)


def shown_images(folder: Path) -> pd.DataFrame:
    """The best image, the better of the two in the middle, and the worst."""
    ranked = ranked_images(folder)
    return ranked.iloc[[0, (len(ranked) - 1) // 2, len(ranked) - 1]]


def images_table(evaluations: tuple[Path, ...]) -> str:
    """F1 and AUC of single images."""
    lines = ["| per image | F1: best, median, worst | AUC: median, worst |", "|---|---|---|"]
    for folder in evaluations:
        for region, title in REGIONS.items():
            ranked = ranked_images(folder, region)
            best, worst = ranked.iloc[0], ranked.iloc[-1]
            f1 = f"{best.f1:.4f} ({best.id}), {ranked.f1.median():.4f}, {worst.f1:.4f} ({worst.id})"
            auc = f"{ranked.auc.median():.4f}, {ranked.auc.min():.4f}"
            lines.append(f"| {name_of(folder)}, {title} | {f1} | {auc} |")
    return "\n".join(lines)


def weights_table(models: dict[str, Path]) -> str:
    """Which weights they are, and where training ended."""
    lines = ["| weights | sha256 | commit | kept epoch | validation AUC |", "|---|---|---|---|---|"]
    for name, model in models.items():
        digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        commit = str(json.loads((model / "config.json").read_text(encoding="utf-8")).get("git_commit"))[:7]
        history = pd.read_csv(model / "history.csv")
        kept = history[history.kept].iloc[0]
        cells = f"`{digest[:16]}…` | {commit} | {kept.epoch} of {len(history)} | {kept.validation_auc:.4f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def intervals(folder: Path) -> str:
    """The 95% intervals over images of one seed's figures: pooled, and means of images."""
    table = pd.read_csv(folder / "intervals.csv")
    lines = [f"| {name_of(folder)} | field of view | full frame |", "|---|---|---|"]
    kinds = [(name, "pooled") for name in (*FIGURES, *AGREEMENT, *CALIBRES)]
    kinds += [(name, "mean") for name in (*FIGURES, *SHAPES, "mean_surface_distance")]
    for name, average in kinds:
        cells = []
        for region in REGIONS:
            found = table[(table.region == region) & (table.average == average) & (table.figure == name)]
            cells.append("".join(f"{r.value:.4f} [{r.low:.4f}, {r.high:.4f}]" for r in found.itertuples()))
        lines.append(f"| {name}, {average} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def consistency(folder: Path) -> str:
    """Let mlscorecheck judge whether DRIVE's test images can give such figures."""
    from mlscorecheck.check.bundles.retina import check_drive_vessel_aggregated

    lines = [
        f"| mlscorecheck {version('mlscorecheck')}, {name_of(folder)}, four decimals | mean of scores "
        "| score of means |",
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


def marked_vessels(folder: Path, identity: str) -> npt.NDArray[np.bool_]:
    """What the model marks in one image."""
    settings = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    fitted = settings.get("binarisation") or {"threshold": settings["threshold"]}
    probability = read_probability(folder / "predictions" / f"{identity}.png")
    return Binarisation.model_validate(fitted).mask(probability)


def draw_overlays(folder: Path, into: Path) -> None:
    """Hits and misses on the photographs of the best, median and worst image."""
    problems = Problems(f"{RAW}: not usable")
    chosen = shown_images(folder)["id"].tolist()
    into.mkdir(parents=True, exist_ok=True)
    with open_raw(RAW, READERS["drive"].layout) as raw:
        items = READERS["drive"].read(raw, problems)
        problems.raise_if_any()
        for frame in (read_item(item) for item in items if item.id in chosen):
            assert frame.vessels is not None
            marked = marked_vessels(folder, frame.id)
            picture = comparison_overlay(frame.image, marked, frame.vessels, frame.fov)
            write_png(into / f"{frame.id}.png", with_legend(picture))


def draw_masks(folder: Path, into: Path) -> None:
    """What the model marks in the best, median and worst image, at half size."""
    pictures = []
    for identity in shown_images(folder)["id"]:
        marked = marked_vessels(folder, identity).astype(np.uint8) * 255
        size = (marked.shape[1] // 2, marked.shape[0] // 2)
        pictures.append(cv2.resize(marked, size, interpolation=cv2.INTER_AREA))
    write_png(into / "masks.png", np.repeat(np.concatenate(pictures, axis=1)[:, :, None], 3, axis=2))


def keep_figures(folder: Path, into: Path) -> None:
    """Copy what an evaluation says in numbers; its predictions are too large."""
    kept = into / "figures" / name_of(folder).replace(" ", "-")
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.csv")]):
        (kept / path.name).write_bytes(path.read_bytes())


def draw_curves(models: dict[str, Path], into: Path) -> None:
    """Training loss and validation AUC over the epochs; the history is kept beside the figures."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for name, model in models.items():
        history = pd.read_csv(model / "history.csv")
        history.to_csv(into / "figures" / name.replace(" ", "-") / "history.csv", index=False)
        left.plot(history.epoch, history.train_loss, lw=0.8, label=name)
        validated = history.dropna(subset=["validation_auc"])
        right.plot(validated.epoch, validated.validation_auc, lw=0.8, label=name)
    left.set(xlabel="epoch", ylabel="training loss")
    right.set(xlabel="epoch", ylabel="validation AUC (field of view)", ylim=(0.95, None))
    right.legend()
    figure.savefig(into / "curves.svg", metadata={"Date": None})


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
