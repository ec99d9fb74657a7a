"""Variants of the base segmenter's recipe, short trainings judged on validation images of DRIVE alone.

    python docs/results/drive-base/variants.py train control OUT --seed 0  # and other variants, other seeds
    python docs/results/drive-base/variants.py table OUT                   # writes variants.md beside this

Run in the project's root folder with DRIVE in data/raw/drive. Everything is as in presets/drive-cpu.yaml,
but for the variant, 40 epochs instead of 240, and six validation images instead of two, on which threshold
and hysteresis are fitted. Each seed has its own six. No test image is scored. A training that was interrupted
goes on where it was.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import training
from pipeline.allocation import keep_freed_memory
from pipeline.binarise import Binarisation
from pipeline.binarise_fit import LabelledMap, tabulate
from pipeline.checks import read_item
from pipeline.errors import Problems
from pipeline.frames import Statistics, native_probability, predict_logits
from pipeline.losses import LossWeights, segmentation_loss
from pipeline.metrics.ranking import roc_auc
from pipeline.models.registry import Architecture
from pipeline.models.sa_unet import SAUNet
from pipeline.readers.raw import open_raw
from pipeline.readers.registry import READERS
from pipeline.segmenter_params import SegmenterParams
from pipeline.splits import assign_splits
from pipeline.training import Execution, TrainedSegmenter, train_segmenter
from pipeline.training_data import TrainingFrame, ValidationFrame, input_statistics, working_frame
from stages.params_file import read_yaml
from stages.train_base import Params

HERE = Path(__file__).parent
PRESET = HERE.parents[2] / "presets/drive-cpu.yaml"
EPOCHS, VALIDATION_COUNT = 40, 6
FIGURES = ("auc", "f1", "cldice", "components", "thin_recall", "kept_f1", "kept_cldice", "kept_components")


class TwoPasses(nn.Module):
    """W-Net (Galdran et al. 2022, Scientific Reports 12:6174): a second network sees image and first result.

    Both are SA-UNets of three quarters of the width, together as many products as one. While training,
    logits [2 N, 1, H, W] that count alike: of the second, then of the first.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = 3 * architecture.base_width // 4
        drop = (architecture.dropblock_size, architecture.dropblock_keep)
        self.first, self.second = SAUNet(width, *drop), SAUNet(width, *drop)
        self.second.encoder[0][0].conv = nn.Conv2d(4, width, 3, padding=1)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to logits, see the class; [N, 1, H, W] in evaluation mode."""
        first = self.first(x)
        second: Tensor = self.second(torch.cat([x, first.sigmoid()], dim=1))
        return torch.cat([second, first]) if self.training else second


@dataclass(frozen=True)
class Variant:
    """One change of the recipe.

    Attributes:
        note: what stands in the table.
        params: of the section `segmenter`, instead of the preset's.
        network: instead of the preset's.
        epochs: to train for.
    """

    note: str
    params: dict[str, Any] = field(default_factory=dict)
    network: Callable[[Architecture], nn.Module] | None = None
    epochs: int = EPOCHS


VARIANTS = {
    "control": Variant("the preset"),
    "cldice": Variant(
        "soft-clDice beside cross-entropy and Dice", {"loss": LossWeights(cldice=1.0).model_dump()}
    ),
    "skeleton-recall": Variant(
        "skeleton recall beside both", {"loss": LossWeights(skeleton_recall=1.0).model_dump()}
    ),
    "deep-supervision": Variant("coarser decoder levels supervised", {"deep_supervision": True}),
    "deep-skeleton": Variant(
        "both, skeleton recall at half the weight",
        {"deep_supervision": True, "loss": LossWeights(skeleton_recall=0.5).model_dump()},
    ),
    "second-pass": Variant("second network on image and first result", network=TwoPasses),
    "full-frames": Variant(
        "one full frame a step instead of four crops, as many pixels in all",
        {"crop": None, "examples_per_frame": 1, "batch_size": 1},
        epochs=50,  # 40 · 16 · 160² / (584 · 565)
    ),
}


@contextmanager
def network_instead(network: Callable[[Architecture], nn.Module] | None) -> Iterator[None]:
    """Train another network than the preset's; its predictions of the batch lie one behind the other."""
    if network is None:
        yield
        return

    def loss(predictions: Sequence[Tensor], targets: Tensor, terms: LossWeights) -> Tensor:
        parts = predictions[0].split(len(targets))
        return torch.stack([segmentation_loss(part, targets, terms) for part in parts]).mean()

    with (
        patch.object(training, "build_model", network),
        patch.object(training, "deep_supervision_loss", loss),
    ):
        yield


def split_frames(raw: Path, seed: int) -> tuple[list[TrainingFrame], list[ValidationFrame]]:
    """Read the development images: those to train on, and those to judge by."""
    problems = Problems(f"{raw}: not usable")
    with open_raw(raw, READERS["drive"].layout) as folder:
        items = READERS["drive"].read(folder, problems)
        problems.raise_if_any()
        assigned = assign_splits(
            items, validation_count=VALIDATION_COUNT, test_count=0, train_limit=None, seed=seed
        )
        frames: dict[str, list[ValidationFrame]] = {"train": [], "validation": []}
        for item, split in assigned:
            if split in frames:
                frame = read_item(item)
                assert frame.vessels is not None
                working = working_frame(frame.id, frame.image, frame.vessels, frame.fov, "native")
                frames[split].append(ValidationFrame(working, frame.vessels, frame.fov))
    return [frame.working for frame in frames["train"]], frames["validation"]


def judge(
    trained: TrainedSegmenter, frames: list[ValidationFrame], statistics: Statistics
) -> dict[str, float]:
    """Score on validation images, average of eight views.

    `f1` and shapes are those at the F1-maximal threshold, `kept_…` those with hysteresis; both are fitted on
    these very images, which flatters all variants alike.
    """
    maps = []
    for frame in frames:
        logits = predict_logits(trained.network, frame.working.image, statistics, views="dihedral")
        maps.append(LabelledMap(native_probability(logits, *frame.vessels.shape), frame.vessels, frame.fov))
    kept = trained.binarisation or Binarisation(threshold=trained.threshold)
    plain = [Binarisation(threshold=cut) for cut in np.linspace(0.2, 0.95, 76)]
    table = tabulate(maps, [kept, *plain])
    best = table.iloc[1 + int(table["f1"].iloc[1:].argmax())]
    scores = np.concatenate([found.probability[found.region] for found in maps])
    labels = np.concatenate([found.vessels[found.region] for found in maps])
    shown = ("f1", "cldice", "components", "beta0_error", "thin_recall")
    return (
        {"auc": roc_auc(scores, labels), "threshold": float(best["threshold"])}
        | {name: float(best[name]) for name in shown}
        | {f"kept_{name}": float(table.iloc[0][name]) for name in shown}
    )


@click.group()
def main() -> None:
    """Train variants, and tabulate them."""


@main.command()
@click.argument("name", type=click.Choice(sorted(VARIANTS)))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--raw", default=Path("data/raw/drive"), show_default=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("--threads", default=1, show_default=True, help="Other numbers give other last digits.")
def train(name: str, out: Path, seed: int, raw: Path, threads: int) -> None:
    """Train one variant with one seed and judge it."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    variant, preset = VARIANTS[name], read_yaml(PRESET)
    fit = {"threshold": "validation", "postprocess": "validation"}
    params = SegmenterParams.model_validate(preset["segmenter"] | fit | variant.params)
    schedule = Params.model_validate(preset["train_base"] | {"epochs": variant.epochs})
    frames, validation = split_frames(raw, seed)
    statistics = input_statistics(frames)
    folder = out / f"{name}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with network_instead(variant.network):
        trained = train_segmenter(
            schedule.phases("real", frames),
            validation,
            params,
            statistics,
            seed=seed,
            execution=Execution(workers=1, checkpoint_dir=folder / "checkpoint", checkpoint_minutes=0),
        )
    save_file(trained.network.state_dict(), folder / "weights.safetensors")
    trained.write_history(folder / "history.csv")
    found = judge(trained, validation, statistics)
    record = {
        "variant": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in trained.network.parameters()),
        "validation": [frame.working.id for frame in validation],
        "best": asdict(trained.best),
        "figures": found,
    }
    (folder / "figures.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    click.echo(json.dumps(found, indent=2))


@main.command()
@click.argument("out", type=click.Path(exists=True, path_type=Path))
def table(out: Path) -> None:
    """Write variants.md: means over the seeds, and paired differences to the control."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/figures.json"))]
    rows = pd.DataFrame([{"variant": r["variant"], "seed": r["seed"]} | r["figures"] for r in records])
    wide = rows.set_index(["variant", "seed"])[list(FIGURES)]
    control = wide.loc["control"]
    head = ["| validation, seeds | " + " | ".join(FIGURES) + " |", "|---" * (len(FIGURES) + 1) + "|"]
    means, differences = [*head], [*head]
    for name in [name for name in VARIANTS if name in wide.index]:
        own = wide.loc[name]
        means.append(_row(f"{name} ({len(own)})", [f"{own[figure].mean():.4g}" for figure in FIGURES]))
        if name == "control":
            continue
        paired = (own - control).dropna()
        differences.append(
            _row(
                f"{name} ({len(paired)})",
                [" ".join(f"{value:+.2g}" for value in np.asarray(paired[figure])) for figure in FIGURES],
            )
        )
    text = "\n".join([*means, "", "Difference to the control, seed by seed:", "", *differences, ""])
    (HERE / "variants.md").write_text(text, encoding="utf-8")
    click.echo(text)


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
