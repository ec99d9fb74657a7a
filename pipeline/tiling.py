"""Predicting large images in overlapping tiles: the same logits as in one piece, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.frames import Array8, ArrayFloat, padded_length
from pipeline.models.unet import RECEPTIVE_RADIUS, SIZE_MULTIPLE

DEFAULT_TILE = 1024
"""Side of a tile in pixels; images of more than its square are tiled. A tile takes about 0.6 GB."""

BLEND = 32
"""Width in pixels of the strip over which one tile fades into the next."""

HALO = padded_length(RECEPTIVE_RADIUS)
"""Width in pixels of the strip inside a tile's cut edge whose logits lack context and are not used."""

OVERLAP = 2 * HALO + BLEND
SMALLEST_TILE = 2 * OVERLAP
"""Smaller tiles would overlap with more than their next neighbours."""


@dataclass(frozen=True, eq=False)
class Span:
    """What a tile covers of one axis, in pixels of the frame.

    Attributes:
        start, stop: multiples of 8; the last `stop` may lie beyond the frame, where it is padded.
        weights: float32 [stop − start], 0..1: the tile's share in each pixel. Over all spans of the axis they
            add up to 1 in every pixel.
    """

    start: int
    stop: int
    weights: NDArray[np.float32]


def check_tile(tile: int) -> None:
    """Make sure that tiles of this side can cover a frame.

    Raises:
        UserError: it is smaller than what tiles have to overlap, or not divisible by 8.
    """
    if tile < SMALLEST_TILE or tile % SIZE_MULTIPLE:
        raise UserError(
            f"tile: got {tile} pixels; expected a multiple of {SIZE_MULTIPLE} from {SMALLEST_TILE} on (tiles "
            f"overlap by {OVERLAP}), such as {DEFAULT_TILE}"
        )


def spans(length: int, tile: int) -> list[Span]:
    """Divide an axis into overlapping tiles.

    Neighbours share `OVERLAP` pixels or more: a halo of unused logits at either cut edge, and between them a
    strip where one fades linearly into the other. At the frame's own edges nothing is cut: there a tile sees
    the same padding as the whole frame would.

    Args:
        length: of the axis, in pixels.
        tile: see `check_tile`.

    Returns:
        One span where the axis fits into a tile; else several of side `tile`.
    """
    check_tile(tile)
    padded = padded_length(length)
    if padded <= tile:
        return [Span(0, padded, np.ones(padded, np.float32))]
    count = 1 + -(-(padded - tile) // (tile - OVERLAP))
    # Equal steps on the networks' grid; none exceeds tile − OVERLAP, which lies on the grid itself.
    starts = [
        index * (padded - tile) // (count - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE for index in range(count)
    ]
    return [
        Span(start, start + tile, _weights(start, tile, is_first=index == 0, starts=starts))
        for index, start in enumerate(starts)
    ]


def _weights(start: int, tile: int, *, is_first: bool, starts: list[int]) -> NDArray[np.float32]:
    """Rise from 0 to 1 where the tile before fades out, and fall where the next one begins."""
    weights = np.ones(tile, np.float32)
    if not is_first:
        weights *= _ramp(start, tile, start)
    following = [other for other in starts if other > start]
    if following:
        weights *= 1 - _ramp(start, tile, following[0])
    return weights


def _ramp(start: int, tile: int, begin: int) -> NDArray[np.float32]:
    """Rise linearly from 0 to 1 over the blended strip of the tile that begins at `begin`."""
    centres = np.arange(start, start + tile, dtype=np.float32) + np.float32(0.5)
    return ((centres - np.float32(begin + HALO)) / np.float32(BLEND)).clip(0, 1)


def is_tiled(height: int, width: int, tile: int | None) -> bool:
    """Tell whether a frame has more pixels than a tile; never for `None`."""
    return tile is not None and padded_length(height) * padded_length(width) > tile**2


def tile_count(height: int, width: int, tile: int | None) -> int:
    """Count the tiles that a frame is predicted in."""
    if tile is None or not is_tiled(height, width, tile):
        return 1
    return len(spans(height, tile)) * len(spans(width, tile))


def blend_tiles(predict: Callable[[Array8], ArrayFloat], image: Array8, tile: int) -> ArrayFloat:
    """Predict an image tile by tile and blend the results.

    Args:
        predict: maps uint8 [h, w, 3] to logits float32 [h, w]; h and w are multiples of 8.
        image: uint8 [H, W, 3].
        tile: see `check_tile`.

    Returns:
        Logits float32 [H, W]; equal to predict(image) up to rounding for a network whose receptive radius is
        at most `RECEPTIVE_RADIUS` and that normalises nothing over the image.
    """
    height, width = image.shape[:2]
    logits = np.zeros((padded_length(height), padded_length(width)), np.float32)
    for rows, columns in _grid(height, width, tile):
        content = image[rows.start : rows.stop, columns.start : columns.stop]
        piece = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        piece[: content.shape[0], : content.shape[1]] = content
        weighted = predict(piece) * rows.weights[:, None] * columns.weights
        logits[rows.start : rows.stop, columns.start : columns.stop] += weighted
    return logits[:height, :width]


def _grid(height: int, width: int, tile: int) -> Iterator[tuple[Span, Span]]:
    columns = spans(width, tile)
    for row in spans(height, tile):
        for column in columns:
            yield row, column
