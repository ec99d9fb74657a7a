from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.binarise import Binarisation
from pipeline.cli import main
from pipeline.device import available_cores
from pipeline.frames import Statistics
from pipeline.inference import Predictor
from pipeline.model_folder import ModelConfig, save_model
from pipeline.models.registry import Architecture, build_model
from pipeline.tiling import DEFAULT_TILE


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(path)
    return path


def test_every_bad_path_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "a/eye.png")
    write_image(tmp_path / "b/eye.jpg")
    arguments = [str(tmp_path / name) for name in ("absent.png", "empty", "a", "b")]
    result = CliRunner().invoke(main, ["predict", *arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "(3 problems)" in result.output
    assert "absent.png: no such file or folder" in result.output
    assert "empty: a folder without images" in result.output
    assert "would overwrite those of" in result.output
    assert not (tmp_path / "out").exists()


def test_unreadable_images_stop_before_the_first_is_segmented(tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png")
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    result = CliRunner().invoke(main, ["predict", str(good), str(bad), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "bad.png" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_a_missing_model_says_how_to_get_one(tmp_path: Path) -> None:
    image = write_image(tmp_path / "eye.png")
    arguments = ["predict", str(image), "-o", str(tmp_path / "out"), "-m", str(tmp_path / "nothing")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert str(tmp_path / "nothing") in result.output


class Halves(Predictor):
    """Stands in for a trained model: the left half is vessel."""

    threshold = 0.5

    def predict(self, image, *, views="none", tile=None):
        probability = np.zeros(image.shape[:2], np.float32)
        probability[:, : image.shape[1] // 2] = 1
        return probability


@pytest.fixture
def predict(monkeypatch):
    """Give a function that runs `vesselforge predict` with the stand-in model."""
    monkeypatch.setattr(Predictor, "from_folder", staticmethod(lambda folder, device: Halves()))
    return lambda *arguments: CliRunner().invoke(main, ["predict", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_three_files_for_each_image(tmp_path: Path, predict) -> None:
    write_image(tmp_path / "scans/a.png")
    write_image(tmp_path / "scans/b.jpg")
    result = predict(tmp_path / "scans", "-o", tmp_path / "out/deep")
    assert result.exit_code == 0, result.output
    kinds = ("mask", "overlay", "probability")
    assert sorted(contents(tmp_path / "out/deep")) == [
        f"{name}_{kind}.png" for name in "ab" for kind in kinds
    ]
    mask = np.array(Image.open(tmp_path / "out/deep/a_mask.png"))
    assert mask[:, :15].min() == 255 and mask[:, 15:].max() == 0


def test_the_folder_that_is_segmented_is_not_written_to(tmp_path: Path, predict) -> None:
    write_image(tmp_path / "c/a.png")
    write_image(tmp_path / "c/a_mask.png")
    before = contents(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    for output in ("c", "link", "c/../c"):
        result = predict(tmp_path / "c", "-o", tmp_path / output, "--overwrite")
        assert result.exit_code == 2
        assert "(2 problems)" in result.output
        assert "to be read and written to" in result.output
        assert "a_mask.png: an input that the result" in result.output
    assert contents(tmp_path) == before
    (tmp_path / "c/a_mask.png").unlink()
    for _ in range(2):  # folders are not searched deeper, so a folder inside does no harm
        assert predict(tmp_path / "c", "-o", tmp_path / "c/out", "--overwrite").exit_code == 0
    assert len(contents(tmp_path / "c")) == 4


def test_an_input_is_never_overwritten_whatever_its_name(tmp_path: Path, predict) -> None:
    image, other = write_image(tmp_path / "a.png"), write_image(tmp_path / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_overlay.png").hardlink_to(other)
    result = predict(image, other, "-o", tmp_path / "out", "--overwrite")
    assert result.exit_code == 2
    assert "(1 problem)" in result.output and "b.png: an input that the result" in result.output
    assert predict(image, "-o", tmp_path / "out", "--overwrite").exit_code == 0


def test_earlier_results_are_replaced_only_on_demand(tmp_path: Path, predict) -> None:
    image = write_image(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_mask.png").write_text("mine")
    refused = predict(image, "-o", tmp_path / "out")
    assert refused.exit_code == 2
    assert "holds 1 of the results already (a_mask.png); give --overwrite" in refused.output
    assert contents(tmp_path / "out") == {"a_mask.png": b"mine"}
    assert predict(image, "-o", tmp_path / "out", "--overwrite").exit_code == 0
    assert np.array(Image.open(tmp_path / "out/a_mask.png")).max() == 255
    again = predict(image, "-o", tmp_path / "out")
    assert "holds 3 of the results already" in again.output


@pytest.mark.parametrize("output", ["file", "file/deeper", "nowhere"])
def test_an_output_that_is_no_folder_is_refused(tmp_path: Path, predict, output: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    result = predict(write_image(tmp_path / "a.png"), "-o", tmp_path / output, "--overwrite")
    assert result.exit_code == 2
    assert f"{tmp_path / output.split('/')[0]}: not a folder; expected" in result.output
    assert "Traceback" not in result.output


def test_a_folder_in_place_of_a_result_is_refused(tmp_path: Path, predict) -> None:
    (tmp_path / "out/a_mask.png").mkdir(parents=True)
    result = predict(write_image(tmp_path / "a.png"), "-o", tmp_path / "out", "--overwrite")
    assert result.exit_code == 2
    assert "a_mask.png: a folder where a result belongs" in result.output


def test_a_disk_that_refuses_is_reported(tmp_path: Path, predict, monkeypatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    image = write_image(tmp_path / "a.png")
    monkeypatch.setattr(Path, "write_bytes", full)
    result = predict(image, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "a_mask.png: cannot be written (No space left on device)" in result.output


def test_problems_of_images_and_output_come_together(tmp_path: Path, predict) -> None:
    (tmp_path / "bad.png").write_bytes(b"text")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/bad_mask.png").write_text("mine")
    result = predict(tmp_path / "bad.png", tmp_path / "absent.png", "-o", tmp_path / "out")
    assert "nothing was segmented (3 problems)" in result.output
    for part in ("bad.png: no image", "absent.png: no such file", "holds 1 of the results"):
        assert part in result.output


def test_an_unknown_device_is_refused_with_the_known_ones(tmp_path: Path, predict) -> None:
    result = predict(write_image(tmp_path / "a.png"), "-o", tmp_path / "out", "--device", "gpu")
    assert result.exit_code == 2
    assert "device 'gpu' is not known; expected auto, cpu, mps, cuda or cuda:N" in result.output
    assert not (tmp_path / "out").exists()


def write_model(folder: Path) -> Path:
    config = ModelConfig(
        architecture=Architecture(base_width=1),
        resolution="native",
        statistics=Statistics(mean=(0, 0, 0), std=(1, 1, 1)),
        threshold=0.5,
        params={},
        versions={},
        git_commit=None,
        data_sha256="0",
    )
    save_model(folder, build_model(config.architecture), config)
    return folder


def test_large_images_are_predicted_in_tiles_and_it_says_so(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    small = write_image(tmp_path / "small.png")
    Image.fromarray(np.zeros((430, 500, 3), np.uint8)).save(tmp_path / "large.png")
    arguments = [str(small), str(tmp_path / "large.png"), "-m", str(model), "--device", "cpu"]
    for name, extra in (("a", ["--tile", "424"]), ("b", []), ("c", ["--views", "dihedral"])):
        result = CliRunner().invoke(main, ["predict", *arguments, "-o", str(tmp_path / name), *extra])
        assert result.exit_code == 0, result.output
        said = "large.png: 500×430 pixels, predicted in 4 overlapping tiles of side 424" in result.output
        assert said == (name == "a")
        assert "small.png" not in result.output
    assert contents(tmp_path / "a").keys() == contents(tmp_path / "b").keys()
    whole, tiled = (
        np.asarray(Image.open(tmp_path / name / "large_probability.png"), np.int64) for name in "ba"
    )
    assert np.abs(whole - tiled).max() <= 1
    refused = CliRunner().invoke(
        main, ["predict", *arguments, "-o", str(tmp_path / "d"), "--tile", "100"], catch_exceptions=False
    )
    assert refused.exit_code == 2
    assert "tile: got 100 pixels; expected a multiple of 8 from" in refused.output
    assert not (tmp_path / "d").exists()


def test_the_help_names_the_tile_that_is_taken() -> None:
    assert f"[{DEFAULT_TILE}]" in CliRunner().invoke(main, ["predict", "--help"]).output


@pytest.mark.parametrize("value", ["-0.1", "0", "1", "1.5"])
def test_a_threshold_outside_zero_to_one_is_refused(tmp_path: Path, value: str) -> None:
    result = CliRunner().invoke(main, ["predict", "x.png", "-o", str(tmp_path), "--threshold", value])
    assert result.exit_code == 2
    assert "0<x<1" in result.output


def test_nan_is_no_threshold(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["predict", "x.png", "--threshold", "nan", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "Invalid value for '--threshold': got nan; expected a number" in result.output
    assert not (tmp_path / "out").exists()


def test_masks_are_made_the_models_way_unless_a_threshold_is_given(
    tmp_path: Path, predict, monkeypatch
) -> None:
    monkeypatch.setattr(Halves, "binarisation", Binarisation(threshold=0.5, min_size=10**6))
    image = write_image(tmp_path / "a.png")
    ways = (
        ("own", [], 0, "threshold 0.5, parts of 1000000 pixels or more (the model's own)"),
        ("cut", ["--threshold", "0.5"], 255, "threshold 0.5 (as given)"),
    )
    for name, extra, brightest, said in ways:
        result = predict(image, "-o", tmp_path / name, *extra)
        assert result.exit_code == 0
        assert f"1 image segmented into {tmp_path / name} by models/ensemble, {said}" in result.output
        assert np.array(Image.open(tmp_path / name / "a_mask.png")).max() == brightest


@pytest.mark.parametrize("arguments", [["--threads", "1"], []])
def test_threads_are_those_asked_for_or_every_core(
    tmp_path: Path, predict, monkeypatch, arguments: list[str]
) -> None:
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    result = predict(write_image(tmp_path / "a.png"), "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    assert threads == [1 if arguments else available_cores()]


def test_no_threads_are_refused(tmp_path: Path, predict) -> None:
    result = predict(write_image(tmp_path / "a.png"), "-o", tmp_path / "out", "--threads", "0")
    assert result.exit_code == 2
    assert "'--threads': 0 is not in the range x>=1" in result.output


def test_views_that_the_threshold_was_not_fitted_to_are_warned_of(tmp_path: Path, predict) -> None:
    image = write_image(tmp_path / "a.png")
    for name, extra, warned in (
        ("other", ["--views", "flips"], True),
        ("own", ["--views", "none"], False),
        ("cut", ["--views", "flips", "--threshold", "0.5"], False),
    ):
        result = predict(image, "-o", tmp_path / name, *extra)
        assert result.exit_code == 0, result.output
        assert ("fitted to views none, and is used with views flips" in result.output) == warned
