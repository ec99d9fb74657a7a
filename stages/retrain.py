"""Stage `retrain`: train the segmenter again, from scratch, on synthetic and real images."""

from typing import Annotated, Literal, Self

import click
import numpy as np
from pydantic import Field, model_validator

from pipeline.schema import Strict
from pipeline.segmenter_params import SegmenterParams
from pipeline.synthetic_pool import first_of_pool, read_pool
from pipeline.training import Phase
from pipeline.training_data import TrainingFrame, synthetic_frames
from stages.context import StageRun, stage_command
from stages.segmenter import real_frames, train_and_save

Kind = Literal["synthetic", "real", "mixed"]
ORDERS = (("synthetic", "real"), ("real", "synthetic"), ("synthetic",), ("mixed",), ("real",))


class PhaseParams(Strict):
    """One phase: how long, how fast, and whether its images are augmented."""

    epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    augment: bool


class Params(Strict):
    """Section `retrain`.

    Attributes:
        synthetic_count: how many images of the pool are used, from its start.
        label_threshold: a synthetic pixel is labelled vessel when its probability is >= this.
        order: phases: [synthetic, real], [real, synthetic], [synthetic], [mixed] (both at once), or [real]
            (no synthetic image: the control).
        synthetic, real, mixed: the phases' settings; those not in `order` are ignored.
    """

    synthetic_count: Annotated[int, Field(ge=1)] = 200
    label_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    order: tuple[Kind, ...] = ("synthetic", "real")
    synthetic: PhaseParams = PhaseParams(epochs=100, learning_rate=1e-3, augment=True)
    real: PhaseParams = PhaseParams(epochs=50, learning_rate=1e-3, augment=True)
    mixed: PhaseParams = PhaseParams(epochs=100, learning_rate=1e-3, augment=True)

    @model_validator(mode="after")
    def _known_order(self) -> Self:
        if self.order not in ORDERS:
            known = ", ".join(f"[{', '.join(order)}]" for order in ORDERS)
            raise ValueError(f"order [{', '.join(self.order)}] is unknown; expected one of {known}")
        return self


@stage_command("retrain", Params, segmenter=SegmenterParams)
def main(run: StageRun) -> None:
    """Train the segmenter from scratch on synthetic and real images."""
    params: Params = run.params
    real = real_frames(run)
    synthetic = load_synthetic(run)
    train_and_save(run, phases(params, real, synthetic), real, run.out("models/retrained"))


def load_synthetic(run: StageRun) -> list[TrainingFrame]:
    """Load the synthetic images that the order asks for, and say how much vessel their labels hold."""
    params: Params = run.params
    segmenter: SegmenterParams = run.shared["segmenter"]
    images = run.dep("data/synthetic/images")
    probabilities = run.dep("data/synthetic/probabilities")
    if params.order == ("real",):
        return []
    pool = first_of_pool(read_pool(images), params.synthetic_count)
    frames = synthetic_frames(pool, probabilities, params.label_threshold, segmenter.resolution)
    share = np.mean([frame.target.mean() / 255 for frame in frames])
    click.echo(f"{len(frames)} synthetic images; vessel covers {share:.1%} of their pixels by pseudo-label")
    return frames


def phases(params: Params, real: list[TrainingFrame], synthetic: list[TrainingFrame]) -> list[Phase]:
    """Line the phases up in the order that the parameters name."""
    frames = {"synthetic": synthetic, "real": real, "mixed": [*synthetic, *real]}
    settings = {"synthetic": params.synthetic, "real": params.real, "mixed": params.mixed}
    return [
        Phase(
            kind,
            frames[kind],
            settings[kind].epochs,
            settings[kind].learning_rate,
            settings[kind].augment,
        )
        for kind in params.order
    ]


if __name__ == "__main__":
    main()
