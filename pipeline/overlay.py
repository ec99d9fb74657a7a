"""Pictures that lay a segmentation over its photograph.

Colours follow the palette of Okabe & Ito (2008, "Color Universal Design"), made for all common kinds of
colour vision; they also differ in brightness, so that a gray print still tells them apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LegendEntry:
    """What a colour of the comparison means."""

    label: str
    colour: Colour

    @property
    def css(self) -> str:
        """The colour as CSS, `#rrggbb`."""
        return "#{:02x}{:02x}{:02x}".format(*self.colour)


HIT = LegendEntry("hit (marked vessel)", (205, 205, 205))
MISS = LegendEntry("miss (vessel not marked)", (230, 159, 0))
FALSE_ALARM = LegendEntry("false alarm (marked background)", (0, 130, 220))
LEGEND = (HIT, MISS, FALSE_ALARM)
PREDICTION_COLOUR: Colour = (86, 180, 233)

_DIMMED = 0.45
_OPACITY = 0.75


def comparison_overlay(
    image: NDArray[np.uint8], marked: NDArray[np.bool_], truth: NDArray[np.bool_], fov: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Draw hits, misses and false alarms over the dimmed gray photograph.

    Args:
        image: uint8 [H, W, 3] photograph.
        marked: bool [H, W], predicted vessels.
        truth: bool [H, W], labelled vessels.
        fov: bool [H, W]; outside, nothing is coloured.

    Returns:
        uint8 [H, W, 3]; the colours are those of `LEGEND`.
    """
    _require_same_size(image, marked, truth, fov)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) * _DIMMED
    canvas = np.repeat(gray.round().astype(np.uint8)[:, :, None], 3, axis=2)
    canvas[marked & truth & fov] = HIT.colour
    canvas[~marked & truth & fov] = MISS.colour
    canvas[marked & ~truth & fov] = FALSE_ALARM.colour
    return canvas


def prediction_overlay(image: NDArray[np.uint8], marked: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Tint the predicted vessels on the photograph in its own colours.

    Args:
        image: uint8 [H, W, 3].
        marked: bool [H, W], predicted vessels.

    Returns:
        uint8 [H, W, 3].
    """
    _require_same_size(image, marked)
    canvas = image.copy()
    tint = np.array(PREDICTION_COLOUR, np.float32)
    blended = image[marked].astype(np.float32) * (1 - _OPACITY) + tint * _OPACITY
    canvas[marked] = blended.round().astype(np.uint8)
    return canvas


def with_legend(overlay: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Append a strip below the picture that names the colours of `LEGEND`.

    Args:
        overlay: uint8 [H, W, 3], from `comparison_overlay`.

    Returns:
        uint8 [H + strip, W, 3]; the text shrinks with narrow pictures, down to 8 px.
    """
    width = overlay.shape[1]
    size = int(np.clip(width / 36, 8, 24))
    line = int(size * 1.6)
    strip = Image.new("RGB", (width, line * len(LEGEND) + line // 2), (24, 24, 24))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size)
    for row, entry in enumerate(LEGEND):
        top = line // 4 + row * line
        draw.rectangle(
            (line // 3, top + size // 4, line // 3 + size, top + size // 4 + size), fill=entry.colour
        )
        draw.text((line // 3 + size * 1.6, top), entry.label, fill=(240, 240, 240), font=font)
    return np.concatenate([overlay, np.asarray(strip)])


def _require_same_size(image: NDArray[np.uint8], *masks: NDArray[np.bool_]) -> None:
    sizes = [mask.shape for mask in masks]
    if any(size != image.shape[:2] for size in sizes):
        raise ValueError(f"image and masks differ in size: image {image.shape}, masks {sizes}")
