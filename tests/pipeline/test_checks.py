from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from pipeline.checks import read_item, verify
from pipeline.errors import Problems, UserError
from pipeline.images import write_png
from pipeline.readers.raw import RawFile, RawItem

SIZE = 64
Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
FOV = np.hypot(X, Y) < 28


def photograph(seed):
    rng = np.random.default_rng(seed)
    return np.where(FOV[..., None], rng.integers(90, 200, (SIZE, SIZE, 3)), 5).astype(np.uint8)


def label(seed):
    return FOV & (np.abs(X - seed % 9) < 3)


class Dataset:
    """Raw items on disk, each good until a test spoils it."""

    def __init__(self, root: Path, count: int = 3) -> None:
        self.root = root
        self.items = []
        for index in range(count):
            write_png(root / f"{index}.png", photograph(index))
            write_png(root / f"{index}_label.png", label(index))
            write_png(root / f"{index}_mask.png", FOV)
            files = (self.file(f"{index}{kind}.png") for kind in ("", "_label", "_mask"))
            self.items.append(RawItem(f"id{index}", *files, patient=str(index), split=None))

    def file(self, name: str) -> RawFile:
        return RawFile(self.root / name, PurePosixPath("set") / name)

    def problems(self) -> list[str]:
        problems = Problems("title")
        verify(self.items, problems)
        return list(problems)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return Dataset(tmp_path)


def expect_one(dataset, *parts):
    (problem,) = dataset.problems()
    for part in parts:
        assert part in problem


def test_good_data_pass_and_are_read(dataset):
    assert dataset.problems() == []
    frame = read_item(dataset.items[1])
    assert frame.id == "id1"
    assert np.array_equal(frame.image, photograph(1))
    assert np.array_equal(frame.vessels, label(1))
    assert np.array_equal(frame.fov, FOV)


def test_labels_of_0_and_1_are_binary(dataset):
    write_png(dataset.root / "0_label.png", label(0).astype(np.uint8))
    assert dataset.problems() == []
    assert np.array_equal(read_item(dataset.items[0]).vessels, label(0))


def test_a_missing_mask_is_estimated(dataset):
    item = RawItem("x", dataset.items[0].image, dataset.items[0].vessels, None, "x", None)
    assert (read_item(item).fov != FOV).mean() < 0.02


def test_the_rim_of_a_mask_may_be_blurred(dataset):
    soft = np.clip((28 - np.hypot(X, Y)) * 100 + 128, 0, 255).astype(np.uint8)
    write_png(dataset.root / "0_mask.png", soft)
    assert dataset.problems() == []


def test_unlabelled_images_pass(dataset):
    dataset.items[0] = RawItem("u", dataset.items[0].image, None, dataset.items[0].fov, "u", "unlabelled")
    assert dataset.problems() == []
    assert read_item(dataset.items[0]).vessels is None


@pytest.mark.parametrize("kind", ["", "_label", "_mask"])
def test_truncated_files_are_named_by_their_source(dataset, kind):
    path = dataset.root / f"1{kind}.png"
    path.write_bytes(path.read_bytes()[:60])
    expect_one(dataset, f"set/1{kind}.png: ", "fetch")
    assert str(dataset.root) not in dataset.problems()[0]


@pytest.mark.parametrize("kind", ["label", "mask"])
def test_another_size_is_reported(dataset, kind):
    write_png(dataset.root / f"1_{kind}.png", FOV[:50, :60])
    expect_one(dataset, f"set/1_{kind}.png: a {kind} of 60×50 pixels", "expected 64×64 like set/1.png")


def test_a_label_saved_as_jpeg_is_refused(dataset):
    Image.fromarray(label(0)).convert("L").save(dataset.root / "0_label.png", format="JPEG")
    expect_one(dataset, "set/0_label.png: a label of", "grey levels", "lossy format")


@pytest.mark.parametrize("white", [251, 128])
def test_a_label_of_two_other_levels_is_refused(dataset, white):
    write_png(dataset.root / "0_label.png", label(0).astype(np.uint8) * np.uint8(white))
    expect_one(dataset, f"2 grey levels (0, {white})", "re-coded")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros_like(FOV), "without a vessel pixel"),
        (np.ones_like(FOV), "all vessel"),
        (~label(0), "invert it"),
        (~FOV & (X > 20), "outside the field of view"),
    ],
)
def test_implausible_labels_are_refused(dataset, array, message):
    array = array.astype(np.uint8) * np.uint8(255)  # as a file of full range, whatever its content
    write_png(dataset.root / "0_label.png", array)
    expect_one(dataset, "set/0_label.png: ", message)


def test_an_empty_mask_is_refused(dataset):
    write_png(dataset.root / "0_mask.png", np.zeros_like(FOV))
    expect_one(dataset, "set/0_mask.png: a field of view without a pixel")


def test_a_black_photograph_without_mask_is_refused(dataset):
    write_png(dataset.root / "0.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    dataset.items[0] = RawItem("x", dataset.items[0].image, dataset.items[0].vessels, None, "x", None)
    expect_one(dataset, "set/0.png: no field of view")


def test_tiny_photographs_are_refused(dataset):
    for kind, array in (("", photograph(0)), ("_label", label(0)), ("_mask", FOV)):
        write_png(dataset.root / f"0{kind}.png", array[17:47, 17:47])
    expect_one(dataset, "set/0.png: 30×30 pixels; expected at least 32")


@pytest.mark.parametrize(
    "change", [lambda image: image, lambda image: image[:, ::-1], lambda image: np.rot90(image)]
)
def test_the_same_photograph_twice_is_refused(dataset, change):
    Image.fromarray(np.ascontiguousarray(change(photograph(0)))).save(dataset.root / "2.png", format="TIFF")
    expect_one(dataset, "set/2.png: the same photograph as set/0.png")


def test_the_same_label_twice_is_refused(dataset):
    write_png(dataset.root / "2_label.png", label(0))
    expect_one(dataset, "set/2_label.png: the same label as set/0_label.png", "augmented")


def test_names_that_differ_by_case_only_are_refused(dataset):
    first = dataset.items[0]
    dataset.items[0] = RawItem("ID2", first.image, first.vessels, first.fov, "0", None)
    expect_one(dataset, "upper and lower case")


def test_all_problems_are_reported_at_once(dataset):
    write_png(dataset.root / "0_label.png", np.zeros_like(FOV))
    write_png(dataset.root / "0_mask.png", np.zeros_like(FOV))
    (dataset.root / "1.png").write_bytes(b"")
    (dataset.root / "1_label.png").unlink()
    write_png(dataset.root / "2_mask.png", FOV[:40])
    assert len(dataset.problems()) == 5
    with pytest.raises(UserError, match="2 problems"):
        read_item(dataset.items[0])
