"""Loading real and synthetic images as training frames."""

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.images import write_png, write_probability
from pipeline.prepared import Entry, Frame, load_samples, write_prepared
from pipeline.synthetic_pool import COLUMNS, first_of_pool, read_pool
from pipeline.training_data import synthetic_frames, training_frames, validation_frames


def write_pool(folder: Path, count: int) -> Path:
    images, probabilities = folder / "images", folder / "probabilities"
    images.mkdir()
    probabilities.mkdir()
    rng = np.random.default_rng(0)
    with (images / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for index in range(count):
            name = f"{index:06d}"
            write_png(images / f"{name}.png", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            write_probability(probabilities / f"{name}.png", rng.random((16, 16), dtype=np.float32))
            writer.writerow([name, f"{name}.png", index, 0.7])
    return probabilities


def test_real_images_keep_native_labels_for_validation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vessels, fov = rng.random((24, 20)) < 0.3, np.ones((24, 20), bool)
    frame = Frame("a", rng.integers(0, 256, (24, 20, 3), dtype=np.uint8), vessels, fov)
    write_prepared(tmp_path / "data", [Entry(frame, "validation", "drawn")])
    samples = load_samples(tmp_path / "data", "validation")
    (loaded,) = validation_frames(samples, 12 + 4)
    assert np.array_equal(loaded.vessels, vessels)
    assert loaded.working.target.shape == (16, 13)
    assert loaded.working.target.mean() / 255 == pytest.approx(vessels.mean(), abs=0.01)
    (native,) = training_frames(samples, "native")
    assert np.array_equal(native.target, vessels * np.uint8(255))


def test_synthetic_labels_are_binarised_where_used(tmp_path: Path) -> None:
    probabilities = write_pool(tmp_path, 3)
    pool = read_pool(tmp_path / "images")
    low, high = (synthetic_frames(pool, probabilities, cut, "native") for cut in (0.2, 0.8))
    assert {0, 255} == set(np.unique(low[0].target)) == set(np.unique(high[0].target))
    assert np.mean([frame.target for frame in low]) / 255 == pytest.approx(0.8, abs=0.05)
    assert np.mean([frame.target for frame in high]) / 255 == pytest.approx(0.2, abs=0.05)


def test_a_smaller_count_is_the_pools_start(tmp_path: Path) -> None:
    write_pool(tmp_path, 5)
    pool = read_pool(tmp_path / "images")
    assert [image.id for image in first_of_pool(pool, 2)] == ["000000", "000001"]
    with pytest.raises(UserError, match=r"6 synthetic images are asked for, but the pool holds 5; raise"):
        first_of_pool(pool, 6)


def test_broken_pools_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage `synthesize`"):
        read_pool(tmp_path)
    probabilities = write_pool(tmp_path, 3)
    pool = read_pool(tmp_path / "images")
    (probabilities / "000000.png").unlink()
    write_probability(probabilities / "000001.png", np.zeros((4, 4), np.float32))
    with pytest.raises(UserError, match=r"(?s)2 problems.*000000\.png: missing.*000001\.png: \(4, 4\)"):
        synthetic_frames(pool, probabilities, 0.5, "native")
    (tmp_path / "images" / "000002.png").unlink()
    with pytest.raises(UserError, match=r"000002\.png"):
        read_pool(tmp_path / "images")
    (tmp_path / "images" / "manifest.csv").write_text("id,file\n")
    with pytest.raises(UserError, match="columns id, file"):
        read_pool(tmp_path / "images")
