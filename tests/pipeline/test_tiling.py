"""Tiles: they cover every pixel once, on the networks' grid, and their edges are never used."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.models.unet import RECEPTIVE_RADIUS
from pipeline.tiling import BLEND, HALO, SMALLEST_TILE, blend_tiles, check_tile, is_tiled, spans, tile_count

tiles = st.integers(SMALLEST_TILE // 8, 250).map(lambda eighths: 8 * eighths)


@given(st.integers(1, 12_000), tiles)
def test_weights_add_up_to_one_in_every_pixel(length: int, tile: int) -> None:
    divided = spans(length, tile)
    total = np.zeros(divided[-1].stop)
    for span in divided:
        assert span.start % 8 == 0 and (span.stop - span.start) % 8 == 0 and span.stop - span.start <= tile
        assert span.weights.min() >= 0
        total[span.start : span.stop] += span.weights
    assert np.allclose(total, 1, atol=1e-5)
    assert divided[0].start == 0 and length <= divided[-1].stop < length + 8


@given(st.integers(1, 12_000), tiles)
def test_logits_without_their_context_have_no_weight(length: int, tile: int) -> None:
    divided = spans(length, tile)
    assert HALO >= RECEPTIVE_RADIUS
    for index, span in enumerate(divided):
        assert index == 0 or not span.weights[:HALO].any()
        assert index == len(divided) - 1 or not span.weights[-HALO:].any()
        assert np.abs(np.diff(span.weights)).max(initial=0) <= 1 / BLEND + 1e-6  # no seam


def test_a_long_axis_needs_as_few_tiles_as_can_be() -> None:
    assert len(spans(1536, 1536)) == 1
    assert len(spans(1537, 1536)) == 2
    assert tile_count(4000, 4000, 1536) == 9
    assert tile_count(1536, 1536, 1536) == 1
    assert tile_count(9000, 9000, None) == 1
    assert is_tiled(1536, 1537, 1536) and not is_tiled(3000, 700, 1536)


@pytest.mark.parametrize("tile", [-8, 0, SMALLEST_TILE - 8, SMALLEST_TILE + 4])
def test_impossible_tiles_are_refused(tile: int) -> None:
    with pytest.raises(UserError, match=f"tile: got {tile} pixels; expected a multiple of 8"):
        check_tile(tile)


@pytest.mark.parametrize("size", [(700, 500), (901, 417), (30, 1200)])
def test_what_is_local_comes_back_unchanged(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)

    def red(piece: np.ndarray) -> np.ndarray:
        assert piece.shape[0] % 8 == 0 and piece.shape[1] % 8 == 0
        assert piece.shape[0] * piece.shape[1] <= 424**2
        return piece[..., 0].astype(np.float32)

    assert np.allclose(blend_tiles(red, image, 424), image[..., 0], atol=1e-3)


def test_context_within_the_radius_is_enough() -> None:
    """A box as wide as the receptive field: its sums in tiles are those of the whole image."""
    import cv2

    image = np.random.default_rng(1).integers(0, 256, (640, 900, 3), dtype=np.uint8)
    width = 2 * RECEPTIVE_RADIUS + 1

    def box(piece: np.ndarray) -> np.ndarray:
        mean = cv2.blur(piece[..., 1].astype(np.float32), (width, width), borderType=cv2.BORDER_CONSTANT)
        return np.asarray(mean, np.float32)

    padded = np.zeros((640, 904, 3), np.uint8)
    padded[:, :900] = image
    assert np.allclose(blend_tiles(box, image, 424), box(padded)[:, :900], atol=1e-2)


_PEAK = """
import sys
import numpy as np, torch
torch.set_num_threads(1)
from pipeline.frames import Statistics
from pipeline.inference import SegmenterPredictor
from pipeline.model_folder import ModelConfig
from pipeline.models.registry import Architecture, build_model

architecture = Architecture(base_width=8)
config = ModelConfig(
    architecture=architecture, resolution="native", threshold=0.5, params={}, versions={}, git_commit=None,
    statistics=Statistics(mean=(0, 0, 0), std=(1, 1, 1)), data_sha256="0",
)
predictor = SegmenterPredictor(build_model(architecture), config)
image = np.zeros((int(sys.argv[1]), int(sys.argv[1]), 3), np.uint8)
tile = int(sys.argv[2]) or None
predictor.predict(image[:64, :64])
def peak():  # ru_maxrss would start from the peak of the process that started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before = peak()
predictor.predict(image, tile=tile)
print((peak() - before) / 1024)  # MB
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_a_tile_not_of_the_image() -> None:
    peaks = {}
    for side, tile in ((416, 416), (800, 416), (800, 0)):
        command = [sys.executable, "-c", _PEAK, str(side), str(tile)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=170, check=True)
        peaks[side, tile] = float(result.stdout)
    frame = 800**2 * 4 * 5 / 2**20  # logits, probabilities and their temporaries: linear in pixels, small
    assert peaks[800, 416] < 1.5 * peaks[416, 416] + frame
    assert peaks[800, 416] < 0.6 * peaks[800, 0]
