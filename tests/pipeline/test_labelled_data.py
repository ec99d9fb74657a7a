from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.images import write_png
from pipeline.labelled_data import DATASETS, open_labelled
from pipeline.prepared import Entry, Frame, load_samples, write_prepared


def frame(number: int) -> Frame:
    rng = np.random.default_rng(number)
    fov = np.zeros((40, 44), bool)
    fov[2:-2, 2:-2] = True
    vessels = (rng.random(fov.shape) < 0.15) & fov
    return Frame(f"{number:02d}", rng.integers(40, 255, (40, 44, 3), dtype=np.uint8), vessels, fov)


def write_raw(folder: Path, numbers: range, *, labels: str = "labels", masks: bool = True) -> None:
    """Write images/ and labels (in a folder of that name; none for an empty one) [and masks/]."""
    for number in numbers:
        drawn = frame(number)
        kinds = {"images": drawn.image, labels: drawn.vessels} | ({"masks": drawn.fov} if masks else {})
        for kind, array in kinds.items():
            if kind:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                write_png(folder / kind / f"{number:02d}.png", array)


def opened(dataset: str, folder: Path, split=None):
    with open_labelled(dataset, folder, split) as data:
        frames = [sample.load() for sample in data.samples]
    assert dataset == "prepared" or not any(sample.image.exists() for sample in data.samples)
    return data, frames


def test_raw_images_come_as_they_are(tmp_path: Path) -> None:
    write_raw(tmp_path, range(1, 4))
    data, frames = opened("folder", tmp_path)
    assert (data.split, data.unlabelled, data.estimated) == ("all", 0, 0)
    for found, expected in zip(frames, [frame(number) for number in range(1, 4)], strict=True):
        assert found.id == expected.id
        for name in ("image", "vessels", "fov"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_the_test_images_are_the_default_where_a_dataset_is_divided(tmp_path: Path) -> None:
    write_raw(tmp_path / "train", range(1, 4))
    write_raw(tmp_path / "test", range(4, 6))
    ids = {split: [f.id for f in opened("folder", tmp_path, split)[1]] for split in (None, "test", "train")}
    assert ids[None] == ids["test"] == ["test_04", "test_05"]
    assert ids["train"] == ["train_01", "train_02", "train_03"]
    data, frames = opened("folder", tmp_path, "all")
    assert data.split == "all" and len(frames) == 5


def test_images_without_labels_are_never_replaced_by_others(tmp_path: Path) -> None:
    write_raw(tmp_path / "train", range(1, 4))
    write_raw(tmp_path / "test", range(4, 6), labels="")
    with pytest.raises(UserError, match="images: 2 unlabelled, 3 without a split; give --split all"):
        opened("folder", tmp_path)
    data, _ = opened("folder", tmp_path, "all")
    assert (len(data.samples), data.unlabelled) == (3, 2)


def test_a_split_that_a_dataset_lacks_is_an_error(tmp_path: Path) -> None:
    write_raw(tmp_path, range(1, 3))
    with pytest.raises(
        UserError, match=r"split test: no labelled image; .* 2 without a split; give --split all"
    ):
        opened("folder", tmp_path, "test")


def test_phantoms_have_vessels_and_an_estimated_field(tmp_path: Path) -> None:
    write_raw(tmp_path, range(2), labels="vessels", masks=False)
    data, frames = opened("phantom", tmp_path)
    assert (data.split, data.estimated) == ("all", 2)
    assert np.array_equal(frames[1].vessels, frame(1).vessels)
    (tmp_path / "vessels/01.png").unlink()
    with pytest.raises(UserError, match=r"images/01\.png: no label for '01'"):
        opened("phantom", tmp_path)


def test_only_what_is_scored_is_verified_and_all_of_it(tmp_path: Path) -> None:
    write_raw(tmp_path / "train", range(1, 3))
    write_raw(tmp_path / "test", range(3, 6))
    (tmp_path / "train/images/01.png").write_text("no image")
    assert len(opened("folder", tmp_path)[1]) == 3
    (tmp_path / "test/images/03.png").write_text("no image")
    write_png(tmp_path / "test/labels/04.png", np.full((40, 44), 17, np.uint8))
    with pytest.raises(UserError, match=r"\(2 problems\)"):
        opened("folder", tmp_path)


def test_prepared_folders(tmp_path: Path) -> None:
    development = [Entry(frame(n), "train" if n < 3 else "validation", "x") for n in range(1, 5)]
    test = [Entry(frame(5), "test", "x"), Entry(replace(frame(6), vessels=None), "unlabelled", "x")]
    write_prepared(tmp_path / "development", development)
    write_prepared(tmp_path / "test", test)
    data, _ = opened("prepared", tmp_path / "test")
    assert data.samples == load_samples(tmp_path / "test", "test", allow_test=True)
    assert (data.split, data.unlabelled) == ("test", 1)
    for split, ids in (("train", "12"), ("validation", "34"), ("all", "1234")):
        data, _ = opened("prepared", tmp_path / "development", split)
        assert [sample.id for sample in data.samples] == [f"0{number}" for number in ids]
    with pytest.raises(UserError, match="2 train, 2 validation; give --split validation or train or all"):
        opened("prepared", tmp_path / "development")


def test_prepared_without_labels_or_manifest(tmp_path: Path) -> None:
    write_prepared(tmp_path, [Entry(replace(frame(6), vessels=None), "unlabelled", "x")])
    with pytest.raises(UserError, match="images: 1 unlabelled; only labelled images can be scored"):
        opened("prepared", tmp_path, "all")
    (tmp_path / "manifest.csv").write_text("id\n")
    with pytest.raises(UserError, match="not a usable manifest"):
        opened("prepared", tmp_path, "all")


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_says_what_it_expects(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(UserError, match="expected"):
        opened(dataset, tmp_path / "absent")


@pytest.mark.shared
def test_drive_in_its_official_split(shared_dir: Path) -> None:
    data, _ = opened("drive", shared_dir / "data" / "DRIVE")
    assert data.split == "test" and data.estimated == 0
    assert [sample.id for sample in data.samples] == [f"{number:02}_test" for number in range(1, 21)]


@pytest.mark.parametrize("place", ["absent", "file"])
def test_a_tmpdir_that_is_of_no_use_is_an_error(tmp_path: Path, monkeypatch, place: str) -> None:
    write_raw(tmp_path / "raw", range(1, 3))
    write_prepared(tmp_path / "prepared", [Entry(frame(5), "test", "x")])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TMPDIR", str(tmp_path / place))
    with pytest.raises(UserError, match=f"TMPDIR is .*{place}, where no file can be written .*; expected"):
        opened("folder", tmp_path / "raw")
    opened("prepared", tmp_path / "prepared")  # is read where it lies


def test_copies_lie_in_tmpdir(tmp_path: Path, monkeypatch) -> None:
    write_raw(tmp_path / "raw", range(1, 3))
    (tmp_path / "place").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "place"))
    with open_labelled("folder", tmp_path / "raw") as data:
        assert all(sample.image.is_relative_to(tmp_path / "place") for sample in data.samples)
    assert not list((tmp_path / "place").iterdir())
