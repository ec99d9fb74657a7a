from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stylegan2.errors import StyleGAN2Error
from stylegan2.interpolation import closed_spline, interpolate_ws, write_video
from stylegan2.networks.generator import Generator
from stylegan2.sampling import seeds_to_ws
from tests.stylegan2.small_networks import small_generator


@pytest.fixture
def generator() -> Generator:
    return small_generator()


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 1000))
def test_the_walk_visits_every_key_in_order(keys: int, frames: int, seed: int) -> None:
    points = np.random.RandomState(seed).randn(keys, 3)
    walk = closed_spline(points, frames)
    assert walk.shape == (keys * frames, 3)
    assert np.allclose(walk[::frames], points, atol=1e-12)


def test_the_walk_is_smooth_where_it_closes() -> None:
    """Third differences stay of order h³ everywhere; a jump in speed or acceleration would stand out."""
    frames = 100
    walk = closed_spline(np.random.RandomState(0).randn(5, 4), frames)
    closed = np.concatenate([walk, walk[:4]])
    third = np.abs(np.diff(closed, 3, axis=0)).max(axis=1) * frames**3
    seam = third[-6:]
    assert seam.max() <= third[:-6].max() * 1.01
    assert third.max() < 200


def test_keys_on_a_circle_give_nearly_the_circle() -> None:
    angles = np.arange(8) * np.pi / 4
    walk = closed_spline(np.stack([np.cos(angles), np.sin(angles)], axis=1), 10)
    assert np.abs(np.linalg.norm(walk, axis=1) - 1).max() < 0.002


def test_turning_the_keys_turns_the_walk() -> None:
    points = np.random.RandomState(1).randn(4, 2)
    walk, turned = closed_spline(points, 5), closed_spline(np.roll(points, -1, axis=0), 5)
    assert np.allclose(np.roll(walk, -5, axis=0), turned)


@pytest.mark.parametrize(("count", "frames"), [(1, 5), (0, 5), (3, 0)])
def test_a_walk_needs_two_keys_and_a_frame(count: int, frames: int) -> None:
    with pytest.raises(StyleGAN2Error, match="expected at least 2"):
        closed_spline(np.zeros((count, 2)), frames)


@pytest.mark.parametrize("space", ["w", "z"])
def test_both_spaces_pass_through_the_seeds(generator: Generator, space: str) -> None:
    ws = interpolate_ws(generator, [3, 5, 3, 9], 6, 0.7, space=space, truncation_cutoff=4)
    assert ws.shape == (24, generator.num_ws, 16)
    expected = seeds_to_ws(generator, [3, 5, 3, 9], 0.7, truncation_cutoff=4)
    assert torch.allclose(ws[::6], expected, atol=1e-5)
    assert not torch.allclose(ws[3], expected[0], atol=1e-2)


def test_spaces_differ_between_the_seeds(generator: Generator) -> None:
    w, z = (interpolate_ws(generator, [3, 5, 9], 4, space=space) for space in ("w", "z"))
    assert (w[2] - z[2]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "x"}, "space: got 'x'"),
        ({"class_index": 1}, "no classes"),
        ({"space": "z", "truncation_cutoff": 99}, "cutoff: got 99"),
        ({"frames_per_segment": 10**6}, "at most 100000 frames"),
    ],
)
def test_wrong_walks_are_named(generator: Generator, options: dict[str, Any], message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        interpolate_ws(generator, [1, 2], **{"frames_per_segment": 3, **options})


def film(count: int, channels: int = 3) -> Iterator[NDArray[np.uint8]]:
    """Frames of one grey level each, rising."""
    for index in range(count):
        yield np.full((16, 24, channels), index * 8, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_holds_every_frame_at_the_mean_speed(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "new" / "walk.gif"
    write_video(path, film(30, channels), 30)
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (30, (24, 16), 0)
        durations = []
        for index in range(30):
            gif.seek(index)
            durations.append(gif.info["duration"])
            assert np.all(np.asarray(gif.convert("L")) == index * 8)
    assert sum(durations) == 1000  # 30 frames at 30 a second, in hundredths of a second
    assert set(durations) == {30, 40}


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_holds_every_frame(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "walk.mp4"
    write_video(path, film(20, channels), 25)
    video = cv2.VideoCapture(str(path))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (20, 25)
    frames = [video.read()[1] for _ in range(20)]
    video.release()
    assert frames[0].shape == (16, 24, 3)
    assert np.abs(np.array([frame.mean() for frame in frames]) - np.arange(20) * 8).max() < 6
    assert [file.name for file in tmp_path.iterdir()] == ["walk.mp4"]


def test_colours_keep_their_order(tmp_path: Path) -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    write_video(tmp_path / "red.mp4", iter([red] * 5), 25)
    write_video(tmp_path / "red.gif", iter([red] * 5), 25)
    video = cv2.VideoCapture(str(tmp_path / "red.mp4"))
    blue, _, red_seen = video.read()[1].mean(axis=(0, 1))
    video.release()
    assert red_seen > 150 and blue < 60
    with Image.open(tmp_path / "red.gif") as gif:
        assert gif.convert("RGB").getpixel((3, 3)) == (200, 0, 0)


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("walk.avi", 25, "ending in .gif or .mp4"),
        ("walk.gif", 60, "at most 50 in a GIF"),
        ("walk.mp4", 0, "fps: got 0"),
        ("walk.gif", float("nan"), "fps: got nan"),
    ],
)
def test_wrong_videos_are_named(tmp_path: Path, name: str, fps: float, message: str) -> None:
    with pytest.raises(StyleGAN2Error, match=message):
        write_video(tmp_path / name, film(3), fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["walk.gif", "walk.mp4"])
def test_nothing_half_written_stays(tmp_path: Path, name: str) -> None:
    def broken() -> Iterator[NDArray[np.uint8]]:
        yield from film(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / name, broken(), 25)
    with pytest.raises(StyleGAN2Error, match="no frames"):
        write_video(tmp_path / name, film(0), 25)
    assert not list(tmp_path.iterdir())


def test_a_missing_encoder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
    with pytest.raises(StyleGAN2Error, match=r"no encoder for MP4 .* \.gif"):
        write_video(tmp_path / "walk.mp4", film(3), 25)
    assert not list(tmp_path.iterdir())
