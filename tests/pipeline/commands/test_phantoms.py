from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import main
from pipeline.images import read_rgb
from pipeline.laterality import disc_contrast
from pipeline.phantom import draw_phantom


def test_phantoms_are_those_of_the_collection(tmp_path: Path) -> None:
    arguments = ["--count", "2", "--first", "3", "--size", "32", "--seed", "5", "--processes", "1"]
    arguments += ["--blood", "2"]
    result = CliRunner().invoke(main, ["phantoms", *arguments, "-o", str(tmp_path / "drawn")])
    assert result.exit_code == 0, result.output
    names = sorted(path.relative_to(tmp_path / "drawn").as_posix() for path in tmp_path.rglob("*.png"))
    assert names == [f"{kind}/{number:06d}.png" for kind in ("images", "vessels") for number in (3, 4)]
    expected = draw_phantom(5, 4, 32, blood=2.0)
    assert np.array_equal(read_rgb(tmp_path / "drawn" / "images" / "000004.png"), expected.image)
    vessels = np.asarray(Image.open(tmp_path / "drawn" / "vessels" / "000004.png"))
    assert np.array_equal(vessels, np.where(expected.vessels, 255, 0))


def test_phantoms_that_cannot_be_written_are_an_error_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    arguments = ["--count", "1", "--size", "32", "--processes", "1", "-o", str(tmp_path / "file" / "drawn")]
    result = CliRunner().invoke(main, ["phantoms", *arguments], catch_exceptions=False)
    assert result.exit_code == 2
    assert "cannot be written" in result.output and "give another one with -o" in result.output
    assert (tmp_path / "file").read_text() == "keep"


def test_phantoms_of_one_kind_of_eye(tmp_path: Path) -> None:
    common = ["phantoms", "--count", "8", "--size", "64", "--processes", "1"]
    for side in ("any", "left"):
        result = CliRunner().invoke(main, [*common, "--disc-side", side, "-o", str(tmp_path / side)])
        assert result.exit_code == 0, result.output
    turned = 0
    for number in range(8):
        name = f"{number:06d}.png"
        before, after = (read_rgb(tmp_path / side / "images" / name) for side in ("any", "left"))
        masks = [np.asarray(Image.open(tmp_path / side / "vessels" / name)) for side in ("any", "left")]
        assert disc_contrast(after) < 0
        mirrored = disc_contrast(before) > 0
        turned += mirrored
        assert np.array_equal(after, before[:, ::-1] if mirrored else before)
        assert np.array_equal(masks[1], masks[0][:, ::-1] if mirrored else masks[0])
    assert 0 < turned < 8


def test_phantoms_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(main, ["phantoms", "--count", "1", "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "expected a new or empty folder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_nan_is_no_factor(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["phantoms", "--count", "1", "--blood", "nan", "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 2
    assert "Invalid value for '--blood': got nan; expected a number" in result.output
    assert not (tmp_path / "out").exists()
