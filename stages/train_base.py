"""Stage `train_base`: train the base segmenter on the real training images."""

from pipeline.segmenter_params import SegmenterParams
from stages.context import StageRun, stage_command
from stages.segmenter import Epochs, Rate, TwoStepSchedule, real_frames, train_and_save


class Params(TwoStepSchedule):
    """Section `train_base`: the schedule, with the paper's as the default."""

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
    train_and_save(run, params.phases("real", real), real, run.out("models/base"))


if __name__ == "__main__":
    main()
