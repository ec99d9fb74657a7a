"""Stage `ensemble`: combine the base and the retrained segmenter.

What is fitted (the weight of the rule `weighted`, a threshold or post-processing of `validation`) is fitted
on the validation images, inside the field of view.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.binarise import Binarisation, Postprocess
from pipeline.binarise_fit import LabelledMap, fit_binarisation
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
        postprocess: see `SegmenterParams`; fitted on the combined map.
    """

    rule: Rule = "mean"
    threshold: Threshold = 0.5
    postprocess: Postprocess = "none"


@stage_command("ensemble", Params)
def main(run: StageRun) -> None:
    """Combine the base and the retrained segmenter."""
    params: Params = run.params
    folders = [run.dep("models/base"), run.dep("models/retrained")]
    members = [Predictor.from_folder(folder, run.runtime.torch_device()) for folder in folders]
    weight, threshold = 0.5, params.threshold
    binarisation: Binarisation | None = None

    if params.rule == "weighted" or "validation" in (threshold, params.postprocess):
        samples = load_samples(run.dep("data/prepared/development"), "validation")
        maps = validation_maps(members, samples)
        labels = np.concatenate([vessels[fov] for _, vessels, fov in maps])
        if params.rule == "weighted":
            pixels = [np.concatenate([pair[k][fov] for pair, _, fov in maps]) for k in range(len(members))]
            weight = fit_weight(pixels, labels)
        thresholds = [member.threshold for member in members]
        combined = [
            LabelledMap(combine(pair, params.rule, weight=weight, thresholds=thresholds), vessels, fov)
            for pair, vessels, fov in maps
        ]
        if threshold == "validation":
            scores = np.concatenate([found.probability[found.region] for found in combined])
            threshold = best_f1_threshold(scores, labels)
        if params.postprocess == "validation":
            fixed = params.threshold != "validation"
            binarisation = fit_binarisation(combined, threshold, fixed=fixed)

    config = EnsembleConfig(
        rule=params.rule,
        weight=weight,
        threshold=threshold,
        binarisation=binarisation,
        **run.provenance(),
    )
    save_ensemble(run.out("models/ensemble"), config, folders)


def validation_maps(
    members: Sequence[Predictor], samples: Sequence[Sample]
) -> list[tuple[list[NDArray[np.float32]], NDArray[np.bool_], NDArray[np.bool_]]]:
    """Predict the validation images.

    Returns:
        For each image the probabilities float32 [H, W] of each member, the vessels and the field of view.
    """
    maps = []
    for sample in tqdm(samples, desc="ensemble", unit="image"):
        frame = sample.load()
        if frame.vessels is None:
            raise UserError(f"{sample.id}: no vessel mask; expected a labelled image; run `prepare` again")
        maps.append(([member.predict(frame.image) for member in members], frame.vessels, frame.fov))
    return maps


if __name__ == "__main__":
    main()
