import ast
import gzip
import io
import os
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image

from pipeline import images
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


def test_gzip_is_unpacked_no_further_than_allowed(tmp_path, colour, monkeypatch):
    plain = io.BytesIO()
    Image.fromarray(colour).save(plain, "PPM")
    content = plain.getvalue()
    (tmp_path / "a.ppm.gz").write_bytes(gzip.compress(content))
    bomb = gzip.compress(content + bytes(20_000_000))
    (tmp_path / "bomb.ppm.gz").write_bytes(bomb[:-8] + b"no sum..")  # which only a reader to the end finds
    monkeypatch.setattr(images, "_MOST_UNPACKED", len(content))
    assert np.array_equal(read_rgb(tmp_path / "a.ppm.gz"), colour)
    with pytest.raises(UserError, match=r"bomb\.ppm\.gz: gzip that unpacks to more than"):
        read_rgb(tmp_path / "bomb.ppm.gz")


def test_a_small_gzip_takes_little_memory(tmp_path, colour):
    plain = io.BytesIO()
    Image.fromarray(colour).save(plain, "PPM")
    (tmp_path / "a.ppm.gz").write_bytes(gzip.compress(plain.getvalue()))
    tracemalloc.start()
    try:
        read_rgb(tmp_path / "a.ppm.gz")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "MPO", "GIF", "BMP", "PPM"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_all_kinds_that_datasets_come_in_can_be_read(tmp_path, kind, is_packed):
    """DRIVE: TIFF, GIF; STARE: PPM, packed; HRF, CHASE_DB1: JPEG (of several pictures: MPO), TIFF, PNG."""
    content = io.BytesIO()
    Image.new("L", (9, 7), 255).save(content, kind)
    (tmp_path / "a").write_bytes(gzip.compress(content.getvalue()) if is_packed else content.getvalue())
    assert (read_rgb(tmp_path / "a") == 255).all()
    assert read_gray(tmp_path / "a").shape == (7, 9)


def test_a_postscript_file_starts_no_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is named."""
    programs, started = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho >> '{started}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not searched for yet
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 4\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "a.ppm.gz").write_bytes(gzip.compress(content))
    for name in ("a.png", "a.ppm.gz"):
        for read in (read_rgb, read_gray):
            with pytest.raises(UserError, match=rf"{name}: no image"):
                read(tmp_path / name)
    assert not started.exists()


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


def rescaled(colour, peak):
    """16-bit levels whose brightest is `peak`."""
    return (colour.astype(np.uint16) * (peak / colour.max())).round().astype(np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "ppm"])
@pytest.mark.parametrize("is_colour", [True, False])
def test_sixteen_bits_that_use_a_small_part_of_their_range_are_refused(tmp_path, colour, suffix, is_colour):
    path = tmp_path / ("s.pgm" if suffix == "ppm" and not is_colour else f"s.{suffix}")
    levels = colour if is_colour else colour[..., 0]
    for peak in (4095, 16_000):
        assert cv2.imwrite(str(path), rescaled(levels, peak))
        with pytest.raises(UserError, match=r"s\.\w+: 16-bit pixels.*expected 65535.*fewer bits"):
            read_rgb(path)
    assert cv2.imwrite(str(path), levels.astype(np.uint16) * 257)
    expected = levels[..., ::-1] if is_colour else np.repeat(levels[..., None], 3, axis=2)
    assert np.array_equal(read_rgb(path), expected)  # OpenCV writes BGR


def test_the_largest_value_a_ppm_names_is_its_white(tmp_path):
    header, levels = b"P6 2 1 4095\n", np.array([0, 4095, 0, 4095, 0, 0], ">u2")
    (tmp_path / "a.ppm").write_bytes(header + levels.tobytes())
    assert read_rgb(tmp_path / "a.ppm").tolist() == [[[0, 255, 0], [255, 0, 0]]]


def test_dark_eight_bit_images_and_sixteen_bit_masks_pass(tmp_path, colour):
    write_png(tmp_path / "dark.png", colour // 64)
    assert read_rgb(tmp_path / "dark.png").max() == 3
    Image.fromarray((colour[..., 0] > 99).astype(np.uint16)).save(tmp_path / "mask.png")
    assert read_gray(tmp_path / "mask.png").max() == 1


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("I", "signed or 32-bit integers"),
        ("F", "floating-point pixels, whose range is not known"),
        ("CMYK", "CMYK colours"),
        ("LAB", "LAB colours"),
    ],
)
def test_pixels_of_unknown_meaning_are_refused(tmp_path, mode, message):
    Image.new(mode, (40, 40)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=rf"a\.tif: {message}.*; expected .*8 or 16 bits; "):
        read_rgb(tmp_path / "a.tif")


def test_floating_point_colours_are_named_as_a_possible_cause(tmp_path, colour):
    assert cv2.imwrite(str(tmp_path / "f.tif"), colour.astype(np.float32))
    with pytest.raises(UserError, match=r"f\.tif: no image, .*floating-point colours"):
        read_rgb(tmp_path / "f.tif")


def test_one_bit_images_are_black_and_white(tmp_path, colour):
    Image.fromarray(colour[..., 0] > 99).save(tmp_path / "1.png")
    assert np.array_equal(read_rgb(tmp_path / "1.png")[..., 1], (colour[..., 0] > 99) * 255)


def test_transparency_is_dropped_without_blending_or_warning(tmp_path, colour):
    grey = colour[..., 0]
    Image.fromarray(np.dstack([grey, 255 - grey])).save(tmp_path / "la.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png", transparency=bytes(range(256)))
    for name in ("la.png", "p.png"):
        assert np.array_equal(read_rgb(tmp_path / name)[..., 0], grey)
        assert np.array_equal(read_gray(tmp_path / name), grey)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_orientation_is_ignored(tmp_path, colour, kind, compression):
    image = Image.fromarray(colour[..., 0])
    options = {"compression": compression} if kind == "TIFF" else {}
    image.save(tmp_path / "plain", kind, **options)
    stored = read_gray(tmp_path / "plain")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(tmp_path / "turned", kind, exif=exif, **options)
        assert np.array_equal(read_gray(tmp_path / "turned"), stored), orientation
        assert np.array_equal(read_rgb(tmp_path / "turned")[..., 0], stored), orientation


def claim_size(path: Path, side: int) -> None:
    """Write a small PNG whose header claims to be large."""
    content = io.BytesIO()
    Image.new("1", (8, 8)).save(content, "PNG")
    header = b"IHDR" + struct.pack(">II", side, side) + content.getvalue()[24:29]
    path.write_bytes(
        content.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + content.getvalue()[33:]
    )


@pytest.mark.parametrize("side", [10_001, 14_000, 60_000])
def test_images_above_the_limit_are_refused_by_their_size(tmp_path, side):
    claim_size(tmp_path / "a.png", side)
    with pytest.raises(
        UserError, match=r"a\.png: .*expected at most 100 megapixels; scale it down"
    ) as caught:
        read_rgb(tmp_path / "a.png")
    assert side > 13_000 or f"{side}×{side} pixels" in str(caught.value)


def test_below_the_limit_pillow_does_not_warn(tmp_path):
    claim_size(tmp_path / "a.png", 9_500)
    with pytest.raises(UserError, match="truncated"):
        read_rgb(tmp_path / "a.png")


def test_images_are_opened_by_python_everywhere(repo_root):
    """The guard of the test split is an audit hook: it sees what Python opens, not what C++ opens."""
    unseen = {"imread", "imreadmulti", "imreadanimation", "imread_collection", "imcount", "VideoCapture"}
    files = [path for package in ("pipeline", "stages") for path in (repo_root / package).rglob("*.py")]
    assert len(files) > 50
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            found += [f"{path}:{node.lineno}: {name}" for name in names if name in unseen]
    assert not found, "use pipeline.images, or open() and cv2.imdecode"


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
