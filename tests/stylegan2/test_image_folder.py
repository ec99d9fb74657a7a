"""Folders and ZIP files of images: what is read, what is refused, and that all that is wrong is named."""

import json
import os
import random
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image

from stylegan2 import image_folder
from stylegan2.errors import StyleGAN2Error
from stylegan2.image_folder import LABELS, SUFFIXES, image_batches, load_image_folder

SIZE = (4, 8)


def save(path: Path, pixels: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def colour(value: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.full((*size, 3), value, np.uint8) + np.array([0, 1, 2], np.uint8)


def grey(value: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    return np.full(size, value, np.uint8)


def write_labels(folder: Path, labels: Any) -> None:
    (folder / LABELS).write_text(json.dumps({"labels": labels}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images whose paths are not in the order in which they were written."""
    folder = tmp_path / "images"  # what lies beside it is the test's own, too
    save(folder / "b" / "0.png", colour(100))
    save(folder / "c.PNG", colour(200))
    save(folder / "a.png", colour(50))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_come_in_the_order_of_their_paths(folder: Path) -> None:
    loaded = load_image_folder(folder, SIZE)
    assert loaded.images.dtype == np.uint8
    assert loaded.labels is None
    assert np.array_equal(loaded.images, np.stack([colour(50), colour(100), colour(200)]))


def test_grey_images_keep_one_channel_unless_one_has_colour(tmp_path: Path) -> None:
    save(tmp_path / "0.png", grey(7))
    save(tmp_path / "1.png", np.zeros(SIZE, bool))
    loaded = load_image_folder(tmp_path, SIZE).images
    assert loaded.shape == (2, *SIZE, 1)
    assert (loaded[0] == 7).all()
    save(tmp_path / "2.png", colour(9))
    mixed = load_image_folder(tmp_path, SIZE).images
    assert mixed.shape == (3, *SIZE, 3)
    assert (mixed[0] == 7).all()
    assert np.array_equal(mixed[2], colour(9))


def test_every_image_that_cannot_be_used_is_named_at_once(folder: Path) -> None:
    save(folder / "tall.png", colour(1, (8, 4)))
    save(folder / "b" / "large.png", colour(1, (8, 16)))
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.tif").write_bytes(b"")
    save(folder / "deep.png", np.full(SIZE, 1000, np.uint16))
    write_labels(folder, [["a.png", 0]])
    with pytest.raises(StyleGAN2Error) as caught:
        load_image_folder(folder, SIZE)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{folder} cannot be trained on:"
    expected = {
        "b/large.png: got 8×16 (height × width), expected 4×8": "--resize",
        "deep.png: more than 8 bits": "convert it",
        "empty.tif: not a readable image": "",
        "tall.png: got 8×4 (height × width), expected 4×8": "--resize",
        "text.jpg: not a readable image": "",
        "dataset.json: no label for b/0.png, b/large.png": "(7 in all)",
    }
    assert len(lines) == 1 + len(expected)
    for line, (start, end) in zip(lines[1:], expected.items(), strict=True):
        assert line.startswith(f"  - {folder}/{start}")
        assert end in line


def test_of_many_problems_ten_are_shown(tmp_path: Path) -> None:
    for index in range(13):
        save(tmp_path / f"{index:02}.png", grey(0, (2, 2)))
    with pytest.raises(StyleGAN2Error, match="and 3 more") as caught:
        load_image_folder(tmp_path, SIZE)
    assert str(caught.value).count("expected 4×8") == 10


@pytest.mark.parametrize(
    ("name", "mode", "dtype"),
    [("a.png", "I;16", np.uint16), ("a.tif", "I", np.int32), ("a.tif", "F", np.float32)],
)
def test_deep_grey_images_are_refused(name: str, mode: str, dtype: Any, tmp_path: Path) -> None:
    path = save(tmp_path / name, np.ones(SIZE, dtype))
    with Image.open(path) as file:
        assert file.mode == mode
    with pytest.raises(StyleGAN2Error, match="more than 8 bits a channel"):
        load_image_folder(tmp_path, SIZE)


def test_deep_colour_images_are_refused_although_pillow_calls_them_rgb(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "a.png"), np.full((*SIZE, 3), 1000, np.uint16))
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "RGB"
    with pytest.raises(StyleGAN2Error, match="more than 8 bits a channel"):
        load_image_folder(tmp_path, SIZE)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damage
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "webp"])
def test_a_damaged_file_is_an_error_that_names_it_or_still_an_image(suffix: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    whole = save(tmp_path / f"a.{suffix}", noise).read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randrange(4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / f"a.{suffix}").write_bytes(damaged)
        try:
            images = load_image_folder(tmp_path, SIZE).images
        except StyleGAN2Error as error:
            assert f"a.{suffix}: " in str(error)
        else:
            assert images.shape[:3] == (1, *SIZE)


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StyleGAN2Error, match="there is no folder"):
        load_image_folder(tmp_path / "absent", SIZE)
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(StyleGAN2Error, match=r"holds no images; expected files ending in \.png"):
        load_image_folder(tmp_path, SIZE)


def test_batches_take_any_size(folder: Path) -> None:
    save(folder / "b" / "1.png", grey(3, (2, 5)))
    shapes = [batch.shape for batch in image_batches(folder)]
    assert shapes == [(1, 4, 8, 3), (1, 4, 8, 3), (1, 2, 5, 1), (1, 4, 8, 3)]


# ----------------------------------------------------------------------------------------------------------
# Resizing
# ----------------------------------------------------------------------------------------------------------


def test_resizing_cuts_off_equally_at_both_ends(tmp_path: Path) -> None:
    """8 × 32 becomes 4 × 8: the 16 columns in the middle are halved."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 32)).astype(np.uint8)
    save(tmp_path / "wide.png", picture)
    save(tmp_path / "tall.png", np.ascontiguousarray(picture.T))  # 32 × 8: 4 rows in the middle, not scaled
    tall, wide = load_image_folder(tmp_path, SIZE, resize=True).images[..., 0]
    halved = np.asarray(Image.fromarray(picture).resize((16, 4), Image.Resampling.LANCZOS))
    assert np.array_equal(wide, halved[:, 4:12])
    assert np.array_equal(tall, picture.T[14:18])


def test_images_of_the_right_size_are_not_touched_by_resizing(folder: Path) -> None:
    before = load_image_folder(folder, SIZE).images
    assert np.array_equal(load_image_folder(folder, SIZE, resize=True).images, before)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 253))
def test_resizing_gives_the_size_and_keeps_flat_colour(height: int, width: int, value: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        save(Path(name) / "a.png", colour(value, (height, width)))
        images = load_image_folder(Path(name), SIZE, resize=True).images
    assert np.array_equal(images, colour(value)[None])


# ----------------------------------------------------------------------------------------------------------
# Labels
# ----------------------------------------------------------------------------------------------------------


def test_classes_become_one_hot_in_the_order_of_the_images(folder: Path) -> None:
    write_labels(folder, [["c.PNG", 3], ["a.png", 0], ["other.png", 7], ["b/0.png", 1]])
    labels = load_image_folder(folder, SIZE).labels
    assert labels is not None
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]


def test_vectors_are_taken_as_they_are(folder: Path) -> None:
    write_labels(folder, [["a.png", [0.5, -1]], ["b/0.png", [2, 3.25]], ["c.PNG", [0, 0]]])
    labels = load_image_folder(folder, SIZE).labels
    assert labels is not None
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0.5, -1], [2, 3.25], [0, 0]]


def test_null_stands_for_no_labels(folder: Path) -> None:
    write_labels(folder, None)
    assert load_image_folder(folder, SIZE).labels is None


def test_missing_and_double_labels_are_named_together(folder: Path) -> None:
    write_labels(folder, [["a.png", 0], ["c.PNG", 1], ["c.PNG", 0]])
    with pytest.raises(
        StyleGAN2Error, match=r"no label for b/0\.png \(1 in all\).*more than one label for c\.PNG"
    ):
        load_image_folder(folder, SIZE)


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, [2]],
        [0, 1, -1],
        [0, 1, True],
        [0, 1, 1.0],
        [0, 1, None],
        [0, 1, 10**30],
        ["0", "1", "2"],
        [[1], [2], [3, 4]],
        [[], [], []],
        [[1], [2], ["3"]],
        [[1], [2], [float("nan")]],
        [[1], [2], [1e300]],
        [[True], [False], [True]],
    ],
)
def test_labels_must_be_classes_or_equally_long_vectors(labels: list[Any], folder: Path) -> None:
    write_labels(folder, list(zip(["a.png", "b/0.png", "c.PNG"], labels, strict=True)))
    with pytest.raises(
        StyleGAN2Error, match=r"dataset\.json: expected for every image a class .* or .* a list"
    ):
        load_image_folder(folder, SIZE)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "{}", '{"labels": 3}', '{"labels": ["a.png"]}', '{"labels": [[["a.png"], 0]]}', "\xff"),
        pytest.param('{"labels": ' + 200_000 * "[", id="deep"),
    ],
)
def test_malformed_labels_say_what_is_expected(text: str, folder: Path) -> None:
    (folder / LABELS).write_bytes(text.encode("latin1"))
    with pytest.raises(
        StyleGAN2Error, match=r'dataset\.json: .*expected \{"labels": \[\["image\.png", 0\], …\]\}'
    ):
        load_image_folder(folder, SIZE)


@pytest.mark.parametrize("is_packed", [False, True])
def test_labels_below_the_top_are_named_and_not_passed_over(is_packed: bool, tmp_path: Path) -> None:
    data = tmp_path / "data"
    save(data / "fundus" / "a.png", colour(1))
    write_labels(data / "fundus", [["a.png", 0]])
    with pytest.raises(StyleGAN2Error, match=r"found fundus/dataset\.json \(1 in all\); .* at the top, with"):
        load_image_folder(packed(data) if is_packed else data, SIZE)
    write_labels(data, None)  # there are none, as the message says
    assert load_image_folder(packed(data) if is_packed else data, SIZE).labels is None
    write_labels(data, [["fundus/a.png", 0]])
    assert load_image_folder(packed(data) if is_packed else data, SIZE).labels is not None


# ----------------------------------------------------------------------------------------------------------
# Kinds of files
# ----------------------------------------------------------------------------------------------------------


def test_a_postscript_file_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is named."""
    programs, started, data = tmp_path / "bin", tmp_path / "started", tmp_path / "data"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho >> '{started}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not searched for yet
    data.mkdir()
    (data / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 4\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(StyleGAN2Error, match=r"a\.png: not a readable image, of no kind that is known"):
        load_image_folder(data, SIZE)
    assert not started.exists()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_can_be_read(suffix: str, tmp_path: Path) -> None:
    save(tmp_path / f"a{suffix}", colour(9))
    assert load_image_folder(tmp_path, SIZE).images.shape == (1, *SIZE, 3)


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    """As cameras write them, with a preview; Pillow has another name for this kind."""
    first, second = Image.fromarray(colour(9)), Image.fromarray(colour(200))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert load_image_folder(tmp_path, SIZE).images.mean() < 30


# ----------------------------------------------------------------------------------------------------------
# Transparency and orientation
# ----------------------------------------------------------------------------------------------------------


def palette(alpha: int | bytes) -> tuple[Image.Image, dict[str, Any]]:
    image = Image.fromarray(colour(9)).quantize(4)
    return image, {"transparency": alpha}


def transparent_images() -> list[tuple[str, Image.Image, dict[str, Any]]]:
    half = np.dstack([colour(9), np.full(SIZE, 128, np.uint8)])
    grey_half = np.dstack([grey(9), grey(0)])
    return [
        ("rgba.png", Image.fromarray(half), {}),
        ("rgba.webp", Image.fromarray(half), {"lossless": True}),
        ("la.png", Image.fromarray(grey_half), {}),
        ("p.png", *palette(0)),
        ("bytes.png", *palette(bytes([7, 7, 7, 7]))),
        ("rgb.png", Image.fromarray(colour(9)), {"transparency": (9, 10, 11)}),
        ("l.png", Image.fromarray(grey(9)), {"transparency": 9}),
    ]


def test_transparent_images_are_refused(tmp_path: Path) -> None:
    pictures = transparent_images()
    for name, image, options in pictures:
        image.save(tmp_path / name, **options)
    with pytest.raises(StyleGAN2Error) as caught:
        load_image_folder(tmp_path, SIZE)
    for name, _, _ in pictures:
        assert f"{tmp_path / name}: got transparency, expected none" in str(caught.value)
    with pytest.raises(StyleGAN2Error, match="got transparency"):
        list(image_batches(tmp_path))


def test_an_alpha_that_is_opaque_everywhere_is_dropped(tmp_path: Path) -> None:
    opaque = np.full(SIZE, 255, np.uint8)
    save(tmp_path / "a.png", np.dstack([colour(9), opaque]))
    image, options = palette(bytes([255] * 4))
    image.save(tmp_path / "b.png", **options)
    Image.fromarray(colour(9)).save(tmp_path / "c.png", transparency=(0, 0, 0))  # occurs nowhere
    images = load_image_folder(tmp_path, SIZE).images
    assert np.array_equal(images, np.stack([colour(9)] * 3))
    for path in tmp_path.iterdir():
        path.unlink()
    save(tmp_path / "a.png", np.dstack([grey(9), opaque]))
    assert np.array_equal(load_image_folder(tmp_path, SIZE).images, np.full((1, *SIZE, 1), 9))


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_an_orientation_is_applied(suffix: str, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    Image.fromarray(stored).save(tmp_path / f"a.{suffix}", exif=exif, lossless=True)
    assert np.array_equal(load_image_folder(tmp_path, SIZE[::-1]).images[0], np.rot90(stored, -1))
    with pytest.raises(StyleGAN2Error, match=r"got 8×4 \(height × width\), expected 4×8"):
        load_image_folder(tmp_path, SIZE)


# ----------------------------------------------------------------------------------------------------------
# ZIP files
# ----------------------------------------------------------------------------------------------------------


def packed(folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Pack a folder into a ZIP file beside it, in the reverse order of its paths."""
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.mkdir("b")
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_gives_what_the_folder_gives(compression: int, folder: Path) -> None:
    save(folder / "b.png", colour(3))  # after b/0.png as a path, before it as text
    labels = [["c.PNG", 2], ["a.png", 0], ["b/0.png", 1], ["b.png", 1]]
    write_labels(folder, labels)
    expected = load_image_folder(folder, SIZE)
    archive = packed(folder, compression)
    before = sorted(folder.parent.rglob("*"))
    found = load_image_folder(archive, SIZE)
    assert np.array_equal(found.images, expected.images)
    assert found.labels is not None and expected.labels is not None
    assert np.array_equal(found.labels, expected.labels)
    assert np.array_equal(np.concatenate(list(image_batches(archive))), expected.images)
    assert sorted(folder.parent.rglob("*")) == before  # nothing is unpacked


def test_everything_wrong_in_a_zip_file_is_named_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    save(folder / "large.png", colour(1, (8, 16)))
    save(folder / "a.png", colour(1))
    (folder / "text.jpg").write_text("not an image")
    write_labels(folder, [["a.png", 0]])
    archive = packed(folder)
    with pytest.raises(StyleGAN2Error) as caught:
        load_image_folder(archive, SIZE)
    for part in (
        f"{archive} cannot be trained on:",
        f"  - {archive}/large.png: got 8×16",
        f"  - {archive}/text.jpg: not a readable image",
        f"  - {archive}/dataset.json: no label for large.png, text.jpg (2 in all)",
    ):
        assert part in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_names_that_lead_elsewhere_lead_nowhere(tmp_path: Path) -> None:
    """They are names of labels and messages; and what macOS packs beside the images is no image."""
    picture = save(tmp_path / "a.png", colour(4)).read_bytes()
    path = tmp_path / "deep" / "er" / "data.zip"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../b.png", picture)
        archive.writestr("/c.png", picture)
        archive.writestr("__MACOSX/._c.png", b"no image")
        archive.writestr("dataset.json", json.dumps({"labels": [["../../b.png", 1], ["/c.png", 0]]}))
    before = sorted(tmp_path.rglob("*"))
    loaded = load_image_folder(path, SIZE)
    assert loaded.labels is not None and len(loaded.images) == 2
    assert sorted(loaded.labels[:, 0].tolist()) == [0, 1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unusable_zip_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = save(tmp_path / "a.png", colour(4)).read_bytes()
    path = tmp_path / "data.zip"

    def refused(message: str) -> None:
        with pytest.raises(StyleGAN2Error, match=message):
            load_image_folder(path, SIZE)

    path.write_bytes(picture)
    refused("not a usable ZIP file")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no image")
    refused(r"data\.zip holds no images")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", picture)
        archive.writestr("a.png", picture)
    refused(r"more than one file of the name a\.png")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", picture)
    content = bytearray(path.read_bytes())
    content[60] ^= 1  # in the image: the checksum is that of the whole one
    path.write_bytes(content)
    refused(r"data\.zip/a\.png: cannot be read from the ZIP file \(Bad CRC")
    monkeypatch.setattr(image_folder, "MAX_MEMBER_BYTES", 10)
    refused(rf"has {len(picture)} bytes, expected at most 10")


@pytest.mark.parametrize(("compression", "name"), [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")])
def test_compressions_that_are_unpacked_in_one_go_are_refused(
    compression: int, name: str, folder: Path
) -> None:
    write_labels(folder, [["a.png", 0], ["b/0.png", 0], ["c.PNG", 0]])
    with pytest.raises(StyleGAN2Error) as caught:
        load_image_folder(packed(folder, compression), SIZE)
    for member in ("a.png", "b/0.png", "c.PNG", LABELS):
        assert f".zip/{member}: is compressed with {name}, expected Deflate or none" in str(caught.value)


@pytest.mark.parametrize("checksum_fits", [False, True])
def test_of_a_file_no_more_is_unpacked_than_its_header_promises(
    checksum_fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, limit = tmp_path / "data.zip", 1000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**25))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # in the directory, with checksum and size at 16 and 24
    content[entry + 24 : entry + 28] = limit.to_bytes(4, "little")
    if checksum_fits:
        content[entry + 16 : entry + 20] = zlib.crc32(bytes(limit)).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr(image_folder, "MAX_MEMBER_BYTES", limit)
    tracemalloc.start()
    try:
        with pytest.raises(StyleGAN2Error, match="not a readable image" if checksum_fits else "Bad CRC"):
            load_image_folder(path, SIZE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**22


def test_damaged_zip_files_are_errors_of_ours_if_any(folder: Path) -> None:
    """Some damage goes unnoticed, in a date for example; whatever is noticed is named."""
    whole = packed(folder, zipfile.ZIP_DEFLATED).read_bytes()
    path = folder.with_name("damaged.zip")
    rng, refused = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole[: rng.randrange(1, len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_image_folder(path, SIZE)
        except StyleGAN2Error:
            refused += 1
    assert refused > 30
