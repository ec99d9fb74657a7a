"""Whether the vessels of a mask hang together, and which ones are found: figures on centrelines.

A pixel metric hardly notices a gap of one pixel in a vessel, or that every third capillary is missing. Here
masks are thinned to centrelines one pixel wide (`skimage.morphology.skeletonize`, Zhang & Suen 1984), and
connected parts are counted with 8 neighbours.

The calibre of a vessel at a pixel of its centreline is twice the Euclidean distance from that pixel to the
nearest background pixel (so beside a wall the distance is 1), in pixels of the image as evaluated: along rows
and columns a vessel of one or two pixels measures 2, one of three or four pixels 4. *Thin* is a calibre of at
most 3, 55% of all centreline in DRIVE's test set at native size. The limit is in pixels at any image size, so
figures of images of other sizes do not compare.

Everything is counts, so images can be pooled. A quotient without pixels is 0, never NaN: a mask without any
vessel has topology precision, sensitivity and clDice 0.
"""

from dataclasses import astuple, dataclass, fields
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

from pipeline.metrics.boundary import BoundaryDistance, boundary, boundary_distance, distance_to
from pipeline.metrics.rates import Figures, harmonic_mean, ratio

THIN_UP_TO = 3.0
"""Largest calibre of a thin vessel, in pixels."""


@dataclass(frozen=True)
class TopologyCounts:
    """What the figures of one mask follow from.

    Attributes:
        marked_centreline: pixels of the mask's centreline.
        marked_centreline_hits: those of them on a vessel of the truth.
        thin_centreline: pixels of the truth's centreline on thin vessels.
        thin_found: those of them inside the mask.
        thick_centreline: pixels of the truth's centreline on all other vessels.
        thick_found: those of them inside the mask.
        components: connected parts of the mask.
        components_truth: connected parts of the truth.
    """

    marked_centreline: int
    marked_centreline_hits: int
    thin_centreline: int
    thin_found: int
    thick_centreline: int
    thick_found: int
    components: int
    components_truth: int

    def as_array(self) -> NDArray[np.int64]:
        """Give the counts as int64 [8] in the order of the fields."""
        return np.array(astuple(self), np.int64)


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(TopologyCounts))


@dataclass(frozen=True, eq=False)
class TruthShape:
    """What is needed of a truth to judge masks, made once for all of them; a few hundred kilobytes.

    Attributes:
        box: rows and columns of the bounding box of the region, outside of which nothing counts.
        region: bool [h, w], the region inside the box.
        vessels: bool [h, w], the truth inside the region.
        centreline: int64 [n], flat indices into the box.
        thin: bool [n], whether the vessel there is thin.
        edge: int64 [m], flat indices of the boundary.
        components: connected parts.
    """

    box: tuple[slice, slice]
    region: NDArray[np.bool_]
    vessels: NDArray[np.bool_]
    centreline: NDArray[np.int64]
    thin: NDArray[np.bool_]
    edge: NDArray[np.int64]
    components: int

    @classmethod
    def of(cls, truth: NDArray[np.bool_], region: NDArray[np.bool_]) -> Self:
        """Prepare a truth; vessels outside the region are taken away before anything is measured.

        Args:
            truth: bool [H, W], vessels.
            region: bool [H, W], the pixels that count.

        Raises:
            ValueError: when the shapes or types do not fit, or the region is empty.
        """
        if truth.dtype != np.bool_ or region.dtype != np.bool_ or truth.shape != region.shape:
            raise ValueError(
                f"expected two bool [H, W]; got {truth.dtype} {truth.shape} and {region.dtype} {region.shape}"
            )
        if not region.any():
            raise ValueError("the region holds no pixel")
        box = bounding_box(region)
        inside = region[box]
        vessels = np.ascontiguousarray(truth[box] & inside)
        line = np.flatnonzero(skeletonize(vessels))
        calibre = calibres(vessels).ravel()[line]
        edge = np.flatnonzero(boundary(vessels))
        return cls(box, inside, vessels, line, calibre <= THIN_UP_TO, edge, count_components(vessels))

    def judge(self, marked: NDArray[np.bool_]) -> tuple[TopologyCounts, BoundaryDistance]:
        """Compare a mask with the truth inside the region.

        Args:
            marked: bool [H, W], of the size of the truth; pixels outside the region are ignored.
        """
        mask = np.ascontiguousarray(marked[self.box] & self.region)
        line = skeletonize(mask).astype(np.bool_, copy=False)
        found = mask.ravel()[self.centreline]
        counts = TopologyCounts(
            marked_centreline=_count(line),
            marked_centreline_hits=_count(line & self.vessels),
            thin_centreline=_count(self.thin),
            thin_found=_count(found & self.thin),
            thick_centreline=_count(~self.thin),
            thick_found=_count(found & ~self.thin),
            components=count_components(mask),
            components_truth=self.components,
        )
        edge = np.zeros(mask.shape, np.bool_)
        edge.ravel()[self.edge] = True
        height, width = mask.shape
        farthest = float(np.hypot(height - 1, width - 1))
        return counts, boundary_distance(boundary(mask), edge, farthest)


def calibres(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Twice the distance to the background, which goes on beyond the picture: float64 [H, W]."""
    return 2 * distance_to(~np.pad(mask, 1))[1:-1, 1:-1]


def count_components(mask: NDArray[np.bool_]) -> int:
    """Count connected parts; diagonal neighbours are connected."""
    labels, _ = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return int(labels) - 1  # the background has a label of its own


def bounding_box(region: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns between the first and the last pixel of a region that is not empty."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


# ----------------------------------------------------------------------------------------------------------
# clDice (Shit et al. 2021, "clDice – a Novel Topology-Preserving Loss Function for Tubular Structure
# Segmentation", arXiv 2003.07311, eq. 1–2), with S the centrelines and V the masks of prediction P, truth L:
#   Tprec = |S_P ∩ V_L| / |S_P|,  Tsens = |S_L ∩ V_P| / |S_L|,  clDice = 2 Tprec Tsens / (Tprec + Tsens)
def topology_precision(counts: NDArray[np.number]) -> Figures:
    """Share of the mask's centreline on vessels of the truth.

    Args:
        counts: [..., 8], columns as in `TopologyCounts`.
    """
    return ratio(counts[..., 1], counts[..., 0])


def topology_sensitivity(counts: NDArray[np.number]) -> Figures:
    """Share of the truth's centreline inside the mask; counts as in `topology_precision`."""
    return ratio(counts[..., 3] + counts[..., 5], counts[..., 2] + counts[..., 4])


def cldice(counts: NDArray[np.number]) -> Figures:
    """Harmonic mean of topology precision and sensitivity; counts as in `topology_precision`."""
    return harmonic_mean(topology_precision(counts), topology_sensitivity(counts))


def thin_recall(counts: NDArray[np.number]) -> Figures:
    """Share of the truth's thin centreline inside the mask; counts as in `topology_precision`."""
    return ratio(counts[..., 3], counts[..., 2])


def thick_recall(counts: NDArray[np.number]) -> Figures:
    """Share of the truth's thick centreline inside the mask; counts as in `topology_precision`."""
    return ratio(counts[..., 5], counts[..., 4])


# ----------------------------------------------------------------------------------------------------------
# Error of the zeroth Betti number, |β0(P) − β0(L)|: of the numbers of parts, wherever they lie.
def beta0_error(counts: NDArray[np.number]) -> Figures:
    """Difference in the number of connected parts; counts of one image each, as in `topology_precision`."""
    return np.abs(np.asarray(counts[..., 6], np.float64) - counts[..., 7])


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))
