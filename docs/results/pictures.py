"""Pictures and tables of a finished run: `python docs/results/pictures.py docs/results/NAME`.

Most datasets may not be redistributed, neither photographs nor labels, and hits and misses together are the
labels: only what the models mark is drawn, at half size, unless `--drawn` says that the images are phantoms.
"""

import json
import shutil
from pathlib import Path

import click
import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.binarise import Binarisation
from pipeline.images import read_probability, read_rgb, write_png
from pipeline.overlay import comparison_overlay, with_legend
from pipeline.prepared import load_samples

MODELS = ("base", "retrained", "ensemble")
COLUMNS = (
    "f1",
    "sensitivity",
    "specificity",
    "precision",
    "accuracy",
    "auc",
    "average_precision",
    "paper_f1",
)
REGIONS = {"inside the field of view": "metrics", "full frame": "metrics/full_frame"}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--drawn", is_flag=True, help="The images are phantoms: show them, with hits and misses.")
def main(folder: Path, drawn: bool) -> None:
    """Write masks.png, synthetic.png, gan.png and tables.md of the run in the working directory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "masks.png", masks(drawn))
    write_png(folder / "synthetic.png", synthetic())
    shutil.copy(max(Path("models/gan/samples").glob("generated_*.png")), folder / "gan.png")
    (folder / "tables.md").write_text(tables(), encoding="utf-8")


def masks(drawn: bool) -> NDArray[np.uint8]:
    """Best, median and worst test image of the base model (columns), by each model (rows)."""
    table = pd.read_csv("metrics/per_image.csv", dtype={"id": str})
    rows_of_base = table[(table["model"] == "base") & (table["region"] == "fov")]
    ranked = rows_of_base.sort_values("f1")["id"].tolist()
    chosen = [ranked[-1], ranked[len(ranked) // 2], ranked[0]]
    samples = {
        sample.id: sample for sample in load_samples(Path("data/prepared/test"), "test", allow_test=True)
    }
    rows = []
    for model in MODELS:
        config = json.loads(Path(f"models/{model}/config.json").read_text())
        fitted = config.get("binarisation") or {"threshold": config["threshold"]}
        binarisation = Binarisation.model_validate(fitted)
        row = []
        for identity in chosen:
            frame = samples[identity].load()
            assert frame.vessels is not None, "split `test` holds labelled images"
            marked = binarisation.mask(read_probability(Path(f"predictions/{model}/{identity}.png")))
            if drawn:
                picture = comparison_overlay(frame.image, marked, frame.vessels, frame.fov)
            else:
                white = np.where(marked & frame.fov, np.uint8(255), np.uint8(0))
                picture = np.repeat(white[:, :, None], 3, axis=2)
            row.append(_to_width(picture, picture.shape[1] // 2 if picture.shape[1] > 400 else 256))
        rows.append(np.concatenate(row, axis=1))
    return with_legend(np.concatenate(rows)) if drawn else np.concatenate(rows)


def synthetic(count: int = 8, side: int = 128) -> NDArray[np.uint8]:
    """First synthetic images above the vessel probabilities that the base model gives them."""
    names = [f"{index:06d}.png" for index in range(count)]
    images = [_to_width(read_rgb(Path("data/synthetic/images") / name), side) for name in names]
    labels = []
    for name in names:
        levels = (
            (read_probability(Path("data/synthetic/probabilities") / name) * 255).round().astype(np.uint8)
        )
        labels.append(_to_width(np.repeat(levels[:, :, None], 3, axis=2), side))
    return np.concatenate([np.concatenate(images, axis=1), np.concatenate(labels, axis=1)])


def tables() -> str:
    """Pooled figures of every model as Markdown, one table a region."""
    parts = []
    for title, root in REGIONS.items():
        rows = [f"| {title} | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
        for model in MODELS:
            pooled = json.loads(Path(f"{root}/{model}.json").read_text())["pooled"]
            rows.append(f"| {model} | " + " | ".join(f"{pooled[column]:.4f}" for column in COLUMNS) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _to_width(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    height = round(image.shape[0] * width / image.shape[1])
    method = cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


if __name__ == "__main__":
    main()
