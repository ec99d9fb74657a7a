"""`vesselforge evaluate`: score any model on any dataset that can be read."""

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from pipeline.commands.parameters import (
    describe_masks,
    device_option,
    gathering,
    model_option,
    overwrite_option,
    shows_errors,
    threads_option,
    threshold_option,
    tile_option,
    unwritable,
    views_option,
    views_warning,
)
from pipeline.errors import Problems, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.frames import Views
    from pipeline.inference import Predictor
    from pipeline.labelled_data import LabelledData, SplitName
    from pipeline.provenance import Provenance, Use
    from pipeline.scoring import Scores

# As pipeline.labelled_data knows them, which takes a second to load; a test compares.
DATASETS = ("drive", "chase_db1", "stare", "hrf", "folder", "phantom", "prepared")
PREDICTIONS, SETTINGS, PER_IMAGE, INTERVALS = (
    "predictions",
    "evaluation.json",
    "per_image.csv",
    "intervals.csv",
)
SUMMARIES = ("metrics.json", "full_frame.json", "topology.json", "agreement.json")
RESULTS = (PREDICTIONS, SETTINGS, PER_IMAGE, INTERVALS, *SUMMARIES)
ROWS = (
    ("F1 (Dice)", "f1"),
    ("AUC", "auc"),
    ("average precision", "average_precision"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("accuracy", "accuracy"),
    ("MCC", "mcc"),
    ("recall, thin vessels", "thin_recall"),
)
MEAN_ROWS = (
    ("clDice", "cldice", 4),
    ("components per mask", "components", 1),
    ("β0 error", "beta0_error", 1),
)
_SHOWN_IDS = 3


@dataclass(frozen=True)
class Request:
    """What is asked for on the command line; see the options' help."""

    model: Path
    data: Path
    dataset: str
    split: "SplitName | None"
    output: Path
    threshold: float | None
    views: "Views | None"
    tile: int | None
    device: str
    threads: int | None
    bootstrap_samples: int
    seed: int
    overwrite: bool

    @property
    def name(self) -> str:
        """The model's name in the tables: that of its folder."""
        return self.model.resolve().name

    @property
    def tile_side(self) -> int:
        """The tiles' side, in working pixels."""
        from pipeline.tiling import DEFAULT_TILE

        return DEFAULT_TILE if self.tile is None else self.tile


@click.command()
@model_option(required=True)
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="Folder of the dataset; see --dataset."
)
@click.option(
    "--dataset",
    required=True,
    type=click.Choice(DATASETS),
    help="How DATA is laid out: as the owners pack a public dataset, as your own folder (images/ and "
    "labels/), as `vesselforge phantoms` draws, or as the stage `prepare` writes (data/prepared/test).",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--split",
    type=click.Choice(["test", "train", "validation", "all"]),
    help="Which images [test where the dataset is divided, else all]. Only `prepared` knows validation.",
)
@threshold_option
@views_option
@tile_option
@click.option(
    "--bootstrap-samples",
    default=2000,
    show_default=True,
    type=click.IntRange(100, 100_000),
    help="Draws behind every interval.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of these draws.")
@device_option
@threads_option
@overwrite_option
@shows_errors
def evaluate(**options: Any) -> None:
    """Score a model on a dataset's labelled images.

    Writes into OUTPUT: metrics.json (pixel figures inside the field of view, pooled over all pixels and mean
    over images), full_frame.json (the same with the black border, which flatters accuracy and AUC),
    topology.json and agreement.json (field of view), intervals.csv (every figure with its 95% bootstrap
    interval over images, BCa), per_image.csv, predictions/ID.png (probabilities, 16 bits, 65535 = 1) and
    evaluation.json (what was scored, and how). Figures are those that the stage `evaluate` computes.

    Warns when the model is known to have been trained on images that are scored. OUTPUT appears when
    everything is done, and holds nothing but results; an earlier one is replaced with --overwrite alone.
    """
    request = Request(**options)
    try:
        with ExitStack() as stack:
            _evaluate(request, stack)
    except OSError as error:
        raise UserError(unwritable(error, request.output)) from error


def _evaluate(request: Request, stack: ExitStack) -> None:
    # Loaded here so that `vesselforge --help` does not wait for torch.
    from pipeline.allocation import keep_freed_memory
    from pipeline.evaluation import write_predictions
    from pipeline.new_folder import new_folder
    from pipeline.provenance import training_images
    from pipeline.scoring import Draws, score_predictions

    keep_freed_memory()
    model, labelled = _checked(request, stack)
    asked = views_warning(request.views, model.views, request.threshold)
    request = replace(request, views=request.views or model.views)
    provenance = training_images(request.model, Path.cwd())
    overlap = provenance.overlap(labelled.samples)
    few = _few_images(len(labelled.samples))
    for warning in (*_warnings(overlap, len(labelled.samples)), *asked, *few):
        click.echo(f"Warning: {warning}", err=True)
    draws = Draws(request.bootstrap_samples, request.seed)
    threshold = model.threshold if request.threshold is None else request.threshold
    with new_folder(request.output) as folder:
        progress = tqdm(labelled.samples, desc="predict", unit="image")
        write_predictions(_Views(model, request.views, request.tile_side), progress, folder / PREDICTIONS)
        scores = score_predictions(
            folder / PREDICTIONS,
            labelled.samples,
            request.name,
            draws,
            threshold=threshold,
            binarisation=model.binarisation if request.threshold is None else None,
        )
        _write(folder, scores, request, labelled, provenance, model.views)
    click.echo("\n".join(_report(scores, request, labelled, provenance)))


@dataclass(frozen=True)
class _Views:
    """A model with the views and tiles that were asked for, as `write_predictions` calls it."""

    model: "Predictor"
    views: "Views | None"
    tile: int

    def predict(self, image: "NDArray[np.uint8]") -> "NDArray[np.float32]":
        return self.model.predict(image, views=self.views, tile=self.tile)


def _checked(request: Request, stack: ExitStack) -> "tuple[Predictor, LabelledData]":
    """Load the model and the data, and look at the output, before anything is predicted.

    Raises:
        UserError: with everything that is wrong with any of them.
    """
    from pipeline.device import select_device
    from pipeline.inference import Predictor
    from pipeline.labelled_data import open_labelled
    from pipeline.tiling import check_tile

    problems = Problems("nothing was evaluated")
    model = labelled = None
    _check_output(request, problems)
    with gathering(problems):
        check_tile(request.tile_side)
    device = None
    with gathering(problems):
        device = select_device(request.device, request.threads)
    with gathering(problems):
        # A wrong device must not keep a broken model from being reported with it.
        model = Predictor.from_folder(request.model, device or select_device("cpu", request.threads))
    with gathering(problems):
        labelled = stack.enter_context(open_labelled(request.dataset, request.data, request.split))
    problems.raise_if_any()
    assert model is not None and labelled is not None
    return model, labelled


def _check_output(request: Request, problems: Problems) -> None:
    output = request.output.resolve()
    existing = next(path for path in (output, *output.parents) if path.exists())
    if not existing.is_dir():
        problems.add(f"{existing}: not a folder; expected a folder, or none yet, for -o; give another one")
        return
    for what, given in (("model", request.model), ("data", request.data)):
        if output.is_relative_to(given.resolve()):
            problems.add(
                f"{request.output}: lies in the {what} folder {given}, which results would change; "
                "expected a place outside; give another -o"
            )
    if output == Path.cwd().resolve():
        problems.add(
            f"{request.output}: the folder you are in; expected one that can be put in place; give another -o"
        )
    held = sorted(path.name for path in output.iterdir()) if output == existing else []
    foreign = [name for name in held if name not in RESULTS]
    if (output / PREDICTIONS).is_dir():
        foreign += [
            f"{PREDICTIONS}/{path.name}"
            for path in sorted((output / PREDICTIONS).iterdir())
            if path.suffix != ".png"
        ]
    if foreign:
        problems.add(
            f"{request.output}: holds what is no result of an evaluation ({_listed(foreign)}); expected a "
            "new or empty folder, or an earlier evaluation with --overwrite; give another -o"
        )
    elif held and not request.overwrite:
        problems.add(
            f"{request.output}: holds an earlier evaluation ({_listed(held)}); give --overwrite to replace "
            "it, or another -o"
        )


def _write(
    folder: Path,
    scores: "Scores",
    request: Request,
    labelled: "LabelledData",
    provenance: "Provenance",
    model_views: "Views",
) -> None:
    from pipeline.evaluation import write_metrics, write_per_image
    from pipeline.intervals import write_intervals

    for group, summary in scores.summaries.items():
        write_metrics(folder / f"{group}.json", summary)
    write_intervals(folder / INTERVALS, [scores.intervals])
    write_per_image(folder / PER_IMAGE, [scores.evaluation.per_image(request.name)])
    masks = scores.evaluation.binarisation
    settings = {
        "model": str(request.model),
        "data": str(request.data),
        "dataset": request.dataset,
        "split": labelled.split,
        "images": len(labelled.samples),
        "images_without_label_left_out": labelled.unlabelled,
        "fields_of_view_estimated": labelled.estimated,
        "threshold": scores.evaluation.threshold,
        "threshold_is_the_models_own": request.threshold is None,
        "binarisation": None if masks is None else masks.model_dump(),
        "views": request.views,
        "model_views": model_views,
        "tile": request.tile_side,
        "bootstrap_samples": request.bootstrap_samples,
        "seed": request.seed,
        "model_data_sha256": {str(config): digest for config, digest in provenance.recorded.items()},
        "training_data_found": not provenance.unknown,
        "scored_images_used_by_the_model": provenance.overlap(labelled.samples),
    }
    (folder / SETTINGS).write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _warnings(overlap: "dict[Use, list[str]]", images: int) -> list[str]:
    meanings: dict[Use, tuple[str, str]] = {
        "train": ("was TRAINED on", "figures of these say nothing about new images"),
        "validation": ("had its epoch and threshold chosen on", "figures of these flatter it"),
    }
    return [
        f"the model {meanings[use][0]} {len(ids)} of the {_count(images, 'image')} that are scored "
        f"({_listed(ids)}); {meanings[use][1]}"
        for use, ids in overlap.items()
        if ids
    ]


def _few_images(images: int) -> list[str]:
    """Say what intervals over so many images are worth, where that is little."""
    from pipeline.intervals import FEW_IMAGES

    if images == 1:
        return ["only 1 image is scored: it says nothing about others, so no figure has an interval"]
    if images < FEW_IMAGES:
        return [
            f"only {images} images are scored: 95% intervals over fewer than {FEW_IMAGES} images are too "
            "short"
        ]
    return []


def _report(
    scores: "Scores", request: Request, labelled: "LabelledData", provenance: "Provenance"
) -> list[str]:
    evaluation = scores.evaluation
    masks = describe_masks(evaluation.threshold, evaluation.binarisation, is_own=request.threshold is None)
    count = _count(len(labelled.samples), "image")
    left_out = f"; {labelled.unlabelled} without label left out" if labelled.unlabelled else ""
    field = "as the dataset gives it"
    if labelled.estimated:
        field = f"estimated for {_count(labelled.estimated, 'image')}, for which the dataset has no mask"
    return [
        f"Images         {count} of {request.data} ({request.dataset}, split {labelled.split}){left_out}",
        f"Model          {request.model}, {masks}, views {request.views}",
        f"Trained on     {_training_data(provenance, labelled)}",
        f"Field of view  {field}",
        "",
        *_table(scores, request.name),
        "",
        "Pooled: all pixels alike; mean: each image alike. "
        + (
            f"In brackets: 95% interval over {count}."
            if len(labelled.samples) > 1
            else "No interval: 1 image."
        ),
        f"Results in {request.output}",
    ]


def _training_data(provenance: "Provenance", labelled: "LabelledData") -> str:
    from pipeline.provenance import DEVELOPMENT

    if provenance.unknown:
        recorded = ", ".join(
            f"{provenance.recorded[config][:12]}… in {config}" for config in provenance.unknown
        )
        return (
            f"not known: no {DEVELOPMENT} above the model or here has the recorded hash ({recorded}); "
            "scored images may have been among them"
        )
    uses = list(provenance.used.values())
    folders = ", ".join(os.path.relpath(folder) for folder in provenance.folders)
    images = f"{uses.count('train')} images and {uses.count('validation')} for validation"
    scored = "" if any(provenance.overlap(labelled.samples).values()) else ", none of which is scored"
    return f"{folders}, whose hash is the recorded one: {images}{scored}"


def _table(scores: "Scores", name: str) -> list[str]:
    """Write the figures as aligned columns, in both regions: pooled [interval] and mean, then means alone.

    The last rows, of figures that are no sums over pixels, are means over images with their intervals.
    """
    from pipeline.evaluation import FIELD_OF_VIEW, FULL_FRAME
    from pipeline.intervals import figure_cells

    lines = [f"{'':22}{'field of view':34}{'full frame'}", f"{'':22}" + f"{'pooled':25}{'mean':9}" * 2]
    for label, figure in ROWS:
        cells = []
        for region in (FIELD_OF_VIEW, FULL_FRAME):
            for average, width in (("pooled", 25), ("mean", 9)):
                value, bounds = figure_cells(scores.intervals, [name], region, average, figure, 4)[0]
                text = _with_bounds(value, bounds) if average == "pooled" else value
                cells.append(f"{text:{width}}")
        lines.append(f"{label:22}{''.join(cells)}")
    lines += ["", f"{'':22}" + f"{'mean':34}" * 2]
    for label, figure, decimals in MEAN_ROWS:
        found = [
            figure_cells(scores.intervals, [name], region, "mean", figure, decimals)[0]
            for region in (FIELD_OF_VIEW, FULL_FRAME)
        ]
        lines.append(f"{label:22}" + "".join(f"{_with_bounds(*cell):34}" for cell in found))
    return [line.rstrip() for line in lines]


def _with_bounds(value: str, bounds: str) -> str:
    return value if value == "–" else f"{value} {bounds or '–'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_IDS]) + (", …" if len(names) > _SHOWN_IDS else "")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
