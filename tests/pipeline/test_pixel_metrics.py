import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn import metrics as sklearn_metrics

from pipeline.errors import UserError
from pipeline.images import read_mask, read_probability, write_probability
from pipeline.metrics import pixel, ranking
from pipeline.metrics.bootstrap import (
    draw_images,
    f1_difference,
    f1_permutation_p,
    pooled_f1,
)
from pipeline.metrics.pixel import LEVELS, METRIC_NAMES, Confusion, LevelCounts


def random_case(seed, size=4000, levels=LEVELS):
    """Scores that tell vessels from background, more or less; few levels make many ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random((size // 40, 40)) < 0.15
    score = np.clip(rng.normal(0.35 + 0.25 * truth, 0.15), 0, 1)
    return (np.round(score * (levels - 1)) * ((LEVELS - 1) // (levels - 1))).astype(np.uint16), truth


def everything(truth):
    return np.ones_like(truth)


@pytest.mark.parametrize("levels", [LEVELS, 256, 6])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_agrees_with_sklearn(levels, threshold):
    stored, truth = random_case(1, levels=levels)
    got = LevelCounts.count(stored, truth, everything(truth)).metrics(threshold)
    score = (stored / 65535).ravel()
    y, marked = (
        truth.ravel(),
        (stored.astype(np.float32) / np.float32(65535)).ravel() >= np.float32(threshold),
    )
    assert got.sensitivity == pytest.approx(sklearn_metrics.recall_score(y, marked), abs=1e-12)
    assert got.specificity == pytest.approx(sklearn_metrics.recall_score(~y, ~marked), abs=1e-12)
    assert got.precision == pytest.approx(
        sklearn_metrics.precision_score(y, marked, zero_division=0), abs=1e-12
    )
    assert got.accuracy == pytest.approx(sklearn_metrics.accuracy_score(y, marked), abs=1e-12)
    assert got.f1 == pytest.approx(sklearn_metrics.f1_score(y, marked), abs=1e-12)
    assert got.auc == pytest.approx(sklearn_metrics.roc_auc_score(y, score), abs=1e-12)
    assert got.average_precision == pytest.approx(
        sklearn_metrics.average_precision_score(y, score), abs=1e-12
    )


def test_agrees_with_ranking_of_float_scores():
    stored, truth = random_case(2, levels=256)
    counts = LevelCounts.count(stored, truth, everything(truth))
    score = stored.ravel() / 65535
    assert pixel.auc(counts) == pytest.approx(ranking.roc_auc(score, truth.ravel()), abs=1e-13)
    assert pixel.average_precision(counts) == pytest.approx(
        ranking.average_precision(score, truth.ravel()), abs=1e-13
    )


def test_hand_made_case():
    # 2 hits, 1 miss, 1 false alarm, 4 quiet; one background pixel outside the region would be a false alarm
    truth = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0]], dtype=bool)
    stored = np.array([[65535, 40000, 10, 50000, 0, 0, 0, 0, 65535]], dtype=np.uint16)
    region = np.array([[1, 1, 1, 1, 1, 1, 1, 1, 0]], dtype=bool)
    counts = LevelCounts.count(stored, truth, region)
    assert counts.confusion(0.5) == Confusion(2, 1, 4, 1)
    got = counts.metrics(0.5)
    assert got.sensitivity == 2 / 3
    assert got.specificity == 4 / 5
    assert got.precision == 2 / 3
    assert got.accuracy == 6 / 8
    assert got.f1 == pytest.approx(2 / 3)
    assert got.paper_f1 == pytest.approx(2 * (2 / 3) * 0.8 / (2 / 3 + 0.8))
    # pairs in order: 65535 beats 5, 40000 beats 4, 10 beats 4 (zeros) → 13 of 15
    assert got.auc == pytest.approx(13 / 15)
    # recall 1/3 at precision 1, 2/3 at 2/3, 1 at 3/4
    assert got.average_precision == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_counts_of_masks_are_those_of_their_levels():
    total = Confusion(0, 0, 0, 0)
    pooled = LevelCounts.zero()
    for seed in range(3):
        levels, truth = random_case(seed)
        region = np.random.default_rng(seed).random(truth.shape) < 0.7
        marked = levels >= pixel.threshold_level(0.45)
        counts = LevelCounts.count(levels, truth, region)
        found = Confusion.count(marked, truth, region)
        assert found == counts.confusion(0.45)
        assert counts.metrics_of(found) == counts.metrics(0.45)
        total, pooled = total + found, pooled + counts
    assert total == pooled.confusion(0.45)
    assert all(type(count) is int for count in (total.true_positive, total.true_negative))


def test_masks_of_wrong_types_and_shapes_are_errors():
    mask = np.ones((4, 5), bool)
    for wrong in (mask.astype(np.uint8), mask[:3]):
        for arrays in ((wrong, mask, mask), (mask, wrong, mask), (mask, mask, wrong)):
            with pytest.raises(ValueError, match="expected three bool arrays of one shape"):
                Confusion.count(*arrays)


def test_all_tied_is_chance():
    truth = np.array([[True, False, False, False]])
    got = LevelCounts.count(np.full((1, 4), 7, np.uint16), truth, everything(truth)).metrics(0.5)
    assert got.auc == 0.5
    assert got.average_precision == 0.25


def test_threshold_is_inclusive():
    truth = np.array([[True, False]])
    stored = np.array([[32768, 32767]], dtype=np.uint16)
    counts = LevelCounts.count(stored, truth, everything(truth))
    exactly = float(np.float32(32768) / np.float32(65535))
    assert counts.confusion(exactly) == Confusion(1, 0, 1, 0)
    assert counts.confusion(np.nextafter(np.float32(exactly), np.float32(1))) == Confusion(0, 0, 1, 1)
    assert counts.confusion(0.0) == Confusion(1, 1, 0, 0)
    assert counts.confusion(1.1) == Confusion(0, 0, 1, 1)


@settings(max_examples=50, deadline=None)
@given(threshold=st.floats(0, 1))
def test_threshold_selects_what_the_stored_probability_selects(threshold):
    every = np.arange(LEVELS)
    probability = every.astype(np.float32) / np.float32(65535)
    assert np.array_equal(every >= pixel.threshold_level(threshold), probability >= np.float32(threshold))


def test_stored_file_and_levels_agree(tmp_path):
    probability = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    write_probability(tmp_path / "p.png", probability)
    stored = np.round(probability.astype(np.float64) * 65535).astype(np.uint16)
    assert np.array_equal(read_probability(tmp_path / "p.png"), pixel.LEVEL_PROBABILITIES[stored])


def test_nothing_marked_is_zero_not_nan():
    truth = np.array([[True, False, False]])
    got = LevelCounts.count(np.zeros((1, 3), np.uint16), truth, everything(truth)).metrics(0.5)
    assert (got.sensitivity, got.precision, got.f1, got.paper_f1) == (0, 0, 0, 0)
    assert all(math.isfinite(value) for value in got.as_dict().values())


@pytest.mark.parametrize(("value", "name"), [(True, "background"), (False, "vessel")])
def test_one_class_is_an_error(value, name):
    truth = np.full((2, 2), value)
    counts = LevelCounts.count(np.zeros((2, 2), np.uint16), truth, everything(truth))
    for function in (lambda: counts.metrics(0.5), lambda: pixel.auc(counts), counts.require_both_classes):
        with pytest.raises(UserError, match=f"no {name} pixel"):
            function()


def test_wrong_types_and_shapes_are_errors():
    truth = np.zeros((2, 2), bool)
    with pytest.raises(ValueError, match="expected uint16"):
        LevelCounts.count(np.zeros((2, 2), np.float32), truth, truth)
    with pytest.raises(ValueError, match="shapes differ"):
        LevelCounts.count(np.zeros((2, 3), np.uint16), truth, truth)


def test_pooling_equals_one_big_image():
    cases = [random_case(seed) for seed in range(3)]
    parts = [LevelCounts.count(stored, truth, everything(truth)) for stored, truth in cases]
    stored, truth = (np.concatenate(arrays) for arrays in zip(*cases, strict=True))
    whole = LevelCounts.count(stored, truth, everything(truth))
    assert sum(parts, start=LevelCounts.zero()).metrics(0.4) == whole.metrics(0.4)


# Rows of table 2 of Potesman & Rechtman (2023) whose printed "F1" follows from precision and specificity.
@pytest.mark.parametrize(
    ("precision", "specificity", "printed"),
    [(0.802, 0.980, 0.882), (0.889, 0.991, 0.938), (0.968, 0.998, 0.983), (0.887, 0.991, 0.936)],
    ids=["SA-UNet", "first result", "best F1", "ensemble (precision of the text)"],
)
def test_paper_f1_gives_the_printed_figures(precision, specificity, printed):
    scale = 1_000_000
    marked = 10 * scale
    hits, quiet = round(marked * precision), round(marked * (1 - precision) * specificity / (1 - specificity))
    counts = Confusion(hits, marked - hits, quiet, 1)
    assert pixel.precision(counts) == pytest.approx(precision)
    assert pixel.specificity(counts) == pytest.approx(specificity, abs=1e-6)
    assert pixel.paper_f1(counts) == pytest.approx(printed, abs=0.001)  # both inputs are rounded too


def test_paper_f1_is_not_f1():
    cautious = Confusion(true_positive=504, false_positive=17, true_negative=8000, false_negative=496)
    assert pixel.f1(cautious) == pytest.approx(0.663, abs=0.001)
    assert pixel.paper_f1(cautious) == pytest.approx(0.982, abs=0.001)


def test_names_are_the_eight_of_the_contract():
    assert METRIC_NAMES == (
        "sensitivity",
        "specificity",
        "precision",
        "accuracy",
        "f1",
        "paper_f1",
        "auc",
        "average_precision",
    )


def test_pooled_f1_matches_confusion():
    counts = np.array([[5, 2, 1], [0, 0, 0], [7, 0, 3]])
    assert pooled_f1(counts) == pytest.approx(pixel.f1(Confusion(12, 2, 99, 4)))
    assert pooled_f1(np.zeros((2, 3), np.int64)) == 0


def test_identical_models_differ_by_nothing():
    counts = np.random.default_rng(0).integers(1, 100, (9, 3))
    interval = f1_difference(counts, counts, draw_images(9, 200, 1))
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(3)
    reference = np.stack(
        [rng.integers(100, 900, 20), rng.integers(10, 400, 20), rng.integers(10, 400, 20)], axis=1
    )
    better = reference - [[0, 5, 5]]
    draws = draw_images(20, 2000, 7)
    paired, alone = (
        f1_difference(better, reference, draws),
        f1_difference(reference, np.zeros_like(reference), draws),  # without a model: F1 0
    )
    assert 0 < paired.low <= paired.value <= paired.high
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert f1_difference(better, reference, draw_images(20, 2000, 7)) == paired  # seeded


def test_pairing_needs_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        f1_difference(np.ones((3, 3), np.int64), np.ones((4, 3), np.int64), draw_images(3, 10, 0))
    with pytest.raises(ValueError, match="same images"):
        f1_permutation_p(np.ones((3, 3), np.int64), np.ones((4, 3), np.int64), 0)


def two_models(rng, images, gain=0.0):
    """Counts of two models that find a share of each image's vessels, the first `gain` more."""
    vessels = rng.integers(600, 1400, images)
    ease = rng.normal(0.78, 0.05, images)

    def counts(shift):
        hits = (vessels * np.clip(ease + rng.normal(shift, 0.02, images), 0.3, 0.99)).astype(np.int64)
        alarms = (vessels * np.clip(rng.normal(0.2, 0.03, images), 0.02, 1)).astype(np.int64)
        return np.stack([hits, alarms, vessels - hits], axis=1)

    return counts(gain), counts(0.0)


def test_interval_agrees_with_scipy():
    counts, reference = two_models(np.random.default_rng(5), 12)
    got = f1_difference(counts, reference, draw_images(12, 20_000, 0))

    def difference(index, axis=-1):
        return pooled_f1(counts[index]) - pooled_f1(reference[index])

    expected = bootstrap(
        (np.arange(12),), difference, n_resamples=20_000, method="BCa", vectorized=True, rng=0
    ).confidence_interval
    width = expected.high - expected.low
    assert got.low == pytest.approx(expected.low, abs=0.04 * width)
    assert got.high == pytest.approx(expected.high, abs=0.04 * width)


def test_permutation_test_counts_every_way_to_swap():
    counts, reference = two_models(np.random.default_rng(1), 7, gain=0.01)
    observed = abs(pooled_f1(counts) - pooled_f1(reference))
    reached = 0
    for swap in itertools.product((False, True), repeat=7):
        chosen = np.array(swap)[:, None]
        swapped = pooled_f1(np.where(chosen, reference, counts)) - pooled_f1(
            np.where(chosen, counts, reference)
        )
        reached += abs(swapped) >= observed - 1e-12
    assert 2 < reached < 128
    assert f1_permutation_p(counts, reference, 0) == reached / 128
    assert f1_permutation_p(reference, counts, 0) == reached / 128
    assert f1_permutation_p(counts, counts, 0) == 1


def test_random_swaps_approach_the_exact_p(monkeypatch):
    counts, reference = two_models(np.random.default_rng(2), 10, gain=0.01)
    exact = f1_permutation_p(counts, reference, 0)
    monkeypatch.setattr("pipeline.metrics.bootstrap.EXACT_UP_TO", 9)
    drawn = f1_permutation_p(counts, reference, 0)
    assert drawn == pytest.approx(exact, abs=0.02)
    assert drawn == f1_permutation_p(counts, reference, 0)
    assert drawn != f1_permutation_p(counts, reference, 1)


def claimed(counts, reference, seed):
    interval = f1_difference(counts, reference, draw_images(len(counts), 300, seed))
    beside_0 = interval.low > 0 or interval.high < 0
    return beside_0, beside_0 and f1_permutation_p(counts, reference, seed) < 0.05


def test_alike_models_are_seldom_told_apart():
    rng = np.random.default_rng(0)
    claims = np.array([claimed(*two_models(rng, 8), seed) for seed in range(400)])
    by_interval, by_both = claims.mean(axis=0)
    assert by_interval > 0.09  # why the interval alone does not decide
    assert by_both < 0.07


def test_a_clear_gain_is_found():
    rng = np.random.default_rng(0)
    claims = [claimed(*two_models(rng, 8, gain=0.08), seed)[1] for seed in range(50)]
    assert np.mean(claims) > 0.9


@pytest.mark.shared
def test_second_observer_of_drive(shared_dir):
    """Figures of an independent evaluator for the second human observer against the first."""
    folder = shared_dir / "data" / "DRIVE" / "test"
    inside, frame = LevelCounts.zero(), LevelCounts.zero()
    for number in range(1, 21):
        truth = read_mask(folder / "1st_manual" / f"{number:02d}_manual1.gif")
        marked = read_mask(folder / "2nd_manual" / f"{number:02d}_manual2.gif")
        fov = read_mask(folder / "mask" / f"{number:02d}_test_mask.gif")
        stored = marked.astype(np.uint16) * np.uint16(65535)
        inside += LevelCounts.count(stored, truth, fov)
        frame += LevelCounts.count(stored, truth, everything(fov))
    got = [
        [
            round(getattr(counts.metrics(0.5), name), 4)
            for name in ("sensitivity", "specificity", "accuracy", "f1")
        ]
        for counts in (inside, frame)
    ]
    assert got == [[0.7746, 0.9725, 0.9473, 0.7891], [0.7743, 0.9819, 0.9637, 0.7889]]
