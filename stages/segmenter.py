"""What base training and retraining share: the two-step schedule, execution, and the model folder."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import click
from pydantic import Field, model_validator

from pipeline.model_folder import BestEpoch, ModelConfig, save_model
from pipeline.prepared import load_samples
from pipeline.schema import Strict
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Execution, Phase, TrainedSegmenter, train_segmenter
from pipeline.training_data import TrainingFrame, input_statistics, training_frames, validation_frames
from stages.context import StageRun
from stages.training_watch import TrainingWatch

DEVELOPMENT = "data/prepared/development"
HISTORY_FILE = "history.csv"
VALIDATION_FILE = "validation.csv"
LIVE_FOLDER = "live"  # below the private checkpoint folder
_WATCHED_THRESHOLD = 0.5  # while the one to keep is still to be fitted

Epochs = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class TwoStepSchedule(Strict):
    """How long and how fast to train on one kind of images: the paper's two-step learning rate, or a cosine.

    Attributes:
        schedule: `steps`: one constant rate after another; `cosine`: the rate falls from `learning_rate` to
            `final_learning_rate`, which must not be larger, over `epochs`, and `final_epochs` has to be 0.
        warmup_steps: first optimiser steps of `epochs`, over which the rate rises from 0; not all of them.
        epochs, learning_rate: of the first step.
        final_epochs, final_learning_rate: of the second; 0 epochs leave it out.
        augment: whether the images are augmented.
    """

    epochs: Epochs
    learning_rate: Rate
    final_epochs: Epochs = 0
    final_learning_rate: Rate = 1e-4
    augment: bool
    schedule: Literal["steps", "cosine"] = "steps"
    warmup_steps: Epochs = 0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        problems = []
        if self.epochs + self.final_epochs == 0:
            problems.append("epochs and final_epochs are both 0; expected at least one epoch")
        if self.schedule == "cosine" and self.final_epochs:
            problems.append(
                f"schedule cosine with final_epochs {self.final_epochs}; expected final_epochs 0: the rate "
                "falls to final_learning_rate within epochs"
            )
        if self.schedule == "cosine" and self.final_learning_rate > self.learning_rate:
            problems.append(
                f"schedule cosine from learning_rate {self.learning_rate:g} to final_learning_rate "
                f"{self.final_learning_rate:g}; expected a rate that falls: lower final_learning_rate"
            )
        if self.warmup_steps and not self.epochs:
            problems.append(
                f"warmup_steps {self.warmup_steps} with epochs 0; expected warmup_steps 0: final_epochs are "
                "not warmed up"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def phases(self, name: str, frames: Sequence[TrainingFrame], *, selectable: bool = True) -> list[Phase]:
        """Make the steps that have epochs: `name` and `name (final)`, as `pipeline.verdict` reads them."""
        falls_to = self.final_learning_rate if self.schedule == "cosine" else None
        steps = (
            (name, self.epochs, self.learning_rate, falls_to, self.warmup_steps),
            (f"{name} (final)", self.final_epochs, self.final_learning_rate, None, 0),
        )
        return [
            Phase(step, frames, epochs, rate, self.augment, selectable, final_rate, warmup_steps)
            for step, epochs, rate, final_rate, warmup_steps in steps
            if epochs
        ]


def real_frames(run: StageRun) -> list[TrainingFrame]:
    """Load the real training images at the segmenter's resolution."""
    return training_frames(load_samples(run.dep(DEVELOPMENT), "train"), run.shared["segmenter"].resolution)


def train_and_save(
    run: StageRun, phases: Sequence[Phase], real: Sequence[TrainingFrame], folder: Path
) -> None:
    """Train through the phases and write the best epoch as a model folder.

    Args:
        run: of a stage that reads the section `segmenter` and the development data.
        phases: in order.
        real: the real training images, whose channel statistics normalise every input.
        folder: the stage's output.
    """
    segmenter: SegmenterParams = run.shared["segmenter"]
    validation = validation_frames(load_samples(run.dep(DEVELOPMENT), "validation"), segmenter.resolution)
    labelled_training = []
    if segmenter.fits_on_development:
        samples = load_samples(run.dep(DEVELOPMENT), "train")
        labelled_training = validation_frames(samples, segmenter.resolution)
    statistics = input_statistics(real)
    has_bar = sys.stderr.isatty()
    with TrainingWatch(
        run.checkpoint_dir / LIVE_FOLDER,
        phases,
        validation,
        statistics,
        _WATCHED_THRESHOLD if isinstance(segmenter.threshold, str) else segmenter.threshold,
        checkpoint_dir=run.checkpoint_dir,
        say=None if has_bar else partial(click.echo, err=True),
    ) as watch:
        click.echo(f"To follow {run.name}, open {watch.folder / 'report.html'}", err=True)
        trained = train_segmenter(
            phases,
            validation,
            segmenter,
            statistics,
            seed=run.seed,
            labelled_training=labelled_training,
            execution=Execution(
                device=run.runtime.torch_device(),
                workers=run.runtime.workers,
                precision=run.runtime.precision,
                checkpoint_dir=run.checkpoint_dir,
                checkpoint_minutes=run.runtime.checkpoint_minutes,
                progress=has_bar,
            ),
            on_epoch=watch,
        )
    config = ModelConfig(
        architecture=segmenter.architecture,
        resolution=segmenter.resolution,
        statistics=statistics,
        threshold=trained.threshold,
        views=segmenter.views,
        binarisation=trained.binarisation,
        best=best_epoch(trained),
        params={"seed": run.seed, "segmenter": segmenter.model_dump(), run.name: run.params.model_dump()},
        **run.provenance(),
    )
    save_model(folder, trained.network, config)
    trained.write_history(folder / HISTORY_FILE)
    trained.write_validation(folder / VALIDATION_FILE)


def best_epoch(trained: TrainedSegmenter) -> BestEpoch:
    """Describe the epoch whose weights were kept."""
    best = trained.best
    if best.validation_auc is None:
        raise AssertionError("the best epoch is a validated one")
    return BestEpoch(phase=best.phase, epoch=best.epoch, validation_auc=best.validation_auc)
