"""Variants of the base segmenter's recipe, short trainings judged on validation images of DRIVE alone.

    python docs/results/drive-base/variants.py train control OUT --seed 0  # and other variants, other seeds
    python docs/results/drive-base/variants.py table OUT  # keeps the figures beside this, writes variants.md
    python docs/results/drive-base/variants.py ema OUT    # averaged weights against the weights themselves
    python docs/results/drive-base/variants.py views OUT  # one view against averages over four and eight
    python docs/results/drive-base/variants.py cost       # a step of two passes against one of the control

Run in the project's root folder with DRIVE in data/raw/drive; a training takes about 12 minutes on one
thread (`longer-…`: half an hour, a second pass and `equal-time-control` half as long again). The control
is presets/drive-cpu.yaml without deep supervision and skeleton recall; its other keys are those that the
preset has now. Trainings last 40 epochs (full frames: 50, or 160 for as many steps; `longer-…`: 100,
`equal-time-control`: 157, `equal-pixels-control`: 129), and have six validation images instead of two, on
which the epoch is chosen and threshold and hysteresis are fitted. Each seed has its own six. No test
image is scored. A training that was interrupted goes on where it was, also with changed code or another
number of threads: begin anew then, elsewhere.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import click
import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipeline import training
from pipeline.allocation import keep_freed_memory
from pipeline.binarise import Binarisation
from pipeline.binarise_fit import LabelledMap, tabulate
from pipeline.checks import read_item
from pipeline.errors import Problems, UserError
from pipeline.frames import Statistics, Views, native_probability, predict_logits
from pipeline.losses import LossWeights, segmentation_losses
from pipeline.metrics.ranking import roc_auc
from pipeline.models.registry import Architecture, build_model
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
KEPT = HERE / "variants"
PRESET = HERE.parents[2] / "presets/drive-cpu.yaml"
EPOCHS, LONGER, VALIDATION_COUNT = 40, 100, 6
EQUAL_TIME = 157  # a step of two passes was measured to take 1.57 times the control's; 1.54 by `cost`
PLAIN = [Binarisation(threshold=cut) for cut in np.linspace(0.02, 0.98, 97)]
FIGURES = {  # and their decimals
    "threshold": 2,
    "auc": 4,
    "f1": 4,
    "cldice": 3,
    "components": 0,
    "thin_recall": 3,
    "kept_f1": 4,
    "kept_cldice": 3,
    "kept_components": 0,
    "kept_thin_recall": 3,
}


class TwoPasses(nn.Module):
    """W-Net (Galdran et al. 2022, Scientific Reports 12:6174): a second network sees image and first result.

    Both are SA-UNets of three quarters of the width, together an eighth more products than one. While
    training, logits [2 N, 1, H, W] that count alike: of the second, then of the first.
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
        control: what it is compared with; a control is compared with nothing, and named itself.
    """

    note: str
    params: dict[str, Any] = field(default_factory=dict)
    network: Callable[[Architecture], nn.Module] | None = None
    epochs: int = EPOCHS
    control: str = "control"


CONTROL = {"deep_supervision": False, "loss": LossWeights().model_dump()}
DEEP_SKELETON = {"deep_supervision": True, "loss": LossWeights(skeleton_recall=0.5).model_dump()}
VARIANTS = {
    "control": Variant("cross-entropy and Dice"),
    "cldice": Variant(
        "soft-clDice beside cross-entropy and Dice", {"loss": LossWeights(cldice=1.0).model_dump()}
    ),
    "skeleton-recall": Variant(
        "skeleton recall beside both", {"loss": LossWeights(skeleton_recall=1.0).model_dump()}
    ),
    "deep-supervision": Variant("coarser decoder levels supervised", {"deep_supervision": True}),
    "deep-skeleton": Variant(
        "both, skeleton recall at half the weight",
        DEEP_SKELETON,
    ),
    "second-pass": Variant("second network on image and first result", network=TwoPasses),
    "full-frames": Variant(
        "one full frame a step instead of four crops: as many pixels in all, a third of the steps",
        {"crop": None, "examples_per_frame": 1, "batch_size": 1},
        epochs=50,  # 40 · 16 · 160² / (584 · 565)
    ),
    "equal-pixels-control": Variant(
        "cross-entropy and Dice, as many pixels as full-frames-equal-steps",
        epochs=129,  # 160 · (584 · 565) / (16 · 160²)
        control="equal-pixels-control",
    ),
    "full-frames-equal-steps": Variant(
        "one full frame a step instead of four crops, as many steps as 40 epochs and as many pixels as 129",
        {"crop": None, "examples_per_frame": 1, "batch_size": 1, "validate_every": 20},  # 8 to choose from
        epochs=160,  # 40 · 16 / 4
        control="equal-pixels-control",
    ),
    "longer-control": Variant(
        f"cross-entropy and Dice, {LONGER} epochs", epochs=LONGER, control="longer-control"
    ),
    "longer-deep-skeleton": Variant(
        f"deep supervision and skeleton recall at half the weight, {LONGER} epochs",
        DEEP_SKELETON,
        epochs=LONGER,
        control="longer-control",
    ),
    "longer-second-pass": Variant(
        f"second network on image and first result, {LONGER} epochs",
        network=TwoPasses,
        epochs=LONGER,
        control="longer-control",
    ),
    "equal-time-control": Variant(
        f"cross-entropy and Dice for as long as {LONGER} epochs of two passes take: {EQUAL_TIME} epochs",
        epochs=EQUAL_TIME,
        control="longer-control",
    ),
}


@contextmanager
def network_instead(network: Callable[[Architecture], nn.Module] | None) -> Iterator[None]:
    """Train another network than the preset's; its predictions of the batch lie one behind the other."""
    if network is None:
        yield
        return

    def losses(predictions: Sequence[Tensor], targets: Tensor, terms: LossWeights) -> Tensor:
        return segmentation_losses(predictions[0].split(len(targets)), targets, terms)

    with (
        patch.object(training, "build_model", network),
        patch.object(training, "segmentation_losses", losses),
        patch.object(training, "deep_supervision_loss", torch.mean),
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


def predict(
    network: nn.Module, frames: list[ValidationFrame], statistics: Statistics, views: Views = "dihedral"
) -> tuple[list[LabelledMap], float]:
    """Predict validation images; the maps and their AUC."""
    maps = []
    for frame in frames:
        logits = predict_logits(network, frame.working.image, statistics, views=views)
        maps.append(LabelledMap(native_probability(logits, *frame.vessels.shape), frame.vessels, frame.fov))
    scores = np.concatenate([found.probability[found.region] for found in maps])
    labels = np.concatenate([found.vessels[found.region] for found in maps])
    return maps, roc_auc(scores, labels)


def judge(
    trained: TrainedSegmenter, frames: list[ValidationFrame], statistics: Statistics
) -> dict[str, float]:
    """Score on validation images.

    `f1` and shapes are those at the F1-maximal threshold, `kept_…` those with hysteresis; both are fitted on
    these very images, which flatters all variants, though not necessarily alike.
    """
    maps, auc = predict(trained.network, frames, statistics)
    kept = trained.binarisation or Binarisation(threshold=trained.threshold)
    table = tabulate(maps, [kept, *PLAIN])
    place = int(table["f1"].iloc[1:].argmax())
    if place in (0, len(PLAIN) - 1):
        raise click.ClickException(
            f"the best threshold, {PLAIN[place].threshold:g}, is the last of those tried"
        )
    best = table.iloc[1 + place]
    shown = ("f1", "cldice", "components", "beta0_error", "thin_recall")
    return (
        {"auc": auc, "threshold": float(best["threshold"])}
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
    params = SegmenterParams.model_validate(preset["segmenter"] | CONTROL | fit | variant.params)
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
@click.option(
    "--raw", default=Path("data/raw/drive"), show_default=True, type=click.Path(exists=True, path_type=Path)
)
def ema(out: Path, raw: Path) -> None:
    """Compare averaged weights with the weights themselves, in the last checkpoints of `control`."""
    lines = ["| seed, epoch | AUC, averaged | itself | F1, averaged | itself |", "|---|---|---|---|---|"]
    for path in sorted(out.glob("control-*/checkpoint/training.safetensors")):
        seed = int(path.parts[-3].removeprefix("control-"))
        frames, validation = split_frames(raw, seed)
        statistics = input_statistics(frames)
        with safe_open(path, framework="pt") as file:
            epoch = len(json.loads(file.metadata()["record"])["history"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        aucs, f1s = [], []
        for group in ("averaged/", "network/"):
            network = build_model(SegmenterParams.model_validate(read_yaml(PRESET)["segmenter"]).architecture)
            own = {key.removeprefix(group): value for key, value in tensors.items() if key.startswith(group)}
            network.load_state_dict(own)
            maps, auc = predict(network.eval(), validation, statistics)
            aucs.append(f"{auc:.4f}")
            f1s.append(f"{tabulate(maps, PLAIN)['f1'].max():.4f}")
        lines.append(_row(f"{seed}, {epoch}", [*aucs, *f1s]))
    click.echo("\n".join(lines))


@main.command()
@click.argument("out", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--raw", default=Path("data/raw/drive"), show_default=True, type=click.Path(exists=True, path_type=Path)
)
def views(out: Path, raw: Path) -> None:
    """Compare one view with averages over four and eight, by the controls' weights."""
    lines = ["| | views | AUC | F1 | clDice | recall, thin | parts a mask |", "|" + "---|" * 7]
    for path in sorted(out.glob("*control-*/weights.safetensors")):
        frames, validation = split_frames(raw, int(path.parent.name.rpartition("-")[2]))
        statistics = input_statistics(frames)
        network = build_model(SegmenterParams.model_validate(read_yaml(PRESET)["segmenter"]).architecture)
        network.load_state_dict(load_file(path))
        for kind in get_args(Views):
            maps, auc = predict(network.eval(), validation, statistics, kind)
            table = tabulate(maps, PLAIN)
            best = table.iloc[int(table["f1"].argmax())]
            figures = [f"{auc:.4f}", f"{best.f1:.4f}", f"{best.cldice:.3f}", f"{best.thin_recall:.3f}"]
            lines.append(_row(path.parent.name, [kind, *figures, f"{best.components:.0f}"]))
    click.echo("\n".join(lines))


@main.command()
@click.option(
    "--rounds",
    default=12,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps of each, in turn, after two to warm up.",
)
def cost(rounds: int) -> None:
    """Time a training step of the control and of two passes of several widths, on one thread.

    Forward, loss, backward and Adam; not the loading, nor the weights' moving average.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    preset = SegmenterParams.model_validate(read_yaml(PRESET)["segmenter"] | CONTROL)
    networks = {"control": build_model(preset.architecture)} | {
        f"two passes of {3 * width // 4} channels": TwoPasses(
            Architecture(base_width=width, dropblock_keep=1)
        )
        for width in (11, 16, 22)
    }
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(preset.batch_size, 3, preset.crop, preset.crop, generator=generator)
    targets = (torch.rand(preset.batch_size, 1, preset.crop, preset.crop, generator=generator) < 0.1).float()
    optimizers = {name: torch.optim.Adam(network.parameters()) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(2 + rounds):
        for name, network in networks.items():
            start = time.process_time()
            predictions = network.train()(images).split(len(images))
            losses = segmentation_losses(predictions, targets, preset.loss)
            optimizers[name].zero_grad(set_to_none=True)
            losses.mean().backward()
            optimizers[name].step()
            seconds[name].append(time.process_time() - start)
    for name, all_seconds in seconds.items():
        own = np.median(all_seconds[2:])
        ratio = own / np.median(seconds["control"][2:])
        click.echo(f"{name}: {own:.3f} s of processor time a step, {ratio:.2f} times the control's")


@main.command()
@click.argument("out", required=False, type=click.Path(exists=True, path_type=Path))
def table(out: Path | None) -> None:
    """Keep the figures in OUT beside this file, and write variants.md of all that are kept."""
    found = {path.stem: path.read_bytes() for path in KEPT.glob("*.json")}
    found |= {path.parent.name: path.read_bytes() for path in (out.glob("*/figures.json") if out else ())}
    records = [json.loads(content) for _, content in sorted(found.items())]
    missing = {f"{VARIANTS[r['variant']].control}-{r['seed']}" for r in records} - found.keys()
    if missing:
        raise click.ClickException(f"no figures of {', '.join(sorted(missing))}, which others compare with")
    KEPT.mkdir(exist_ok=True)
    for name, content in found.items():
        (KEPT / f"{name}.json").write_bytes(content)
    rows = pd.DataFrame([{"variant": r["variant"], "seed": r["seed"]} | r["figures"] for r in records])
    wide = rows.set_index(["variant", "seed"])[list(FIGURES)].sort_index()
    head = ["| |" + "|".join(f" {name} " for name in FIGURES) + "|", "|---" * (len(FIGURES) + 1) + "|"]
    lines, controls = [], {variant.control for variant in VARIANTS.values()}
    for name in [name for name in VARIANTS if name in wide.index]:
        own = wide.loc[name]
        seeds = ", ".join(str(seed) for seed in own.index)
        if name in controls:
            cells = [
                " ".join(f"{value:.{digits}f}" for value in np.asarray(own[figure]))
                for figure, digits in FIGURES.items()
            ]
        else:
            control = wide.loc[VARIANTS[name].control]
            cells = [
                " ".join(
                    f"{value:+.{digits}f}" for value in np.asarray((own - control.loc[own.index])[figure])
                )
                for figure, digits in FIGURES.items()
            ]
        lines.append(_row(f"{name} (seeds {seeds})", cells))
    notes = [f"- {name}: {variant.note}" for name, variant in VARIANTS.items() if name in wide.index]
    title = "The controls' figures, and what a variant adds to those of the same seed, seed by seed:"
    text = "\n".join([title, "", *head, *lines, "", *notes, ""])
    (HERE / "variants.md").write_text(text, encoding="utf-8")
    click.echo(text)


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
