"""Stage `ensemble`: combine the base and the retrained segmenter.

What is fitted (the weight of the rule `weighted`, a threshold of `validation`) is fitted on the validation
images, inside the field of view.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.ensemble import EnsembleConfig, Rule, combine, fit_weight, save_ensemble
from pipeline.errors import UserError
from pipeline.inference import Predictor
from pipeline.prepared import Sample, load_samples
from pipeline.schema import Strict
from pipeline.threshold import Threshold, best_f1_threshold
from stages.context import StageRun, stage_command


class Params(Strict):
    """Section `ensemble`.

    Attributes:
        rule: mean, weighted (weight fitted), vote (ties broken by the mean), or max.
        threshold: probability from which on a pixel is vessel, or `validation`: the F1-maximal one.
    """

    rule: Rule = "mean"
    threshold: Threshold = 0.5


@stage_command("ensemble", Params)
def main(run: StageRun) -> None:
    """Combine the base and the retrained segmenter."""
    params: Params = run.params
    folders = [run.dep("models/base"), run.dep("models/retrained")]
    members = [Predictor.from_folder(folder, run.runtime.torch_device()) for folder in folders]
    weight, threshold = 0.5, params.threshold

    if params.rule == "weighted" or threshold == "validation":
        samples = load_samples(run.dep("data/prepared/development"), "validation")
        maps, labels = validation_pixels(members, samples)
        if params.rule == "weighted":
            weight = fit_weight(maps, labels)
        if threshold == "validation":
            thresholds = [member.threshold for member in members]
            combined = combine(maps, params.rule, weight=weight, thresholds=thresholds)
            threshold = best_f1_threshold(combined, labels)

    config = EnsembleConfig(rule=params.rule, weight=weight, threshold=threshold, **run.provenance())
    save_ensemble(run.out("models/ensemble"), config, folders)


def validation_pixels(
    members: Sequence[Predictor], samples: Sequence[Sample]
) -> tuple[list[NDArray[np.float32]], NDArray[np.bool_]]:
    """Predict the validation images and gather the pixels inside the field of view.

    Returns:
        Probabilities float32 [n] of each member, and labels bool [n].
    """
    maps: list[list[NDArray[np.float32]]] = [[] for _ in members]
    labels = []
    for sample in tqdm(samples, desc="ensemble", unit="image"):
        frame = sample.load()
        if frame.vessels is None:
            raise UserError(f"{sample.id}: no vessel mask; expected a labelled image; run `prepare` again")
        labels.append(frame.vessels[frame.fov])
        for member, pixels in zip(members, maps, strict=True):
            pixels.append(member.predict(frame.image)[frame.fov])
    return [np.concatenate(pixels) for pixels in maps], np.concatenate(labels)


if __name__ == "__main__":
    main()
