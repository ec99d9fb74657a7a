from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import main


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


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_a_threshold_outside_zero_to_one_is_refused(tmp_path: Path, value: str) -> None:
    result = CliRunner().invoke(main, ["predict", "x.png", "-o", str(tmp_path), "--threshold", value])
    assert result.exit_code == 2
    assert "0<=x<=1" in result.output
