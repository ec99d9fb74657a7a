"""The fit of post-processing: its grid, its counts, and that it follows the stated criterion."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.binarise import Binarisation
from pipeline.binarise_fit import (
    F1_TOLERANCE,
    SIZES,
    LabelledMap,
    candidates,
    fit_binarisation,
    sweep,
    tabulate,
)
from pipeline.errors import UserError
from pipeline.images import write_probability
from pipeline.metrics.pixel import Confusion
from pipeline.metrics.topology import TruthShape
from pipeline.prepared import Entry, Frame, Sample, write_prepared
from pipeline.threshold import best_f1_threshold


def case(seed: int) -> LabelledMap:
    """Two vessels that fade in the middle, one capillary, and specks of background."""
    rng = np.random.default_rng(seed)
    vessels = np.zeros((64, 96), bool)
    vessels[15:19, 4:90] = True
    vessels[40:43, 4:90] = True
    vessels[55, 20:60] = True
    region = np.ones_like(vessels)
    region[:, :3] = False
    probability = np.where(vessels, 0.9, 0.05) + rng.normal(0, 0.02, vessels.shape)
    probability[15:19, 45:49] = 0.4
    for y, x in zip(rng.integers(22, 36, 12), rng.integers(5, 90, 12), strict=True):
        probability[y : y + 2, x : x + 2] = 0.6
    return LabelledMap(probability.clip(0, 1).astype(np.float32), vessels, region)


MAPS = [case(seed) for seed in range(2)]


def by_hand(setting: Binarisation) -> tuple[float, float]:
    """Pooled F1 and clDice of the masks themselves."""
    counts, shapes = Confusion(0, 0, 0, 0), np.zeros(8)
    for found in MAPS:
        mask = setting.mask(found.probability)
        counts += Confusion.count(mask, found.vessels, found.region)
        shapes += TruthShape.of(found.vessels, found.region).judge(mask)[0].as_array()
    tp, fp, fn = counts.true_positive, counts.false_positive, counts.false_negative
    if tp == 0:
        return 0.0, 0.0
    precision = shapes[1] / shapes[0]
    sensitivity = (shapes[3] + shapes[5]) / (shapes[2] + shapes[4])
    return 2 * tp / (2 * tp + fp + fn), 2 * precision * sensitivity / (precision + sensitivity)


def test_the_grid_starts_with_the_threshold_alone_and_keeps_a_named_one() -> None:
    for fixed in (True, False):
        grid = candidates(0.43, fixed=fixed)
        assert grid[0] == Binarisation(threshold=0.43)
        assert len({setting.model_dump_json() for setting in grid}) == len(grid)
        assert {setting.min_size for setting in grid} == set(SIZES)
    assert {setting.threshold for setting in candidates(0.43, fixed=True)} == {0.43}
    # one logit below ½ is 1 / (1 + e)
    assert min(setting.low for setting in candidates(0.5, fixed=True)) == round(1 / (1 + np.e), 3)


@pytest.mark.parametrize("threshold", [0.0004, 0.001, 0.999, 0.9996])
def test_the_grid_ends_within_probabilities(threshold: float) -> None:
    for fixed in (True, False):
        assert candidates(threshold, fixed=fixed)[0].threshold == threshold


def test_confusions_are_those_of_the_masks() -> None:
    settings = candidates(0.5, fixed=False)
    for found in MAPS:
        rows = found.confusions(settings)
        for setting, row in zip(settings, rows, strict=True):
            mask = setting.mask(found.probability)
            assert row.tolist() == Confusion.count(mask, found.vessels, found.region).as_array().tolist()


@pytest.mark.parametrize("fixed", [True, False])
def test_the_criterion_is_the_one_that_is_stated(fixed: bool) -> None:
    settings = candidates(0.5, fixed=fixed)
    scores = [by_hand(setting) for setting in settings]
    best = max(f1 for f1, _ in scores)
    eligible = [index for index, (f1, _) in enumerate(scores) if f1 >= best - F1_TOLERANCE]
    expected = max(eligible, key=lambda index: scores[index][1])  # max gives the first among equals
    assert fit_binarisation(MAPS, 0.5, fixed=fixed) == settings[expected]

    table = tabulate(MAPS, settings)
    assert table["f1"].to_numpy() == pytest.approx([f1 for f1, _ in scores])
    assert table["cldice"].to_numpy() == pytest.approx([cldice for _, cldice in scores])
    assert np.flatnonzero(table["eligible"]).tolist() == eligible
    assert np.flatnonzero(table["chosen"]).tolist() == [expected]


def test_the_fit_bridges_the_gap_and_drops_the_specks() -> None:
    chosen = fit_binarisation(MAPS, 0.5, fixed=True)
    assert chosen is not None and chosen.low < 0.4
    assert chosen.min_size > 4
    for found in MAPS:
        before, after = (
            found.shape.judge(setting.mask(found.probability))[0]
            for setting in (Binarisation(threshold=0.5), chosen)
        )
        assert before.components > 8
        assert after.components == after.components_truth == 3


def test_a_perfect_map_is_left_alone() -> None:
    perfect = [LabelledMap(found.vessels.astype(np.float32), found.vessels, found.region) for found in MAPS]
    for fixed in (True, False):
        assert fit_binarisation(perfect, 0.5, fixed=fixed) is None


def stored(folder: Path, maps: list[LabelledMap]) -> list[Sample]:
    entries = []
    (folder / "predictions").mkdir()
    for index, found in enumerate(maps):
        image = np.full((*found.vessels.shape, 3), index, np.uint8)
        entries.append(Entry(Frame(f"{index}", image, found.vessels, found.region), "validation", "x"))
        write_probability(folder / "predictions" / f"{index}.png", found.probability)
    return write_prepared(folder / "data", entries)


def test_a_sweep_reads_stored_predictions(tmp_path: Path) -> None:
    samples = stored(tmp_path, MAPS)
    named = sweep(tmp_path / "predictions", samples, 0.5)
    assert len(named) == len(candidates(0.5, fixed=True))
    chosen = named[named["chosen"]].iloc[0]
    assert chosen["components"] == 3
    assert chosen["beta0_error"] == 0
    assert pd.isna(named["hysteresis_low"].iloc[0])
    pixels = np.concatenate([found.probability[found.region] for found in MAPS])
    labels = np.concatenate([found.vessels[found.region] for found in MAPS])
    fitted = sweep(tmp_path / "predictions", samples)
    assert fitted["threshold"].iloc[0] == pytest.approx(best_f1_threshold(pixels, labels), abs=0.001)
    assert fitted["threshold"].nunique() > 1


def test_a_sweep_names_every_prediction_that_does_not_fit(tmp_path: Path) -> None:
    samples = stored(tmp_path, MAPS)
    (tmp_path / "predictions" / "0.png").unlink()
    write_probability(tmp_path / "predictions" / "1.png", np.zeros((3, 3), np.float32))
    with pytest.raises(UserError, match=r"(?s)2 problems.*0\.png: missing.*1\.png: \(3, 3\) pixels"):
        sweep(tmp_path / "predictions", samples)
    with pytest.raises(UserError, match="no labelled image"):
        sweep(tmp_path / "predictions", [])
