"""Stage `retrain`: train the segmenter again, from scratch, on synthetic and real images."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import click
import numpy as np
from pydantic import Field, model_validator

from pipeline.schema import Strict
from pipeline.segmenter_params import SegmenterParams
from pipeline.synthetic_pool import first_of_pool, read_pool
from pipeline.training import Phase
from pipeline.training_data import TrainingFrame, synthetic_frames
from stages.context import StageRun, stage_command
from stages.segmenter import TwoStepSchedule, real_frames, train_and_save

Kind = Literal["synthetic", "real", "mixed"]
ORDERS = (("synthetic", "real"), ("real", "synthetic"), ("synthetic",), ("mixed",), ("real",))


class Params(Strict):
    """Section `retrain`.

    Attributes:
        synthetic_count: how many images of the pool are used, from its start.
        label_threshold: a synthetic pixel is labelled vessel when its probability is >= this.
        order: phases: [synthetic, real], [real, synthetic], [synthetic], [mixed] (both at once), or [real]
            (no synthetic image: the control).
        synthetic, real, mixed: the phases' schedules; those not in `order` are ignored. Give `real` the
            schedule of `train_base`, or a difference between the two models may come from it.
    """

    synthetic_count: Annotated[int, Field(ge=1)] = 200
    label_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    order: tuple[Kind, ...] = ("synthetic", "real")
    synthetic: TwoStepSchedule = TwoStepSchedule(epochs=100, learning_rate=1e-3, augment=True)
    real: TwoStepSchedule = TwoStepSchedule(epochs=100, learning_rate=1e-3, final_epochs=50, augment=True)
    mixed: TwoStepSchedule = TwoStepSchedule(epochs=100, learning_rate=1e-3, final_epochs=50, augment=True)

    @model_validator(mode="after")
    def _known_order(self) -> Self:
        if self.order not in ORDERS:
            known = ", ".join(f"[{', '.join(order)}]" for order in ORDERS)
            raise ValueError(f"order [{', '.join(self.order)}] is unknown; expected one of {known}")
        return self


def check_pool(sections: Mapping[str, Any]) -> list[str]:
    """Say when more synthetic images are asked for than `synthesize` makes: late, it costs hours."""
    params, pool = sections["retrain"], sections["synthesize"].pool
    if params.order == ("real",) or params.synthetic_count <= pool:
        return []
    return [
        f"retrain.synthetic_count: got {params.synthetic_count}, but synthesize.pool is {pool}; "
        f"raise the pool or use at most {pool}"
    ]


@stage_command("retrain", Params, segmenter=SegmenterParams, cross_check=check_pool)
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
    """Line the phases up in the order that the parameters name.

    The result is chosen among the epochs on the last kind of images, so that it has seen all kinds.
    """
    frames = {"synthetic": synthetic, "real": real, "mixed": [*synthetic, *real]}
    schedules = {"synthetic": params.synthetic, "real": params.real, "mixed": params.mixed}
    return [
        phase
        for kind in params.order
        for phase in schedules[kind].phases(kind, frames[kind], selectable=kind == params.order[-1])
    ]


if __name__ == "__main__":
    main()
