"""From vessel probabilities to a mask: a cut, hysteresis, and the removal of small parts.

A cut alone leaves a mask in many pieces: specks of background that look like a vessel for a few pixels, and
vessels that fade in between. Hysteresis (Canny 1986, "A Computational Approach to Edge Detection") asks a lot
of a part's best pixel and less of the others; what is still too small to be a vessel goes.
"""

from typing import Annotated, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.schema import Strict

Postprocess = Literal["none", "validation"]
"""How a mask is made: by the threshold alone, or also by what `pipeline.binarise_fit` fits on validation."""

Cut = Annotated[float, Field(gt=0, lt=1)]


class Binarisation(Strict):
    """How a mask is made from probabilities.

    Attributes:
        threshold: probability from which on a pixel is marked.
        hysteresis_low: probability from which on a pixel is marked if it is connected to one of `threshold`
            through such pixels; diagonal neighbours are connected. None: no hysteresis.
        min_size: parts of fewer pixels are removed, after hysteresis. Pixels of the image as it is: a size
            that was fitted on images of one resolution means little at another.
    """

    threshold: Cut
    hysteresis_low: Cut | None = None
    min_size: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _low_is_lower(self) -> Self:
        if self.hysteresis_low is not None and self.hysteresis_low > self.threshold:
            raise ValueError(
                f"hysteresis_low {self.hysteresis_low:g} is above threshold {self.threshold:g}; expected at "
                "most the threshold, or null for no hysteresis"
            )
        return self

    @property
    def low(self) -> float:
        """Smallest probability of a marked pixel."""
        return self.threshold if self.hysteresis_low is None else self.hysteresis_low

    @property
    def is_plain(self) -> bool:
        """Whether it is the threshold alone."""
        return self.low == self.threshold and self.min_size <= 1

    def mask(self, probability: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Mark the vessels.

        Args:
            probability: float32 [H, W], 0..1, of the whole image: parts are measured beyond any region too.

        Returns:
            bool [H, W].
        """
        if self.is_plain:
            return probability >= np.float32(self.threshold)
        parts = Parts.of(probability, self.low)
        return parts.select(parts.reach(probability, self.threshold) & (parts.sizes >= self.min_size))


class Parts:
    """Connected parts of the pixels from a probability on; diagonal neighbours are connected.

    Attributes:
        labels: int32 [H, W], 0 for the background, else the number of the part.
        sizes: int64 [parts + 1], pixels of each; that of the background is 0.
    """

    def __init__(self, labels: NDArray[np.int32]) -> None:
        self.labels = labels
        self.sizes = np.bincount(labels.ravel())
        self.sizes[0] = 0

    @classmethod
    def of(cls, probability: NDArray[np.float32], low: float) -> Self:
        """Find the parts of `probability >= low`."""
        # float32 on both sides, as everywhere: 0.7 in double is not the 0.7 of a map
        marked = np.ascontiguousarray(probability >= np.float32(low))
        _, labels = cv2.connectedComponents(marked.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        return cls(np.asarray(labels, np.int32))

    def reach(self, probability: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
        """Tell which parts have a pixel of at least this probability: bool [parts + 1]."""
        found = np.zeros(len(self.sizes), np.bool_)
        found[self.labels[probability >= np.float32(threshold)]] = True
        found[0] = False
        return found

    def count(self, pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Count the pixels of a mask [H, W] that lie in each part: int64 [parts + 1], background 0."""
        counts = np.bincount(self.labels[pixels], minlength=len(self.sizes))
        counts[0] = 0
        return counts.astype(np.int64, copy=False)

    def select(self, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Mark the pixels of the parts wanted, bool [parts + 1]; never the background. Gives bool [H, W]."""
        wanted = wanted.copy()
        wanted[0] = False
        return wanted[self.labels]
