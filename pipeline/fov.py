"""Estimating the field of view of a fundus photograph that came without a mask."""

import cv2
import numpy as np

from pipeline.errors import UserError
from pipeline.images import Array8, ArrayBool

_CORNER = 0.02  # side of the corner squares, as a fraction of the image's shorter side
_DARK = 0.25  # a corner below this fraction of the centre's brightness is surround, not retina
_THRESHOLD = 0.12  # the retina starts this far between the surround's brightness and the retina's
_LEAST_CONTRAST = 16  # grey levels between surround and retina, below which nothing can be told


def estimate_fov(image: Array8) -> ArrayBool:
    """Find the lit disc: threshold the brightest channel, keep the largest region, take its convex hull.

    The threshold lies between the median brightness of the corners and that of the image's middle. An image
    without dark corners (OCTA, a crop within the retina) is field of view as a whole.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        bool [H, W].

    Raises:
        UserError: the corners are dark and there is no disc to be found: the middle is hardly brighter, or
            all that is lit are specks and stripes.
    """
    brightness = image.max(axis=2)
    height, width = brightness.shape
    side = max(1, round(_CORNER * min(height, width)))
    ends = (slice(side), slice(-side, None))
    surround = float(np.median([brightness[y, x] for y in ends for x in ends]))
    middle = brightness[height // 4 : height - height // 4, width // 4 : width - width // 4]
    retina = float(np.median(middle))
    if retina - surround < _LEAST_CONTRAST and surround < _LEAST_CONTRAST:
        raise UserError(
            f"no field of view to be found: corners of grey level {surround:.0f}, middle of {retina:.0f}; "
            "the image seems black; supply a field-of-view mask or take the image out"
        )
    if surround > _DARK * retina:
        return np.ones((height, width), dtype=np.bool_)

    # An opening as wide as a vessel cuts off glow, captions and noise that touch the disc.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * (side // 2) + 1,) * 2)
    lit = (brightness > surround + _THRESHOLD * (retina - surround)).astype(np.uint8)
    lit = cv2.morphologyEx(lit, cv2.MORPH_OPEN, kernel)
    if not lit.any():
        raise UserError(
            f"no field of view to be found: the corners are dark, and nothing lit is wider than {side} "
            "pixels; supply a field-of-view mask or take the image out"
        )
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(lit, connectivity=4)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    points = cv2.findNonZero((regions == largest).astype(np.uint8))
    hull = np.zeros((height, width), dtype=np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull.astype(np.bool_)
