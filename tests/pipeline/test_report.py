import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from pipeline.curves import precision_recall_curve, roc_curve
from pipeline.diagram import Stage, stage_graph
from pipeline.errors import UserError
from pipeline.evaluation import (
    FIELD_OF_VIEW,
    FULL_FRAME,
    evaluate_predictions,
    read_per_image,
    write_per_image,
    write_predictions,
)
from pipeline.images import write_png
from pipeline.intervals import interval_table, read_intervals, write_intervals
from pipeline.plots import series_figures
from pipeline.prepared import Entry, Frame, write_prepared
from pipeline.report import (
    SHAPE_ROWS,
    ModelResults,
    ReportInputs,
    SyntheticExample,
    data_uri,
    render,
    write_report,
)

STAGES = (
    Stage("prepare", (), ("data/prepared",)),
    Stage("train_base", ("prepare",), ("models/base",)),
    Stage("train_gan", ("prepare",)),
    Stage("synthesize", ("train_gan",)),
    Stage("pseudo_label", ("synthesize", "train_base")),
    Stage("retrain", ("prepare", "synthesize", "pseudo_label")),
    Stage("report", ("prepare", "retrain", "train_gan")),
)


class Noisy:
    def __init__(self, truths, noise):
        self.truths, self.noise = truths, noise

    def predict(self, image):
        number = int(image[0, 0, 0])
        rng = np.random.default_rng(number)
        return np.clip(self.truths[number] * 0.6 + rng.random(image.shape[:2]) * self.noise, 0, 1).astype(
            np.float32
        )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    fov = np.ones((40, 40), bool)
    entries, truths = [], {}
    for number in range(6):
        image = rng.integers(0, 200, (40, 40, 3), dtype=np.uint8)
        image[0, 0, 0] = number
        truths[number] = rng.random((40, 40)) < 0.2
        truths[number][20:25, 4:36] = True  # a thick vessel
        entries.append(Entry(Frame(f"{number:02d}", image, truths[number], fov), "test", f"{number:02d}.tif"))
    samples = write_prepared(folder / "test", entries)
    history = pd.DataFrame(
        {
            "phase": ["synthetic", "synthetic", "real"],
            "epoch": [1, 2, 3],
            "learning_rate": 1e-3,
            "train_loss": [0.9, 0.7, 0.5],
            "validation_loss": [1.0, 0.8, 0.6],
            "validation_auc": [0.7, 0.95, 0.9],
            "kept": [False, False, True],
        }
    )
    models, tables, intervals = [], [], []
    for name, noise in (("base", 0.7), ("retrained", 0.7), ("ensemble", 0.5)):
        write_predictions(Noisy(truths, noise), samples, folder / name)
        evaluation = evaluate_predictions(folder / name, samples, 0.5)
        counts = evaluation.pooled[FIELD_OF_VIEW]
        tables.append(evaluation.per_image(name))
        intervals.append(interval_table(evaluation, name, 200, 1))
        models.append(
            ModelResults(
                name=name,
                threshold=0.5,
                binarisation=None,
                fov=evaluation.summary(FIELD_OF_VIEW),
                full_frame=evaluation.summary(FULL_FRAME),
                roc=roc_curve(counts, 50),
                precision_recall=precision_recall_curve(counts, 50),
                predictions=folder / name,
                history=None if name == "ensemble" else history,
            )
        )
    write_per_image(folder / "per_image.csv", tables)
    write_intervals(folder / "intervals.csv", intervals)
    write_png(folder / "000004.png", rng.integers(0, 255, (600, 600, 3), dtype=np.uint8))
    return ReportInputs(
        dataset="6 labelled <test> images",
        models=models,
        per_image=read_per_image(folder / "per_image.csv"),
        intervals=read_intervals(folder / "intervals.csv"),
        test_samples=samples,
        synthetic=[
            SyntheticExample(
                rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), rng.random((32, 32)).astype(np.float32)
            )
            for _ in range(3)
        ],
        gan_history=pd.DataFrame(
            {"tick": [0, 1], "kimg": [0.0, 1.0], "loss_generator": [1.0, np.nan], "p": [np.nan, np.nan]}
        ),
        gan_progress="kimg",
        gan_snapshots=[folder / "000004.png"],
        stages=STAGES,
        params="seed: 1\nprepare:\n  dataset: phantom & co\n",
        versions={"python": "3.11.2", "torch": "2.13.0"},
        git_commit="abc123",
        commands=["git checkout abc123", "make repro"],
        bootstrap_samples=200,
        seed=1,
    )


@pytest.fixture(scope="module")
def page(inputs):
    return render(inputs)


class Structure(HTMLParser):
    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "xlink:href"}:
                self.references.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_well_formed_and_self_contained(page):
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    assert not {"script", "link", "iframe"} & set(structure.tags)
    for reference in structure.references:
        assert reference.startswith(("data:image/", "#"))
        if reference.startswith("#"):
            assert reference[1:] in structure.ids
    for target in re.findall(r"url\(#([^)]+)\)", page):
        assert target in structure.ids
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_equal_inputs_give_equal_pages(inputs, page):
    assert render(inputs) == page
    assert "<dc:date>" not in page


def test_everything_asked_for_is_there(inputs, page):
    for model in inputs.models:
        for summary in (model.fov, model.full_frame):
            for part in summary.values():
                for value in part.values():
                    assert f"{value:.4f}" in page
    for heading in ("Inside the field of view, all pixels pooled", "Full frame, all pixels pooled"):
        assert heading in page
    assert page.count("best: ") == page.count("median: ") == page.count("worst: ") == 3
    assert page.count('alt="pseudo-label of synthetic image') == 3
    assert "loss_generator" in page
    assert "000004" in page
    assert "abc123" in page
    assert "No demonstrable gain of “retrained” over “base”" in page  # the same predictions
    assert "“ensemble” is better than “base”" in page
    assert ", p = 0.031)" in page  # 2 of 2⁶ ways to swap


def test_the_interval_of_f1_is_that_of_intervals_csv(inputs, page):
    table = inputs.intervals.copy()
    row = (table["region"] == FIELD_OF_VIEW) & (table["average"] == "pooled") & (table["figure"] == "f1")
    row &= table["model"] == "base"
    (low, high), value = table.loc[row, ["low", "high"]].to_numpy()[0], inputs.models[0].fov["pooled"]["f1"]
    assert f"<td>{value:.4f} [{low:.3f}, {high:.3f}]</td>" in page
    table.loc[row, ["low", "high"]] = (0.111, 0.999)
    assert f"<td>{value:.4f} [0.111, 0.999]</td>" in render(replace(inputs, intervals=table))


def test_topology_and_calibration_stand_there_with_their_intervals(inputs, page):
    assert "<h3>Topology and calibration</h3>" in page
    table = inputs.intervals[inputs.intervals["region"] == FIELD_OF_VIEW]
    for average, figure, title, decimals in SHAPE_ROWS:
        rows = table[(table["average"] == average) & (table["figure"] == figure)]
        assert list(rows["model"]) == [model.name for model in inputs.models]
        cells = "".join(
            f"<td>{value:.{decimals}f} <small>[{low:.{decimals}f}, {high:.{decimals}f}]</small></td>"
            for value, low, high in rows[["value", "low", "high"]].to_numpy()
        )
        assert f"<tr><td>{title}</td><td>{average}</td>{cells}</tr>" in page
    without = inputs.intervals[inputs.intervals["figure"] != "thick_recall"]
    assert "thick vessels</td><td>pooled</td><td>–</td><td>–</td><td>–</td></tr>" in render(
        replace(inputs, intervals=without)
    )


def test_texts_are_escaped(page):
    assert "6 labelled &lt;test&gt; images" in page
    assert "dataset: phantom &amp; co" in page
    assert "<test>" not in page


def test_no_training_of_a_generator_and_no_commit(inputs):
    page = render(replace(inputs, gan_history=None, gan_snapshots=[], git_commit=None))
    assert "Generator and discriminator" not in page
    assert "while it learned" not in page
    assert "not a git repository" in page


def test_two_test_images(inputs):
    ids = [sample.id for sample in inputs.test_samples[:2]]
    few = replace(
        inputs,
        test_samples=inputs.test_samples[:2],
        per_image=inputs.per_image[inputs.per_image["id"].isin(ids)],
    )
    assert "Too few test images to tell" in render(few)


def test_the_kept_epoch_is_shown(inputs, page):
    for name in ("base", "retrained"):
        assert f"<td>{name}</td><td>real</td><td>3 of 3</td><td>0.9000</td>" in page
    base, *others = inputs.models
    nothing_kept = replace(base, history=base.history.assign(kept=False))
    with pytest.raises(UserError, match=r"history\.csv of 'base' marks 0 epochs as kept"):
        render(replace(inputs, models=[nothing_kept, *others]))


def test_unequal_training_is_noted_beside_the_verdict(inputs, page):
    assert "Not trained alike" not in page
    base, retrained, ensemble = inputs.models
    slower = replace(retrained, history=retrained.history.assign(learning_rate=1e-4))
    noted = render(replace(inputs, models=[base, slower, ensemble]))
    assert "“base” 1 epochs at 0.001; “retrained” 1 epochs at 0.0001" in noted
    assert "retrain.order: [real]" in noted


def test_inputs_that_do_not_fit_are_refused(inputs):
    with pytest.raises(UserError, match="not those of the test split"):
        render(replace(inputs, test_samples=inputs.test_samples[1:], models=inputs.models))
    others = inputs.intervals[inputs.intervals["model"] != "retrained"]
    with pytest.raises(UserError, match=r"intervals\.csv has no row for model 'retrained'"):
        render(replace(inputs, intervals=others))
    with pytest.raises(UserError, match="at least two models"):
        render(replace(inputs, models=inputs.models[:1]))
    with pytest.raises(UserError, match="no column 'nimg'"):
        render(replace(inputs, gan_progress="nimg"))


def test_write(inputs, page, tmp_path):
    write_report(tmp_path / "report" / "index.html", inputs)
    assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8") == page


def test_pictures_are_reduced_and_encoded():
    small = data_uri(np.zeros((20, 30, 3), np.uint8), 500)
    large = data_uri(np.zeros((1000, 800), np.uint8), 400)
    assert small.startswith("data:image/png;base64,")
    assert large.startswith("data:image/jpeg;base64,")


def test_figures_are_xml_with_the_pages_ink():
    table = pd.DataFrame({"x": [1, 2, 3], "y": [1.0, np.nan, 2.0]})
    (svg,) = series_figures(table, "x", ["y"], "some")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "width" not in root.attrib
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert [svg] == series_figures(table, "x", ["y"], "some")


def boxes(svg):
    root = ElementTree.fromstring(svg)
    found = {}
    for group in root.iter("g"):
        rect, text = group.find("rect"), group.find("text")
        found[text.text] = tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
    return root, found


def test_graph_draws_every_stage_without_overlap():
    root, found = boxes(stage_graph(STAGES))
    assert set(found) == {stage.name for stage in STAGES}
    places = list(found.values())
    for i, (x, y, width, height) in enumerate(places):
        for other_x, other_y, *_ in places[i + 1 :]:
            assert abs(x - other_x) >= width or abs(y - other_y) >= height
    for stage in STAGES:
        for parent in stage.parents:
            assert found[parent][0] < found[stage.name][0]  # data flows to the right
    # prepare→train_base, prepare→train_gan, train_gan→synthesize, synthesize→pseudo_label,
    # train_base→waypoint→pseudo_label, pseudo_label→retrain, retrain→report
    edges = [path for path in root.iter("path") if path.attrib["class"] == "edge"]
    assert len(edges) == 8
    assert sum("marker-end" in edge.attrib for edge in edges) == 7


def test_graph_refuses_a_parent_that_comes_later():
    with pytest.raises(ValueError, match="do not stand before"):
        stage_graph([Stage("a", ("b",)), Stage("b")])
