import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.images import read_gray, read_mask, read_probability, read_rgb, write_png, write_probability


@pytest.fixture
def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)


def test_colour_grey_and_mask_survive_writing(tmp_path, colour):
    write_png(tmp_path / "c.png", colour)
    write_png(tmp_path / "g.png", colour[..., 0])
    write_png(tmp_path / "m.png", colour[..., 0] > 99)
    assert np.array_equal(read_rgb(tmp_path / "c.png"), colour)
    assert np.array_equal(read_gray(tmp_path / "g.png"), colour[..., 0])
    assert np.array_equal(read_mask(tmp_path / "m.png"), colour[..., 0] > 99)
    assert set(np.unique(read_gray(tmp_path / "m.png"))) == {0, 255}


def test_equal_pixels_give_equal_bytes(tmp_path, colour):
    write_png(tmp_path / "a.png", colour)
    write_png(tmp_path / "b.png", np.asfortranarray(colour))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), bool)]
)
def test_other_arrays_are_not_written(tmp_path, array):
    with pytest.raises(ValueError, match="cannot write"):
        write_png(tmp_path / "a.png", array)


def test_probabilities_keep_sixteen_bits(tmp_path):
    probability = np.linspace(0, 1, 5000, dtype=np.float32).reshape(50, 100)
    write_probability(tmp_path / "p.png", probability)
    back = read_probability(tmp_path / "p.png")
    assert back.dtype == np.float32
    assert np.abs(back - probability).max() <= 0.5 / 65535 + 1e-7
    assert back[0, 0] == 0 and back[-1, -1] == 1


@pytest.mark.parametrize("value", [np.nan, -0.01, 1.01])
def test_no_probability_outside_0_to_1(tmp_path, value):
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        write_probability(tmp_path / "p.png", np.full((4, 4), value, np.float32))


def test_eight_bits_are_no_probabilities(tmp_path, colour):
    write_png(tmp_path / "g.png", colour[..., 0])
    with pytest.raises(UserError, match=r"g\.png: uint8.*16-bit"):
        read_probability(tmp_path / "g.png")


def test_read_rgb_takes_grey_alpha_palette_and_sixteen_bits(tmp_path, colour):
    grey = colour[..., 0]
    Image.fromarray(grey).save(tmp_path / "g.png")
    Image.fromarray(np.dstack([colour, grey])).save(tmp_path / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "s.png")
    assert np.array_equal(read_rgb(tmp_path / "g.png"), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(read_rgb(tmp_path / "a.png"), colour)
    assert np.array_equal(read_rgb(tmp_path / "s.png")[..., 2], grey)


def test_read_gray_takes_one_bit_grey_stored_as_colour_and_class_indices(tmp_path, colour):
    mask = colour[..., 0] > 99
    Image.fromarray(mask).save(tmp_path / "1.png")
    Image.fromarray(np.repeat(colour[..., :1], 3, axis=2)).save(tmp_path / "rgb.png")
    indexed = Image.fromarray(mask.astype(np.uint8)).convert("P")
    indexed.putpalette([0, 0, 0, 128, 0, 0])
    indexed.save(tmp_path / "p.png")
    assert set(np.unique(read_gray(tmp_path / "1.png"))) == {0, 255}
    assert np.array_equal(read_gray(tmp_path / "rgb.png"), colour[..., 0])
    assert np.array_equal(read_gray(tmp_path / "p.png"), mask.astype(np.uint8))


def test_a_colour_image_is_no_mask(tmp_path, colour):
    write_png(tmp_path / "c.png", colour)
    with pytest.raises(UserError, match=r"c\.png: a colour image"):
        read_gray(tmp_path / "c.png")


def test_gzip_is_unpacked(tmp_path, colour):
    plain = io.BytesIO()
    Image.fromarray(colour).save(plain, format="PPM")
    (tmp_path / "a.ppm.gz").write_bytes(gzip.compress(plain.getvalue()))
    assert np.array_equal(read_rgb(tmp_path / "a.ppm.gz"), colour)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "gif", "ppm.gz"])
def test_truncated_images_are_named(tmp_path, colour, suffix):
    plain = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF", "ppm.gz": "PPM"}.get(suffix, suffix.upper())
    Image.fromarray(colour).save(plain, format=kind)
    content = gzip.compress(plain.getvalue()) if suffix.endswith("gz") else plain.getvalue()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content[: len(content) // 2])
    for read in (read_rgb, read_gray):
        with pytest.raises(UserError, match=r"a\.\w+.*(truncated|no image)"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>"])
def test_other_files_are_no_images(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.png: no image"):
        read_rgb(tmp_path / "a.png")


def test_missing_files_and_floats_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.png: cannot be read"):
        read_rgb(tmp_path / "no.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    for read in (read_rgb, read_gray):
        with pytest.raises(UserError, match=r"f\.tif: floating-point"):
            read(tmp_path / "f.tif")


def test_reading_is_seen_by_an_audit_hook(tmp_path, colour):
    write_png(tmp_path / "c.png", colour)
    seen: list[Path] = []
    is_on = True

    def hook(event, arguments):
        if is_on and event == "open" and str(arguments[0]).endswith("c.png"):
            seen.append(Path(arguments[0]))

    sys.addaudithook(hook)
    read_rgb(tmp_path / "c.png")
    with pytest.raises(UserError):
        read_gray(tmp_path / "c.png")
    is_on = False  # a hook cannot be taken away again
    assert seen == [tmp_path / "c.png"] * 2
