"""What base training and retraining share around the phases: execution, and the model folder."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.model_folder import ModelConfig, save_model
from pipeline.prepared import load_samples
from pipeline.segmenter_params import SegmenterParams
from pipeline.training import Execution, Phase, train_segmenter
from pipeline.training_data import TrainingFrame, input_statistics, training_frames, validation_frames
from stages.context import StageRun

DEVELOPMENT = "data/prepared/development"
HISTORY_FILE = "history.csv"


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
    validation = load_samples(run.dep(DEVELOPMENT), "validation")
    statistics = input_statistics(real)
    trained = train_segmenter(
        phases,
        validation_frames(validation, segmenter.resolution),
        segmenter,
        statistics,
        seed=run.seed,
        execution=Execution(
            device=run.runtime.torch_device(),
            workers=run.runtime.workers,
            precision=run.runtime.precision,
            checkpoint_dir=run.checkpoint_dir,
            checkpoint_minutes=run.runtime.checkpoint_minutes,
        ),
    )
    config = ModelConfig(
        architecture=segmenter.architecture,
        resolution=segmenter.resolution,
        statistics=statistics,
        threshold=trained.threshold,
        params={"seed": run.seed, "segmenter": segmenter.model_dump(), run.name: run.params.model_dump()},
        **run.provenance(),
    )
    save_model(folder, trained.network, config)
    trained.write_history(folder / HISTORY_FILE)
