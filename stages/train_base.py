"""Stage `train_base`: train the base segmenter on the real training images."""

from typing import Annotated

from pydantic import Field

from pipeline.schema import Strict
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Phase
from stages.context import StageRun, stage_command
from stages.segmenter import real_frames, train_and_save

Epochs = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class Params(Strict):
    """Section `train_base`: the paper's two-step learning rate.

    Attributes:
        epochs, learning_rate: of the first step.
        final_epochs, final_learning_rate: of the second.
        augment: whether training images are augmented.
    """

    epochs: Epochs = 100
    learning_rate: Rate = 1e-3
    final_epochs: Epochs = 50
    final_learning_rate: Rate = 1e-4
    augment: bool = True


@stage_command("train_base", Params, segmenter=SegmenterParams)
def main(run: StageRun) -> None:
    """Train the base segmenter."""
    params: Params = run.params
    real = real_frames(run)
    phases = [
        Phase("first", real, params.epochs, params.learning_rate, params.augment),
        Phase("final", real, params.final_epochs, params.final_learning_rate, params.augment),
    ]
    train_and_save(run, phases, real, run.out("models/base"))


if __name__ == "__main__":
    main()
