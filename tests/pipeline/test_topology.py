import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import skeletonize

from pipeline.images import read_mask
from pipeline.metrics import topology
from pipeline.metrics.topology import (
    COLUMNS,
    TopologyCounts,
    TruthShape,
    bounding_box,
    calibres,
    count_components,
)


def canvas(height=40, width=60):
    return np.zeros((height, width), bool)


def everywhere(mask):
    return np.ones_like(mask)


def figures(truth, marked, region=None):
    counts, distance = TruthShape.of(truth, everywhere(truth) if region is None else region).judge(marked)
    array = counts.as_array()
    return {
        "cldice": float(topology.cldice(array)),
        "precision": float(topology.topology_precision(array)),
        "sensitivity": float(topology.topology_sensitivity(array)),
        "thin": float(topology.thin_recall(array)),
        "thick": float(topology.thick_recall(array)),
        "beta0": float(topology.beta0_error(array)),
        "components": counts.components,
        "mean": distance.mean,
        "hausdorff": distance.hausdorff_95,
    }


def tree(seed, size=90):
    """Random walks drawn with brushes of several widths: vessels of a kind."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size + 13), bool)
    for _ in range(6):
        y, x, angle, width = *rng.uniform(0, size, 2), rng.uniform(0, 6.3), rng.integers(1, 6)
        for _ in range(60):
            angle += rng.normal(0, 0.15)
            y, x = y + math.sin(angle), x + math.cos(angle)
            row, column = int(y), int(x)
            if 0 <= row < size and 0 <= column < size:
                mask[row : row + width, column : column + width] = True
    return mask


def damaged(mask, seed):
    rng = np.random.default_rng(seed)
    holes = ndimage.gaussian_filter(rng.normal(size=mask.shape), 2) > 0.15
    return (mask & ~holes) | (ndimage.gaussian_filter(rng.normal(size=mask.shape), 1.5) > 0.42)


def test_a_perfect_mask():
    truth = tree(0)
    got = figures(truth, truth)
    assert (got["cldice"], got["thin"], got["thick"], got["beta0"]) == (1, 1, 1, 0)
    assert (got["mean"], got["hausdorff"]) == (0, 0)


def test_a_line_with_a_gap():
    truth = canvas()
    truth[20, 10:50] = True  # 40 pixels of calibre 2
    marked = truth.copy()
    marked[20, 28:32] = False  # two parts of 18 pixels
    got = figures(truth, marked)
    assert got["precision"] == 1
    assert got["sensitivity"] == got["thin"] == 36 / 40
    assert got["cldice"] == pytest.approx(2 * 0.9 / 1.9)
    assert (got["components"], got["beta0"]) == (2, 1)
    assert got["thick"] == 0  # there are none; `TopologyCounts` says so
    assert TruthShape.of(truth, everywhere(truth)).judge(marked)[0].thick_centreline == 0
    # of 40 + 36 boundary pixels the four in the gap lie 1, 2, 2, 1 away
    assert got["mean"] == pytest.approx(6 / 76)


def test_one_of_two_parallel_lines_and_a_false_one():
    truth, marked = canvas(), canvas()
    truth[10, 5:55] = truth[20, 5:55] = True
    marked[10, 5:55] = marked[30, 5:30] = True
    got = figures(truth, marked)
    assert got["precision"] == 50 / 75
    assert got["sensitivity"] == 0.5
    assert got["cldice"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert (got["components"], got["beta0"]) == (2, 0)  # β₀ cannot tell which parts they are
    # 50 misses at distance 10, 25 false ones at distance 10, 100 pixels at 0
    assert got["mean"] == pytest.approx((500 + 250) / 175)
    assert got["hausdorff"] == 10


def test_thin_and_thick_are_told_apart():
    truth = canvas(60, 80)
    truth[5, 5:75] = True  # calibre 2
    truth[15:17, 5:75] = True  # two pixels: calibre 2
    truth[30:33, 5:75] = True  # three pixels: calibre 4 in the middle
    truth[45:50, 5:75] = True  # five pixels: calibre 6
    marked = truth.copy()
    marked[:25] = False
    got = figures(truth, marked)
    counts, _ = TruthShape.of(truth, everywhere(truth)).judge(marked)
    assert counts.thin_centreline >= 138
    assert counts.thin_found == counts.thin_centreline - len_of_lines(truth, slice(0, 25))
    assert got["thin"] < 0.06  # some pixels at the ends of thick lines are thin
    assert got["thick"] == 1


def len_of_lines(mask, rows):
    return int(skeletonize(mask)[rows].sum())


@pytest.mark.parametrize(("width", "calibre"), [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_calibre_of_a_straight_vessel(width, calibre):
    mask = canvas()
    mask[12 : 12 + width, :] = True
    middle = slice(20, 40)
    assert set(calibres(mask)[skeletonize(mask)].tolist()) >= {calibre}
    assert calibres(mask)[:, middle].max() == calibre


def test_the_picture_ends_in_background():
    mask = np.ones((5, 9), bool)
    assert calibres(mask)[2, 4] == 6
    assert calibres(mask)[0, 0] == 2


def test_a_single_pixel():
    truth, marked = canvas(), canvas()
    truth[20, 30] = marked[23, 34] = True
    got = figures(truth, marked)
    assert (got["cldice"], got["thin"], got["components"], got["beta0"]) == (0, 0, 1, 0)
    assert (got["mean"], got["hausdorff"]) == (5, 5)
    assert figures(truth, truth)["cldice"] == 1


def test_empty_masks_have_figures():
    truth, nothing = tree(1), np.zeros_like(tree(1))
    got = figures(truth, nothing)
    assert (got["cldice"], got["precision"], got["sensitivity"], got["components"]) == (0, 0, 0, 0)
    assert got["beta0"] == count_components(truth)
    diagonal = math.hypot(truth.shape[0] - 1, truth.shape[1] - 1)
    assert got["mean"] == got["hausdorff"] == diagonal
    got = figures(nothing, truth)
    assert (got["cldice"], got["thin"], got["thick"], got["mean"]) == (0, 0, 0, diagonal)
    got = figures(nothing, nothing)
    assert (got["cldice"], got["beta0"], got["mean"], got["hausdorff"]) == (0, 0, 0, 0)


def test_outside_the_region_nothing_counts():
    truth, region = tree(2), np.zeros_like(tree(2))
    region[10:70, 15:80] = True
    region[10:14, 15:20] = False  # not a box
    marked = damaged(truth, 2)
    inside = figures(truth & region, marked & region, region)
    assert figures(truth, marked, region) == inside
    assert figures(truth | ~region, marked | ~region, region) == inside
    whole = figures(truth & region, marked & region)  # the same masks in a larger picture
    assert whole == inside


def naive(truth, marked):
    """From the definitions, with other tools, pixel by pixel where that is simple."""
    truth_line, marked_line = skeletonize(truth), skeletonize(marked)
    distance = ndimage.distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
    tally = dict.fromkeys(COLUMNS, 0)
    for row, column in np.argwhere(marked_line):
        tally["marked_centreline"] += 1
        tally["marked_centreline_hits"] += bool(truth[row, column])
    for row, column in np.argwhere(truth_line):
        kind = "thin" if 2 * distance[row, column] <= 3 else "thick"
        tally[f"{kind}_centreline"] += 1
        tally[f"{kind}_found"] += bool(marked[row, column])
    tally["components"] = int(label(marked, connectivity=2).max())
    tally["components_truth"] = int(label(truth, connectivity=2).max())
    return TopologyCounts(**tally)


@pytest.mark.parametrize("seed", range(6))
def test_counts_follow_from_the_definitions(seed):
    truth = tree(seed)
    marked = damaged(truth, seed)
    counts, _ = TruthShape.of(truth, everywhere(truth)).judge(marked)
    assert counts == naive(truth, marked)
    assert min(counts.thin_centreline, counts.thick_centreline, counts.thin_found) > 0


def test_figures_of_stacked_counts_are_those_of_each():
    cases = [TruthShape.of(tree(s), everywhere(tree(s))).judge(damaged(tree(s), s))[0] for s in range(4)]
    stacked = np.stack([case.as_array() for case in cases])
    for figure in (topology.cldice, topology.thin_recall, topology.thick_recall, topology.beta0_error):
        assert figure(stacked).tolist() == [float(figure(case.as_array())) for case in cases]
    for index, case in enumerate(cases):
        precision = case.marked_centreline_hits / case.marked_centreline
        found, length = case.thin_found + case.thick_found, case.thin_centreline + case.thick_centreline
        expected = 2 * precision * (found / length) / (precision + found / length)
        assert topology.cldice(stacked)[index] == pytest.approx(expected, abs=1e-12)


def test_a_truth_serves_many_masks():
    truth = tree(3)
    shape = TruthShape.of(truth, everywhere(truth))
    first = shape.judge(damaged(truth, 1))
    shape.judge(np.zeros_like(truth))
    assert shape.judge(damaged(truth, 1)) == first


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 0.6))
def test_components_agree_with_scikit_image(seed, share):
    mask = np.random.default_rng(seed).random((17, 23)) < share
    assert count_components(mask) == label(mask, connectivity=2).max()


def test_bounding_box():
    region = canvas()
    region[3:7, 11] = region[5, 20:22] = True
    assert bounding_box(region) == (slice(3, 7), slice(11, 22))


def test_wrong_inputs_are_errors():
    mask = canvas()
    with pytest.raises(ValueError, match="expected two bool"):
        TruthShape.of(mask.astype(np.uint8), everywhere(mask))
    with pytest.raises(ValueError, match="expected two bool"):
        TruthShape.of(mask, everywhere(mask)[1:])
    with pytest.raises(ValueError, match="holds no pixel"):
        TruthShape.of(mask, mask)


@pytest.mark.shared
def test_second_observer_of_drive(shared_dir):
    """An independent evaluator found clDice .763 and 2.8 parts in the truth, 55% of it thin."""
    folder = shared_dir / "data" / "DRIVE" / "test"
    rows = []
    for number in range(1, 21):
        truth = read_mask(folder / "1st_manual" / f"{number:02d}_manual1.gif")
        marked = read_mask(folder / "2nd_manual" / f"{number:02d}_manual2.gif")
        fov = read_mask(folder / "mask" / f"{number:02d}_test_mask.gif")
        rows.append(TruthShape.of(truth, fov).judge(marked)[0].as_array())
    counts = np.stack(rows)
    assert round(float(topology.cldice(counts).mean()), 3) == 0.763
    assert float(counts[:, COLUMNS.index("components_truth")].mean()) == 2.85
    thin, thick = (counts[:, COLUMNS.index(f"{kind}_centreline")].sum() for kind in ("thin", "thick"))
    assert round(float(thin / (thin + thick)), 2) == 0.55
