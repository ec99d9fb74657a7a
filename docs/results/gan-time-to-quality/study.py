"""How much processor time a GAN of phantoms needs for a quality: recipes side by side.

    export GOMP_SPINCOUNT=1000  # as the pipeline sets it: waiting threads sleep
    python docs/results/gan-time-to-quality/study.py OUT from-scratch fine-tuned ...
    python docs/results/gan-time-to-quality/study.py OUT --summary

Every recipe is a list of trainings, each on the networks of the one before. After every `EVERY` images the
averaged generator draws 500 images, whose KID to 500 phantoms that no training saw is measured. Processor
time is that of training alone, all threads together: neither drawing phantoms nor measuring KID counts. A
recipe that was interrupted goes on where it was.
"""

import argparse
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray

from pipeline.laterality import turn_disc
from pipeline.phantom import draw_phantoms
from stylegan2.config import TrainingOptions, resolve
from stylegan2.features import extract_features, load_feature_network
from stylegan2.images import image_grid, write_png
from stylegan2.metrics import kid, kid_floor
from stylegan2.ops.allocation import keep_freed_memory
from stylegan2.ops.selection import announce_implementation
from stylegan2.sampling import sample_images
from stylegan2.training import CHECKPOINT, Trainer
from stylegan2.transfer import SourceNetworks

SIZE = 128
SEED = 0
TRAINING_SEED, HELD_OUT_SEED = (
    11,
    7,
)  # collections of phantoms; the pretraining's and the default preset's are others
TRAINING_COUNT, HELD_OUT_COUNT = 2000, 500
EVERY = 1000  # images shown between two measurements

YARDSTICK = "from-scratch"
LEAN: dict[str, Any] = {"fmaps": 0.0625, "channel_max": 64, "z_dim": 128, "w_dim": 128, "mapping_layers": 2}


@dataclass(frozen=True)
class Step:
    """One training of a recipe.

    Attributes:
        options: of the training, but for resolution and init.
        resolution: in pixels.
        blood: absorbance of the vessels in the training images, see `draw_phantom`; 1 as in the held-out.
    """

    options: dict[str, Any]
    resolution: int = SIZE
    blood: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """Trainings one after the other.

    Attributes:
        steps: of the recipe.
        init: networks that the first one starts from; None = afresh.
        note: what stands in the table.
    """

    steps: list[Step]
    note: str
    init: str | None = None


RECIPES: dict[str, Recipe] = {
    YARDSTICK: Recipe(
        [Step({"kimg": 25.0, "batch": 8, "fmaps": 0.125, "channel_max": 128, "mapping_layers": 2})],
        "fmaps 0.125, everything else as the original decides it (bgc augmentation, ADA)",
    ),
    "lean-grown": Recipe(
        [
            Step({**LEAN, "kimg": 8.0, "batch": 16, "gamma": 0.02, "aug": "noaug", "pl_weight": 0.0}, 32),
            Step({**LEAN, "kimg": 8.0, "batch": 8, "gamma": 0.04, "aug": "noaug", "pl_weight": 0.0}, 64),
            Step({**LEAN, "kimg": 6.0, "batch": 8, "gamma": 0.1, "aug": "noaug", "pl_weight": 0.0}),
        ],
        "fmaps 0.0625, w 128, no augmentation, no path-length regularisation, grown over 32 and 64 pixels",
    ),
    "fine-tuned": Recipe(
        [
            Step(
                {
                    "kimg": 3.0,
                    "batch": 8,
                    "gamma": 0.1,
                    "aug": "noaug",
                    "pl_weight": 0.0,
                    "style_mixing_prob": 0.5,
                    "ema_kimg": 1.5,
                }
            )
        ],
        "phantom128, pretrained on other phantoms; no augmentation, no path-length regularisation, gamma 0.1",
        init="phantom128",
    ),
    "fine-tuned-slowly": Recipe(
        [Step({"kimg": 4.0, "batch": 8, "gamma": 1.0, "aug": "noaug", "lr": 0.0005, "pl_weight": 0.0})],
        "the same with lr 0.0005 instead of 0.0025, gamma 1",
        init="phantom128",
    ),
}


@dataclass
class Progress:
    """What a recipe has cost and reached so far, kept in progress.json."""

    path: Path
    cpu_s: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Progress":
        """Read the file, if there is one."""
        return cls(path, **json.loads(path.read_text())) if path.exists() else cls(path)

    def save(self) -> None:
        """Write the file."""
        self.path.write_text(json.dumps({"cpu_s": self.cpu_s, "rows": self.rows}, indent=1) + "\n")


class Judge:
    """Measures KID of a generator to phantoms that no training saw."""

    def __init__(self, cache: Path) -> None:
        self.network = load_feature_network()
        self.real = extract_features(self.network, phantoms(HELD_OUT_SEED, HELD_OUT_COUNT, 1.0, cache))

    def floor(self) -> float:
        """Upper end of the 95% range of KID between halves of the real ones."""
        return kid_floor(self.real, network_name=self.network.name).upper

    def __call__(self, generator: torch.nn.Module, picture: Path) -> dict[str, float]:
        """Give KID with its interval, and write a grid of the first 16 images."""
        drawn = np.stack(list(sample_images(generator, range(HELD_OUT_COUNT), 1.0)))
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_png(picture, image_grid(drawn[:16], 4))
        result = kid(self.real, extract_features(self.network, drawn), network_name=self.network.name)
        return {"kid": result.value, "kid_lo": result.lo, "kid_hi": result.hi}


def phantoms(seed: int, count: int, blood: float, cache: Path) -> NDArray[np.uint8]:
    """Draw phantoms as right eyes, uint8 [count, 128, 128, 3], or read them from the cache."""
    path = cache / f"phantoms-{seed}-{count}-{blood:g}.npy"
    if not path.exists():
        drawn = draw_phantoms(seed, range(count), SIZE, processes=2, blood=blood)
        images = np.stack([turn_disc(phantom.image, "right") for phantom in drawn])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, images)
    return np.load(path)


def reduce(images: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """Reduce images to a lower resolution by averaging areas."""
    if resolution == SIZE:
        return images
    size = (resolution, resolution)
    return np.stack([cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images])


def run(name: str, out: Path, judge: Judge) -> None:
    """Run a recipe to its end, from where an earlier run stopped."""
    recipe, folder, init = RECIPES[name], out / name, RECIPES[name].init
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress.load(folder / "progress.json")
    for number, step in enumerate(recipe.steps, 1):
        finished = folder / f"step{number}"
        if not (finished / "config.json").exists():
            train_step(step, init, finished, progress, judge, out)
        init = str(finished)


def train_step(
    step: Step, init: str | None, finished: Path, progress: Progress, judge: Judge, cache: Path
) -> None:
    """Train one step, measuring as it goes."""
    source = None if init is None else SourceNetworks.load(init)
    grow = source is not None and source.generator["img_resolution"] < step.resolution
    options = TrainingOptions(resolution=step.resolution, init=init, grow=grow, **step.options)
    images = reduce(phantoms(TRAINING_SEED, TRAINING_COUNT, step.blood, cache), step.resolution)
    work = finished.with_name(finished.name + "-work")
    work.mkdir(exist_ok=True)
    trainer = Trainer(
        images,
        resolve(options, source=None if source is None else source.architecture),
        source=source,
        seed=SEED,
        device=torch.device("cpu"),
        progress_dir=work,
        checkpoint=work / CHECKPOINT,
    )
    trainer.restore()
    earlier = 0.0 if not progress.rows else progress.rows[-1]["shown"]
    before = earlier - trainer.images_seen  # images that the earlier steps showed
    if trainer.images_seen == 0:
        trainer.snapshots.show_real()
        measure(trainer, before, progress, judge, finished)
    while trainer.images_seen < trainer.total_images:
        started = time.process_time()
        trainer.train_iteration()
        progress.cpu_s += time.process_time() - started
        if trainer.images_seen % EVERY < trainer.options.batch or trainer.images_seen >= trainer.total_images:
            measure(trainer, before, progress, judge, finished)
    trainer.export(finished, {})


def measure(trainer: Trainer, before: float, progress: Progress, judge: Judge, finished: Path) -> None:
    """Take down cost and, at the full resolution, KID."""
    row = {"shown": before + trainer.images_seen, "cpu_s": round(progress.cpu_s, 2)}
    row["r_t"] = trainer.averages.mean("signs_real") or 0.0
    trainer.averages.clear()
    if trainer.options.resolution == SIZE:
        picture = finished.parent / "samples" / f"{int(row['shown']):06d}.png"
        row |= judge(trainer.average, picture)
    logging.info("%s: %s", finished.parent.name, {key: round(value, 3) for key, value in row.items()})
    progress.rows.append(row)
    trainer.save()
    progress.save()


def summary(out: Path, judge: Judge) -> None:
    """Write results.json, the table and the plot of all recipes that have run."""
    notes = {name: recipe.note for name, recipe in RECIPES.items()}
    notes["projected"] = "phantom128 against projected discriminators (projected.py)"
    tables = {
        name: pd.DataFrame(Progress.load(out / name / "progress.json").rows)
        for name in notes
        if (out / name / "progress.json").exists()
    }
    target = tables[YARDSTICK].iloc[-1]
    lines = [
        "| recipe | images shown | CPU s | KID at the end | CPU s to the first row's KID | share |",
        "|---|---|---|---|---|---|",
    ]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, table in tables.items():
        measured = table.dropna(subset=["kid"])
        last, reached = measured.iloc[-1], measured[measured.kid <= target.kid]
        seconds = float(reached.iloc[0].cpu_s) if len(reached) else None
        share = "not reached" if seconds is None else f"{seconds / target.cpu_s:.3f}"
        interval = f"[{last.kid_lo:.2f}, {last.kid_hi:.2f}]"
        lines.append(
            f"| {name}: {notes[name]} | {last.shown:,.0f} | {last.cpu_s:,.0f} | {last.kid:.2f} "
            f"{interval} | {'' if seconds is None else f'{seconds:,.0f}'} | {share} |"
        )
        axes.plot(measured.cpu_s / 60, measured.kid, marker="o", ms=3, label=name)
        axes.fill_between(measured.cpu_s / 60, measured.kid_lo, measured.kid_hi, alpha=0.2)
    axes.axhline(target.kid, color="gray", lw=0.8, ls="--")
    axes.axvline(target.cpu_s / 5 / 60, color="gray", lw=0.8, ls=":")
    axes.set(xlabel="minutes of processor time", ylabel="KID to 500 unseen phantoms (95%)", yscale="log")
    axes.legend()
    figure.savefig(out / "kid.svg", metadata={"Date": None})
    results = {name: table.to_dict("records") for name, table in tables.items()}
    floor = judge.floor()
    (out / "results.json").write_text(json.dumps({"floor_hi": floor, "recipes": results}, indent=1) + "\n")
    print("\n".join(lines))
    print(f"\nKID between halves of the unseen phantoms: at most {floor:.3f} (95%)")


def main() -> None:
    """Run recipes, or sum up."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], help="which; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="run nothing, sum up what has run")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    announce_implementation(torch.device("cpu"))
    judge = Judge(arguments.out)
    if not arguments.summary:
        for name in arguments.recipes or RECIPES:
            run(name, arguments.out, judge)
    summary(arguments.out, judge)


if __name__ == "__main__":
    main()
