import zipfile
from pathlib import Path

import pytest

from pipeline.errors import Problems, UserError
from pipeline.readers.raw import MissingDatasetError, open_raw
from pipeline.readers.registry import READERS


def touch(root: Path, *names: str) -> None:
    """Readers look at names only; the pixels are the checks' business."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def read(name: str, root: Path):
    """Give (id → split, label, mask, patient) and the problems."""
    reader = READERS[name]
    problems = Problems("problems")
    with open_raw(root, reader.layout) as folder:
        items = reader.read(folder, problems)
    listed = {
        item.id: (
            item.split,
            item.vessels and str(item.vessels.source),
            item.fov and str(item.fov.source),
            item.patient,
        )
        for item in items
    }
    assert len(listed) == len(items)
    return listed, list(problems)


def zipped(archive: Path, root: Path, *, prefix: str = "") -> None:
    with zipfile.ZipFile(archive, "w") as content:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                content.write(file, f"{prefix}{file.relative_to(root).as_posix()}")
        content.writestr("__MACOSX/training/images/._21_training.tif", b"resource fork")
        content.writestr("readme.txt", b"text")


def drive_names(part: str, numbers: range, *, labelled: bool = True) -> list[str]:
    names = []
    for number in numbers:
        names += [f"{part}/images/{number:02}_{part}.tif", f"{part}/mask/{number:02}_{part}_mask.gif"]
        names += [f"{part}/1st_manual/{number:02}_manual1.gif"] if labelled else []
    return names


@pytest.fixture
def drive(tmp_path) -> Path:
    root = tmp_path / "drive"
    touch(root, *drive_names("training", range(21, 41)), *drive_names("test", range(1, 21)))
    touch(root, "test/2nd_manual/01_manual2.gif", "training/.DS_Store", "Thumbs.db")
    return root


def test_drive_has_its_official_split(drive):
    items, problems = read("drive", drive)
    assert problems == []
    assert items["21_training"] == (
        "train",
        "training/1st_manual/21_manual1.gif",
        "training/mask/21_training_mask.gif",
        "21",
    )
    assert items["01_test"][0] == "test"
    assert [split for split, *_ in items.values()].count("train") == 20 and len(items) == 40


@pytest.mark.parametrize("packing", ["parts", "parts without a top folder", "one", "one below a folder"])
def test_drive_is_read_from_zip_files(drive, tmp_path, packing):
    expected = read("drive", drive)
    packed = tmp_path / "packed"
    packed.mkdir()
    if packing == "one":
        zipped(packed / "drive.zip", drive)
    elif packing == "one below a folder":
        zipped(packed / "DRIVE.zip", drive, prefix="DRIVE/")
    else:
        for part in ("training", "test"):
            prefix = "" if packing.endswith("folder") else f"{part}/"
            zipped(packed / f"{part}.zip", drive / part, prefix=prefix)
    items, problems = read("drive", packed)
    assert problems == []
    assert {name: (row[0], row[3]) for name, row in items.items()} == {
        name: (row[0], row[3]) for name, row in expected[0].items()
    }
    if packing.startswith("parts"):
        assert items == expected[0]


def test_an_unpacked_zip_file_is_left_alone(drive):
    zipped(drive / "training.zip", drive / "training", prefix="training/")
    items, problems = read("drive", drive)
    assert problems == [] and len(items) == 40


def test_the_temporary_folder_is_gone_afterwards(drive, tmp_path):
    packed = tmp_path / "packed"
    packed.mkdir()
    zipped(packed / "all.zip", drive)
    with open_raw(packed, "") as folder:
        paths = [file.path for file in folder.files]
        assert all(path.is_file() and packed not in path.parents for path in paths)
    assert not any(path.exists() for path in paths)


def test_drive_of_the_challenge_has_no_test_labels(tmp_path):
    touch(tmp_path, *drive_names("training", range(21, 41)))
    touch(tmp_path, *drive_names("test", range(1, 21), labelled=False))
    items, problems = read("drive", tmp_path)
    assert problems == []
    assert items["21_training"][0] is None
    assert items["01_test"] == ("unlabelled", None, "test/mask/01_test_mask.gif", "01")


def test_an_augmented_copy_of_drive_is_refused(drive):
    touch(
        drive, *(f"training/images/21_training_{i}.tif" for i in range(3)), "training/images/41_training.tif"
    )
    _, problems = read("drive", drive)
    clashes = [problem for problem in problems if "the second image for '21'" in problem]
    assert len(clashes) == 3
    assert "augmented copies" in clashes[0]
    assert any("41_training.tif: not a name of DRIVE" in problem for problem in problems)


def test_all_unpaired_files_are_reported(drive):
    (drive / "training/images/25_training.tif").unlink()
    (drive / "training/1st_manual/30_manual1.gif").unlink()
    (drive / "test/mask/07_test_mask.gif").unlink()
    items, problems = read("drive", drive)
    assert len(problems) == 3 and len(items) == 37
    assert any("07_test.tif" in problem and "no mask for '07'" in problem for problem in problems)
    assert any("25_manual1.gif" in problem and "no image for '25'" in problem for problem in problems)
    assert any("30_training.tif" in problem and "no label for '30'" in problem for problem in problems)


def test_half_of_drive_is_reported(tmp_path):
    touch(tmp_path, *drive_names("training", range(21, 41)))
    _, problems = read("drive", tmp_path)
    assert len(problems) == 1 and "no image in test/images/" in problems[0]


def test_chase_keeps_the_eyes_of_a_child_together(tmp_path):
    for number in range(1, 15):
        for eye in "LR":
            name = f"Image_{number:02}{eye}"
            touch(tmp_path / "CHASEDB1", f"{name}.jpg", f"{name}_1stHO.png", f"{name}_2ndHO.png")
    items, problems = read("chase_db1", tmp_path)
    assert problems == [] and len(items) == 28
    splits = [split for split, *_ in items.values()]
    assert (splits.count("train"), splits.count("test")) == (20, 8)
    assert items["Image_11R"] == ("test", "CHASEDB1/Image_11R_1stHO.png", None, "Image_11")
    assert items["Image_10L"][0] == "train"


def test_stare_is_read_gzipped_or_not(tmp_path):
    touch(tmp_path / "images", "im0001.ppm.gz", "im0002.ppm")
    touch(tmp_path / "labels-ah", "im0001.ah.ppm.gz", "im0002.ah.ppm")
    touch(tmp_path / "labels-vk", "im0001.vk.ppm.gz", "im0002.vk.ppm")
    items, problems = read("stare", tmp_path)
    assert problems == []
    assert items == {
        "im0001": (None, "labels-ah/im0001.ah.ppm.gz", None, "im0001"),
        "im0002": (None, "labels-ah/im0002.ah.ppm", None, "im0002"),
    }


def test_hrf_trains_on_the_first_five_of_each_kind(tmp_path):
    for number in range(1, 16):
        for kind in ("h", "g", "dr"):
            name = f"{number:02}_{kind}"
            suffix = "JPG" if kind == "dr" else "jpg"
            touch(tmp_path, f"images/{name}.{suffix}", f"manual1/{name}.tif", f"mask/{name}_mask.tif")
    items, problems = read("hrf", tmp_path)
    assert problems == [] and len(items) == 45
    assert sum(split == "train" for split, *_ in items.values()) == 15
    assert items["05_dr"] == ("train", "manual1/05_dr.tif", "mask/05_dr_mask.tif", "05_dr")
    assert items["06_h"][0] == "test"


def test_a_plain_folder_without_split(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/b.v2.tif", "labels/a.png", "labels/b.v2.png")
    items, problems = read("folder", tmp_path)
    assert problems == []
    assert items == {"a": (None, "labels/a.png", None, "a"), "b.v2": (None, "labels/b.v2.png", None, "b.v2")}


def test_a_plain_folder_with_split_and_masks(tmp_path):
    for part in ("train", "test"):
        touch(tmp_path, f"{part}/images/1.png", f"{part}/labels/1.png")
    touch(tmp_path, "train/masks/1.gif")
    items, problems = read("folder", tmp_path)
    assert problems == []
    assert items["train_1"] == ("train", "train/labels/1.png", "train/masks/1.gif", "train_1")
    assert items["test_1"] == ("test", "test/labels/1.png", None, "test_1")


def test_a_plain_folder_with_an_unlabelled_test(tmp_path):
    touch(tmp_path, "train/images/1.png", "train/labels/1.png", "test/images/1.png")
    items, problems = read("folder", tmp_path)
    assert problems == []
    assert items["train_1"][0] is None
    assert items["test_1"][:2] == ("unlabelled", None)


def test_a_muddled_plain_folder_is_reported(tmp_path):
    touch(tmp_path, "images/a.png", "labels/b.png", "train/images/c.png", "gt/a.png", "d.png", "masks/a.png")
    _, problems = read("folder", tmp_path)
    text = "\n".join(problems)
    assert "gt/a.png: in none of the folders" in text and "d.png: in none of the folders" in text
    assert "images/ both by itself and in train/ or test/" in text
    assert (
        "no label for 'a'" in text and "no image and no mask for 'b'" in text and "no label for 'c'" in text
    )


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_missing_or_empty_folder_says_what_is_expected(tmp_path, name):
    with pytest.raises(MissingDatasetError, match=r"no such folder; expected .*data/README\.md"):
        read(name, tmp_path / "no")
    with pytest.raises(UserError, match="holds no image; expected"):
        read(name, tmp_path)


@pytest.mark.parametrize("name", sorted(READERS))
def test_foreign_images_are_not_taken_for_the_dataset(tmp_path, name):
    touch(tmp_path, "holiday/beach.jpg")
    items, problems = read(name, tmp_path)
    assert items == {} and any("expected" in problem for problem in problems)


@pytest.mark.parametrize(
    "member", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png", "C:/evil.png"]
)
def test_a_zip_file_cannot_write_elsewhere(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as content:
        content.writestr(member, b"")
    with pytest.raises(UserError, match="leads out of the archive"):
        read("drive", tmp_path)
    assert sorted(tmp_path.parent.rglob("evil.png")) == []


def test_a_damaged_zip_file_is_named(tmp_path):
    (tmp_path / "training.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=r"training\.zip: a damaged"):
        read("drive", tmp_path)


@pytest.mark.shared
def test_the_real_drive(shared_dir):
    items, problems = read("drive", shared_dir / "data" / "DRIVE")
    assert problems == [] and len(items) == 40
