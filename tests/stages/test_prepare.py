from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.images import read_gray, read_mask, read_rgb, write_png
from pipeline.prepared import load_samples
from stages.prepare import (
    Params,
    PhantomParams,
    explain_experiment_copies,
    prepare_dataset,
    prepare_phantoms,
    refuse_linked_folders,
)

Y, X = np.mgrid[:64, :64] - 31.5
FOV = np.hypot(X, Y) < 28


def write_folder(root: Path, parts: tuple[str, ...] = ("",), count: int = 8) -> None:
    """A plain dataset of `count` small photographs in each part."""
    for offset, part in enumerate(parts):
        for kind in ("images", "labels"):
            (root / part / kind).mkdir(parents=True)
        for index in range(count):
            rng = np.random.default_rng([offset, index])
            image = np.where(FOV[..., None], rng.integers(90, 200, (64, 64, 3)), 5).astype(np.uint8)
            write_png(root / part / "images" / f"{index}.png", image)
            write_png(root / part / "labels" / f"{index}.png", FOV & (rng.random((64, 64)) < 0.1))


def prepare(tmp_path: Path, raw: Path, *, seed: int = 0, **params) -> Path:
    prepare_dataset(Params(**params), seed, raw, tmp_path / "development", tmp_path / "test")
    return tmp_path


def ids(out: Path, split) -> list[str]:
    folder = out / ("test" if split in ("test", "unlabelled") else "development")
    return [sample.id for sample in load_samples(folder, split, allow_test=True)]


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_plain_folder_is_divided_and_written(tmp_path):
    write_folder(tmp_path / "raw")
    out = prepare(tmp_path / "out", tmp_path / "raw", dataset="folder", validation_count=2, test_count=3)
    splits = {split: ids(out, split) for split in ("train", "validation", "test")}
    assert {split: len(names) for split, names in splits.items()} == {"train": 3, "validation": 2, "test": 3}
    assert sorted(name for names in splits.values() for name in names) == [str(i) for i in range(8)]
    assert not {path.stem for path in (out / "development").rglob("*.png")} & set(splits["test"])
    for sample in load_samples(out / "development", "train"):
        frame = sample.load()
        assert np.array_equal(frame.image, read_rgb(tmp_path / "raw" / "images" / f"{sample.id}.png"))
        assert np.array_equal(frame.vessels, read_mask(tmp_path / "raw" / "labels" / f"{sample.id}.png"))
        assert (frame.fov != FOV).mean() < 0.02


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    write_folder(tmp_path / "raw", ("train", "test"))
    first = prepare(tmp_path / "1", tmp_path / "raw", dataset="folder")
    second = prepare(tmp_path / "2", tmp_path / "raw", dataset="folder")
    assert contents(first) == contents(second)
    assert len(contents(first)) == 2 + 16 * 3


def test_train_limit_takes_training_images_away_and_nothing_else(tmp_path):
    write_folder(tmp_path / "raw", ("train", "test"))
    full = prepare(tmp_path / "1", tmp_path / "raw", dataset="folder", validation_count=3)
    few = prepare(tmp_path / "2", tmp_path / "raw", dataset="folder", validation_count=3, train_limit=2)
    assert len(ids(few, "train")) == 2 and set(ids(few, "train")) < set(ids(full, "train"))
    assert ids(few, "validation") == ids(full, "validation")
    assert ids(few, "test") == ids(full, "test") == [f"test_{i}" for i in range(8)]


def test_unlabelled_test_images_are_kept_apart(tmp_path):
    write_folder(tmp_path / "raw", ("train", "test"))
    for label in (tmp_path / "raw" / "test" / "labels").iterdir():
        label.unlink()
    out = prepare(tmp_path / "out", tmp_path / "raw", dataset="folder", validation_count=2, test_count=3)
    assert len(ids(out, "test")) == 3 and all(name.startswith("train_") for name in ids(out, "test"))
    assert ids(out, "unlabelled") == [f"test_{i}" for i in range(8)]


def test_all_problems_are_reported_and_nothing_is_written(tmp_path):
    raw = tmp_path / "raw"
    write_folder(raw)
    (raw / "labels" / "0.png").unlink()
    write_png(raw / "labels" / "1.png", np.zeros((64, 64), bool))
    (raw / "images" / "2.png").write_bytes((raw / "images" / "3.png").read_bytes())
    (raw / "images" / "4.png").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        prepare(tmp_path / "out", raw, dataset="folder")
    message = str(caught.value)
    assert "nothing was written (4 problems)" in message
    for part in (
        "no label for '0'",
        "labels/1.png",
        "images/3.png: the same photograph",
        "images/4.png: no image",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_too_few_images_write_nothing(tmp_path):
    write_folder(tmp_path / "raw", count=5)
    with pytest.raises(UserError, match="leaves none for training"):
        prepare(tmp_path / "out", tmp_path / "raw", dataset="folder", validation_count=2, test_count=3)
    assert not (tmp_path / "out").exists()


def test_phantoms_are_written(tmp_path):
    params = Params(validation_count=2, phantom=PhantomParams(size=64, train_count=3, test_count=1))
    prepare_phantoms(params, 7, tmp_path / "development", tmp_path / "test", processes=1)
    assert ids(tmp_path, "train") == [f"phantom_{i:07}" for i in range(3)]
    assert len(ids(tmp_path, "validation")) == 2 and len(ids(tmp_path, "test")) == 1
    samples = load_samples(tmp_path / "development", "train")
    assert samples[2].source == "phantom(7,2)"
    assert samples[0].width == samples[0].height == 64
    assert samples[0].load().vessels.any()
    hashes = {sample.sha256 for sample in samples + load_samples(tmp_path / "development", "validation")}
    assert len(hashes) == 5


def test_more_training_phantoms_leave_the_others_alone(tmp_path):
    for name, count, limit in (("1", 2, None), ("2", 3, None), ("3", 3, 2)):
        params = Params(
            validation_count=1,
            train_limit=limit,
            phantom=PhantomParams(size=64, train_count=count, test_count=1),
        )
        prepare_phantoms(params, 0, tmp_path / name / "development", tmp_path / name / "test", processes=1)
    one, two, limited = (contents(tmp_path / name) for name in "123")
    images = {name for name in one if name.endswith(".png")}
    assert {name: two[name] for name in images} == {name: one[name] for name in images}
    assert limited == one


def test_train_limit_above_the_phantoms_is_refused(tmp_path):
    params = Params(train_limit=3, phantom=PhantomParams(size=64, train_count=2, test_count=1))
    with pytest.raises(UserError, match="train_limit is 3, but"):
        prepare_phantoms(params, 0, tmp_path / "development", tmp_path / "test", processes=1)


@pytest.mark.parametrize("path", ["/data/drive", "data/raw", "data/raw/../prepared", "../shared/data/DRIVE"])
def test_raw_data_lie_below_data_raw(path):
    with pytest.raises(ValidationError, match="expected a folder below data/raw"):
        Params(path=path)


def test_the_raw_folder_is_named_like_the_dataset():
    assert Params(dataset="drive").raw_folder == Path("data/raw/drive")
    assert Params(dataset="folder", path="data/raw/mine").raw_folder == Path("data/raw/mine")


@pytest.mark.parametrize("link", ["raw/mine", "raw/a/mine", "raw/mine/images"])
def test_linked_folders_are_refused_because_dvc_ignores_them(tmp_path, link):
    (tmp_path / "elsewhere" / "images").mkdir(parents=True)
    path = tmp_path / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="linked folders"):
        refuse_linked_folders(tmp_path / link.removesuffix("/images"), tmp_path / "raw")
    with pytest.raises(UserError, match="linked folders"):
        refuse_linked_folders(path / "images", tmp_path / "raw")


def test_linked_files_and_a_linked_root_are_fine(tmp_path):
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "elsewhere" / "mine" / "a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "raw").symlink_to(tmp_path / "elsewhere")
    mine = tmp_path / "raw" / "mine"
    refuse_linked_folders(mine, tmp_path / "raw")
    assert (mine / "a.png").is_symlink()


@pytest.mark.parametrize(
    "values",
    [
        {"dataset": "kaggle"},
        {"validation_count": 0},
        {"train_limit": 0},
        {"sise": 3},
        {"phantom": {"size": 8}},
    ],
)
def test_wrong_parameters_are_refused(values):
    with pytest.raises(ValidationError):
        Params.model_validate(values)


@pytest.mark.shared
def test_the_real_drive_is_prepared_unchanged(tmp_path, shared_dir):
    drive = shared_dir / "data" / "DRIVE"
    out = prepare(tmp_path, drive, dataset="drive")
    counts = {split: len(ids(out, split)) for split in ("train", "validation", "test", "unlabelled")}
    assert counts == {"train": 16, "validation": 4, "test": 20, "unlabelled": 0}
    samples = [
        *load_samples(out / "development", "train"),
        *load_samples(out / "development", "validation"),
        *load_samples(out / "test", "test", allow_test=True),
    ]
    for sample in samples:
        image = drive / sample.source
        number = image.name[:2]
        frame = sample.load()
        assert frame.image.shape == (584, 565, 3)
        assert np.array_equal(frame.image, read_rgb(image))
        label = read_gray(image.parents[1] / "1st_manual" / f"{number}_manual1.gif")
        assert frame.vessels.sum() == (label == 255).sum()
        assert np.array_equal(frame.vessels, label == 255)
        assert np.array_equal(frame.fov, read_mask(image.parents[1] / "mask" / f"{image.stem}_mask.gif"))
        assert 0.05 < frame.vessels[frame.fov].mean() < 0.25


@pytest.mark.parametrize("is_copy", [True, False])
def test_a_missing_folder_in_an_experiments_copy_says_how_to_take_it_along(tmp_path, monkeypatch, is_copy):
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path if is_copy else tmp_path / "copy"))
    raw = Path("data/raw/drive")
    with (
        pytest.raises(UserError, match=r"data/raw/drive: no such folder") as caught,
        explain_experiment_copies(raw),
    ):
        prepare(tmp_path, raw, dataset="drive")
    assert ("need `-C data/raw/drive`" in str(caught.value)) == is_copy


def test_without_dvc_a_missing_folder_is_just_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    raw = tmp_path / "absent"
    with pytest.raises(UserError, match="no such folder") as caught, explain_experiment_copies(raw):
        prepare(tmp_path, raw, dataset="drive")
    assert "-C" not in str(caught.value)
