import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from pipeline.binarise import Binarisation
from pipeline.errors import UserError
from pipeline.evaluation import (
    CONFUSION_COLUMNS,
    FIELD_OF_VIEW,
    FULL_FRAME,
    PER_IMAGE_COLUMNS,
    evaluate_predictions,
    read_per_image,
    write_metrics,
    write_per_image,
    write_predictions,
    write_submission,
)
from pipeline.images import read_gray, read_probability, write_png
from pipeline.metrics import topology
from pipeline.metrics.pixel import METRIC_NAMES, Confusion
from pipeline.metrics.topology import TopologyCounts, TruthShape
from pipeline.prepared import Entry, Frame, load_samples, write_prepared
from pipeline.verdict import compare, describe, unequal_training, unfinished_training


def frame(number, vessels=True):
    rng = np.random.default_rng(number)
    fov = np.zeros((24, 32), bool)
    fov[2:-2, 2:-2] = True
    truth = (rng.random((24, 32)) < 0.2) & fov
    image = rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)
    return Frame(f"{number:02d}", image, truth if vessels else None, fov)


@pytest.fixture
def folder(tmp_path):
    entries = [Entry(frame(number), "test", f"{number:02d}_test.tif") for number in (1, 2, 3)]
    entries += [
        Entry(frame(number, vessels=False), "unlabelled", f"{number:02d}_x.tif") for number in (8, 10)
    ]
    write_prepared(tmp_path / "test", entries)
    return tmp_path / "test"


@pytest.fixture
def samples(folder):
    return load_samples(folder, "test", allow_test=True)


class RedChannel:
    """A model whose probability is the red channel: any figure can be computed by hand."""

    def predict(self, image):
        return (image[..., 0] / 255).astype(np.float32)


def test_figures_follow_from_the_files_alone(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path / "predictions")
    evaluation = evaluate_predictions(tmp_path / "predictions", samples, 0.5)
    hits = alarms = misses = 0
    f1 = []
    for sample in samples:
        loaded = sample.load()
        marked = read_probability(tmp_path / "predictions" / f"{sample.id}.png") >= 0.5
        tp, fp, fn = (
            int((mask & loaded.fov).sum())
            for mask in (marked & loaded.vessels, marked & ~loaded.vessels, ~marked & loaded.vessels)
        )
        hits, alarms, misses = hits + tp, alarms + fp, misses + fn
        f1.append(2 * tp / (2 * tp + fp + fn))
    summary = evaluation.summary(FIELD_OF_VIEW)
    assert summary["pooled"]["f1"] == round(2 * hits / (2 * hits + alarms + misses), 6)
    assert summary["mean"]["f1"] == round(float(np.mean(f1)), 6)
    assert evaluation.summary(FULL_FRAME)["pooled"]["specificity"] != summary["pooled"]["specificity"]


def test_border_counts_on_the_full_frame_only(folder, samples, tmp_path):
    class Border:
        def predict(self, image):
            probability = np.zeros(image.shape[:2], np.float32)
            probability[:2] = 1
            return probability

    write_predictions(Border(), samples, tmp_path)
    scores = evaluate_predictions(tmp_path, samples, 0.5).images
    by_region = {score.region: score.confusion for score in scores if score.id == "01"}
    assert by_region[FIELD_OF_VIEW].false_positive == 0
    assert by_region[FULL_FRAME].false_positive == 2 * 32


def test_predicting_twice_gives_equal_bytes(samples, tmp_path):
    for name in ("a", "b"):
        write_predictions(RedChannel(), samples, tmp_path / name)
    for sample in samples:
        paths = [tmp_path / name / f"{sample.id}.png" for name in ("a", "b")]
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert read_gray(paths[0]).dtype == np.uint16


def test_metrics_file_is_what_dvc_wants(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path / "p")
    evaluation = evaluate_predictions(tmp_path / "p", samples, 0.5)
    path = tmp_path / "metrics" / "base.json"
    write_metrics(path, evaluation.summary(FIELD_OF_VIEW))
    content = json.loads(path.read_text())
    assert list(content) == ["pooled", "mean"]
    for part in content.values():
        assert list(part) == list(METRIC_NAMES)
        assert all(isinstance(value, float) and 0 <= value <= 1 for value in part.values())
        assert all(value == round(value, 6) for value in part.values())


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path / "m.json", {"pooled": {"f1": math.nan}})
    assert not (tmp_path / "m.json").exists()


def test_per_image_table_round_trip(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path / "p")
    evaluation = evaluate_predictions(tmp_path / "p", samples, 0.5)
    path = tmp_path / "metrics" / "per_image.csv"
    write_per_image(path, [evaluation.per_image("base"), evaluation.per_image("retrained")])
    table = read_per_image(path)
    assert tuple(table.columns) == PER_IMAGE_COLUMNS
    assert len(table) == 2 * 3 * 2
    assert set(table["id"]) == {"01", "02", "03"}  # text, not the number 1
    first = evaluation.images[0]
    row = table.iloc[0]
    assert (row["model"], row["id"], row["region"]) == ("base", first.id, first.region)
    assert row["f1"] == pytest.approx(first.metrics.f1, abs=5e-7)
    assert Confusion(*(int(row[name]) for name in CONFUSION_COLUMNS)) == first.confusion
    assert row["cldice"] == pytest.approx(first.figures()["cldice"], abs=5e-7)
    assert row["components"] == first.topology.components
    assert row["hausdorff_95"] == pytest.approx(first.boundary.hausdorff_95, abs=5e-7)
    assert TopologyCounts(*(int(row[name]) for name in topology.COLUMNS)) == first.topology


def test_figures_on_centrelines_judge_the_mask_at_the_threshold(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path)
    for threshold in (0.3, 0.7):
        evaluation = evaluate_predictions(tmp_path, samples, threshold)
        for score, (sample, region) in zip(
            evaluation.images, itertools.product(samples, (FIELD_OF_VIEW, FULL_FRAME)), strict=True
        ):
            loaded = sample.load()
            marked = read_probability(tmp_path / f"{sample.id}.png") >= threshold
            mask = loaded.fov if region == FIELD_OF_VIEW else np.ones_like(loaded.fov)
            assert (score.topology, score.boundary) == TruthShape.of(loaded.vessels, mask).judge(marked)


def test_figures_judge_the_mask_as_it_is_made(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path)
    made = Binarisation(threshold=0.8, hysteresis_low=0.55, min_size=4)
    evaluation = evaluate_predictions(tmp_path, samples, 0.5, binarisation=made)
    plain = evaluate_predictions(tmp_path, samples, 0.5)
    assert evaluation.binarisation == made and plain.binarisation is None
    pooled = {region: np.zeros(4, int) for region in (FIELD_OF_VIEW, FULL_FRAME)}
    for score, (sample, region) in zip(evaluation.images, itertools.product(samples, pooled), strict=True):
        loaded = sample.load()
        mask = made.mask(read_probability(tmp_path / f"{sample.id}.png"))
        counted = loaded.fov if region == FIELD_OF_VIEW else np.ones_like(loaded.fov)
        assert score.confusion == Confusion.count(mask, loaded.vessels, counted)
        assert (score.topology, score.boundary) == TruthShape.of(loaded.vessels, counted).judge(mask)
        pooled[region] += score.confusion.as_array()
    for region, (tp, fp, tn, fn) in pooled.items():
        summary, other = evaluation.summary(region)["pooled"], plain.summary(region)["pooled"]
        assert summary["f1"] == round(2 * tp / (2 * tp + fp + fn), 6) != other["f1"]
        assert summary["accuracy"] == round((tp + tn) / (tp + fp + tn + fn), 6)
        assert (summary["auc"], summary["average_precision"]) == (other["auc"], other["average_precision"])


def test_a_binarisation_without_effect_changes_no_figure(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path)
    plain = evaluate_predictions(tmp_path, samples, 0.6)
    made = evaluate_predictions(tmp_path, samples, 0.6, binarisation=Binarisation(threshold=0.6))
    pd.testing.assert_frame_equal(made.per_image("m"), plain.per_image("m"))
    assert made.summary(FIELD_OF_VIEW) == plain.summary(FIELD_OF_VIEW)
    # the figures of the pool come from counts of masks or of levels: the same
    for region, levels in plain.pooled.items():
        expected = {name: round(value, 6) for name, value in levels.metrics(0.6).as_dict().items()}
        assert plain.summary(region)["pooled"] == expected


def test_truths_are_measured_once_for_all_models(samples, tmp_path, monkeypatch):
    write_predictions(RedChannel(), samples, tmp_path)
    alone = evaluate_predictions(tmp_path, samples, 0.6)
    shapes = {}
    evaluate_predictions(tmp_path, samples, 0.4, shapes)
    assert len(shapes) == 3 * 2
    monkeypatch.setattr(TruthShape, "of", None)
    again = evaluate_predictions(tmp_path, samples, 0.6, shapes)
    pd.testing.assert_frame_equal(again.per_image("m"), alone.per_image("m"))


def test_an_image_without_thick_vessels_has_an_empty_cell(tmp_path):
    thin = frame(1)
    vessels = np.zeros_like(thin.fov)
    vessels[10, 4:28] = True
    samples = write_prepared(
        tmp_path / "test", [Entry(Frame("a", thin.image, vessels, thin.fov), "test", "a")]
    )
    write_predictions(RedChannel(), samples, tmp_path / "p")
    evaluation = evaluate_predictions(tmp_path / "p", samples, 0.5)
    write_per_image(tmp_path / "per_image.csv", [evaluation.per_image("base")])
    table = read_per_image(tmp_path / "per_image.csv")
    assert table["thick_recall"].isna().all()
    assert table["thick_centreline"].tolist() == [0, 0]
    assert table.drop(columns="thick_recall").notna().all(axis=None)


def test_foreign_table_is_refused(tmp_path):
    (tmp_path / "per_image.csv").write_text("model,id\nbase,01\n")
    with pytest.raises(UserError, match="lacks the columns region"):
        read_per_image(tmp_path / "per_image.csv")


def test_submission_is_numbered_binary_masks(folder, tmp_path):
    unlabelled = load_samples(folder, "unlabelled", allow_test=True)
    write_predictions(RedChannel(), unlabelled, tmp_path / "p")
    write_submission(tmp_path / "submission", tmp_path / "p", unlabelled, 0.5)
    assert sorted(path.name for path in (tmp_path / "submission").iterdir()) == ["10.png", "8.png"]
    mask = read_gray(tmp_path / "submission" / "8.png")
    assert mask.dtype == np.uint8
    assert mask.shape == (24, 32)
    assert np.array_equal(mask == 255, read_probability(tmp_path / "p" / "08.png") >= 0.5)
    assert set(np.unique(mask)) == {0, 255}
    made = Binarisation(threshold=0.9, hysteresis_low=0.4, min_size=3)
    write_submission(tmp_path / "made", tmp_path / "p", unlabelled, 0.5, made)
    expected = made.mask(read_probability(tmp_path / "p" / "08.png"))
    assert np.array_equal(read_gray(tmp_path / "made" / "8.png") == 255, expected)


def test_submission_numbers_must_differ(tmp_path):
    names = ((1, "01_a.tif"), (2, "1_b.tif"), (3, "other.tif"))
    entries = [Entry(frame(number, vessels=False), "unlabelled", source) for number, source in names]
    samples = write_prepared(tmp_path / "test", entries)
    write_predictions(RedChannel(), samples, tmp_path / "p")
    with pytest.raises(UserError, match=r"01_a\.tif, 1_b\.tif would all be written as 1\.png"):
        write_submission(tmp_path / "submission", tmp_path / "p", samples, 0.5)
    assert not (tmp_path / "submission").exists()
    write_submission(tmp_path / "submission", tmp_path / "p", samples[1:], 0.5)
    assert sorted(path.name for path in (tmp_path / "submission").iterdir()) == ["03.png", "1.png"]


def test_prediction_of_another_size_or_depth_is_refused(samples, tmp_path):
    write_predictions(RedChannel(), samples, tmp_path)
    write_png(tmp_path / "02.png", np.zeros((24, 32), np.uint8))
    with pytest.raises(UserError, match=r"02\.png: got uint8"):
        evaluate_predictions(tmp_path, samples, 0.5)


def test_all_unusable_labels_are_named_at_once(tmp_path):
    blank = [
        Entry(Frame(name, f.image, np.zeros_like(f.fov), f.fov), "test", name)
        for name, f in (("a", frame(1)), ("b", frame(2)))
    ]
    samples = write_prepared(tmp_path / "test", blank)
    write_predictions(RedChannel(), samples, tmp_path / "p")
    with pytest.raises(UserError, match=r"(?s)4 problems.*a \(fov\).*a \(full_frame\).*b \(fov\)"):
        evaluate_predictions(tmp_path / "p", samples, 0.5)


def test_unlabelled_and_empty_sets_are_refused(folder, tmp_path):
    unlabelled = load_samples(folder, "unlabelled", allow_test=True)
    write_predictions(RedChannel(), unlabelled, tmp_path)
    with pytest.raises(UserError, match="08: has no label"):
        evaluate_predictions(tmp_path, unlabelled, 0.5)
    with pytest.raises(UserError, match="no labelled test image"):
        evaluate_predictions(tmp_path, [], 0.5)


def table(model, hits, region=FIELD_OF_VIEW, ids=None):
    ids = ids or [f"{number:02d}" for number in range(len(hits))]
    return pd.DataFrame(
        {
            "model": model,
            "id": ids,
            "region": region,
            "true_positive": hits,
            "false_positive": 100,
            "false_negative": 1000 - np.asarray(hits),
        }
    )


HITS = np.array([700, 720, 650, 800, 760, 710])


@pytest.mark.parametrize(
    ("change", "outcome", "says"),
    [
        ([20, 25, 30, 22, 18, 27], "gain", "“retrained” is better than “base”: F1 +0.01"),
        ([-20, -25, -30, -22, -18, -27], "loss", "“retrained” is worse than “base”: F1 −0.01"),
        ([20, -25, 30, -22, 18, -20], "no_gain", "No demonstrable gain of “retrained” over “base”"),
        ([0, 0, 0, 0, 0, 0], "no_gain", "p = 1.000"),
    ],
)
def test_verdict_follows_interval_and_test(change, outcome, says):
    per_image = pd.concat([table("base", HITS), table("retrained", HITS + change)])
    draws = np.random.default_rng(0).integers(6, size=(1000, 6))
    got = compare(per_image, "retrained", "base", FIELD_OF_VIEW, draws, 0)
    assert got.outcome == outcome
    assert says in got.sentence()
    assert got.difference.low <= got.difference.value <= got.difference.high


def test_an_interval_beside_0_is_not_enough():
    change = [50, 60, 70, -1, 40, 55]  # p = 4 / 2⁶: swapping the fourth image alone reaches as much
    per_image = pd.concat([table("base", HITS), table("retrained", HITS + change)])
    draws = np.random.default_rng(0).integers(6, size=(1000, 6))
    got = compare(per_image, "retrained", "base", FIELD_OF_VIEW, draws, 0)
    assert got.difference.low > 0
    assert got.p == 4 / 64
    assert got.outcome == "no_gain"


@pytest.mark.parametrize("images", [2, 5])
def test_few_images_give_no_verdict(images):
    per_image = pd.concat([table("base", HITS[:images]), table("retrained", HITS[:images] + 100)])
    draws = np.random.default_rng(0).integers(images, size=(100, images))
    got = compare(per_image, "retrained", "base", FIELD_OF_VIEW, draws, 0)
    assert got.outcome == "too_few"
    assert "Too few test images to tell" in got.sentence()
    assert f": {images}, where at least 6 are needed" in got.sentence()


def history(*phases):
    """Rows of a training history from (phase, epochs, learning rate)."""
    rows = [(phase, rate) for phase, epochs, rate in phases for _ in range(epochs)]
    return pd.DataFrame(rows, columns=["phase", "learning_rate"])


BASE = history(("real", 8, 1e-3), ("real (final)", 3, 1e-4))


@pytest.mark.parametrize(
    "retrained",
    [
        history(("synthetic", 5, 1e-3), ("real", 8, 1e-3), ("real (final)", 3, 1e-4)),
        history(("real", 8, 1e-3), ("real (final)", 3, 1e-4), ("synthetic", 9, 1e-3)),
        history(("mixed", 8, 1e-3), ("mixed (final)", 3, 1e-4)),
    ],
)
def test_equal_training_on_real_images_needs_no_warning(retrained):
    assert unequal_training("base", {"base": BASE, "retrained": retrained}) is None


@pytest.mark.parametrize(
    ("retrained", "says"),
    [
        (history(("synthetic", 5, 1e-3), ("real", 8, 1e-3)), "“retrained” 8 epochs at 0.001."),
        (history(("real", 8, 1e-3), ("real (final)", 3, 1e-5)), "8 epochs at 0.001 + 3 epochs at 1e-05."),
        (history(("real", 11, 1e-3)), "“retrained” 11 epochs at 0.001."),
        (history(("synthetic", 5, 1e-3)), "“retrained” no epoch."),
    ],
)
def test_unequal_training_on_real_images_is_said(retrained, says):
    note = unequal_training("base", {"base": BASE, "retrained": retrained})
    assert note is not None
    assert "“base” 8 epochs at 0.001 + 3 epochs at 0.0001;" in note
    assert says in note
    assert "retrain.order: [real]" in note


def cosine(epochs: int, high: float, low: float) -> list[float]:
    """Rates as a history holds them: of the last of four steps of each epoch."""
    done = (np.arange(1, epochs + 1) - 0.25) / epochs
    return (low + 0.5 * (high - low) * (1 + np.cos(np.pi * done))).tolist()


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        ([1e-3] * 80 + [1e-4] * 30, "80 epochs at 0.001 + 30 epochs at 0.0001"),
        ([1e-3, 1e-4], "1 epochs at 0.001 + 1 epochs at 0.0001"),
        (cosine(240, 2e-3, 1e-5), "240 epochs, 0.002 falling to 1e-05"),
        (
            [4e-4, 8e-4, 12e-4, *cosine(100, 2e-3, 1e-5)],
            "4 epochs, 0.0004 rising to 0.002 + 99 epochs, 0.002 falling to 1e-05",
        ),
        ([1e-4, 2e-4, 3e-4, *[4e-4] * 9], "3 epochs, 0.0001 rising to 0.0003 + 9 epochs at 0.0004"),
        ([0.3, 0.2, 0.1] * 2, "3 epochs, 0.3 falling to 0.1 + 3 epochs, 0.3 falling to 0.1"),
        ([], "no epoch"),
    ],
)
def test_a_schedule_is_told_in_few_words(schedule, text):
    assert describe(schedule) == text


def test_schedules_that_sound_alike_are_compared_in_full():
    falling = pd.DataFrame({"phase": "real", "learning_rate": cosine(240, 2e-3, 1e-5)})
    straight = falling.assign(learning_rate=np.linspace(2e-3, 1e-5, 240))
    assert unequal_training("base", {"base": falling, "retrained": falling}) is None
    note = unequal_training("base", {"base": falling, "retrained": straight})
    assert note is not None and len(note) < 600
    assert "“base” 240 epochs, 0.002 falling to 1e-05; “retrained” 240 epochs, " in note
    assert "to 1e-05, with other rates in between." in note


def test_a_model_that_kept_its_last_epoch_is_named() -> None:
    early = pd.DataFrame({"kept": [False, True, False]})
    last = pd.DataFrame({"kept": [False, False, True]})
    assert unfinished_training({"base": early, "retrained": early}) is None
    note = unfinished_training({"base": early, "retrained": last})
    assert note is not None
    assert note.startswith("“retrained” kept its last epoch")
    both = unfinished_training({"base": last, "retrained": last})
    assert both is not None
    assert both.startswith("“base” and “retrained” kept their last epochs")


def test_comparison_needs_the_same_images():
    per_image = pd.concat([table("base", HITS), table("retrained", HITS, ids=list("abcdef"))])
    with pytest.raises(UserError, match="other images"):
        compare(per_image, "retrained", "base", FIELD_OF_VIEW, np.zeros((2, 6), np.int64), 0)
    with pytest.raises(UserError, match="no row for model 'ensemble'"):
        compare(per_image, "ensemble", "base", FIELD_OF_VIEW, np.zeros((2, 6), np.int64), 0)
