"""How far the outlines of two masks lie apart.

The boundary of a mask is every pixel of it with a neighbour (up, down, left, right) outside it; what lies
beyond the picture is outside. Distances are Euclidean, between centres of pixels, in pixels of the image.

Where one mask is empty there is no distance. Then both figures are the diagonal of the box given as
`farthest`: nothing inside it can lie farther away. Two empty masks are at distance 0.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

PERCENTILE = 95

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


@dataclass(frozen=True)
class BoundaryDistance:
    """Symmetric distances between two boundaries, in pixels.

    Attributes:
        mean: mean over the pixels of both boundaries of the distance to the other boundary (average symmetric
            surface distance).
        hausdorff_95: 95th percentile of the distances from one boundary to the other; the larger of the two
            directions (Huttenlocher et al. 1993, rank 95% in place of the maximum).
    """

    mean: float
    hausdorff_95: float


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the pixels of a mask that touch its outside: bool [H, W]."""
    whole = mask.view(np.uint8)
    inner = cv2.erode(whole, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (whole > inner).astype(np.bool_)


# ----------------------------------------------------------------------------------------------------------
# With S(A) the boundary of A and d(a, S) = min over s in S of |a − s|:
#   mean = (Σ_a d(a, S(B)) + Σ_b d(b, S(A))) / (|S(A)| + |S(B)|)
#   hausdorff_95 = max(P95 {d(a, S(B))}, P95 {d(b, S(A))})
def boundary_distance(
    first: NDArray[np.bool_], second: NDArray[np.bool_], farthest: float
) -> BoundaryDistance:
    """Compare two boundaries; the order does not matter.

    Args:
        first: bool [H, W], a boundary, see `boundary`.
        second: the other one, of equal shape.
        farthest: both distances when just one of the two is empty.

    Raises:
        ValueError: when the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"boundaries of different shapes: {first.shape} and {second.shape}")
    empty = (not first.any(), not second.any())
    if any(empty):
        distance = 0.0 if all(empty) else farthest
        return BoundaryDistance(distance, distance)
    there, back = distance_to(second)[first], distance_to(first)[second]
    total = float(there.sum(dtype=np.float64) + back.sum(dtype=np.float64))
    ranks = (float(np.percentile(distances, PERCENTILE)) for distances in (there, back))
    return BoundaryDistance(total / (len(there) + len(back)), max(ranks))


def distance_to(target: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Exact Euclidean distance of every pixel to the nearest one that is set: float64 [H, W]."""
    free = (~target).view(np.uint8)
    single = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # squares of distances are whole numbers: takes away the rounding of float32, which depends on the crop
    return np.sqrt(np.rint(np.square(single, dtype=np.float64)))
