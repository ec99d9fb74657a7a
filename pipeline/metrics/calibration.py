"""Whether a probability of 0.7 is right in seven cases of ten: the expected calibration error.

What is judged is the probability of *vessel*: in each bin the mean probability should be the share of vessel
pixels. Guo et al. judge the confidence of the predicted class, max(p, 1 − p), which puts p and 1 − p into
one bin, where too much vessel on the one side and too little on the other cancel.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.pixel import LEVELS, LevelCounts
from pipeline.metrics.rates import Figures, ratio

BINS = 15
"""Equal-width bins, ((m − 1)/15, m/15]; a probability of 0 belongs to the first."""

_TOP = LEVELS - 1
_BIN_STARTS = np.concatenate([[0], np.arange(1, BINS) * _TOP // BINS + 1])


def bin_sums(counts: LevelCounts) -> NDArray[np.int64]:
    """Sum up the pixels of each bin; sums of images add up.

    Returns:
        int64 [15, 3]: pixels, vessel pixels, and probabilities in units of 1/65535.
    """
    pixels = counts.positive + counts.negative
    columns = (pixels, counts.positive, pixels * np.arange(LEVELS))
    return np.stack([np.add.reduceat(column, _BIN_STARTS) for column in columns], axis=1)


# ----------------------------------------------------------------------------------------------------------
# Expected calibration error (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3):
#   ECE = Σ_m |B_m| / n · |acc(B_m) − conf(B_m)|,  here with acc = share of vessel pixels, conf = mean p
def expected_calibration_error(sums: NDArray[np.number]) -> Figures:
    """Mean distance between probability and frequency, weighted by pixels.

    Args:
        sums: [..., 15, 3], see `bin_sums`; sums over images give the pooled figure.

    Returns:
        float64 [...] in 0..1; 0 without pixels.
    """
    values = np.asarray(sums, np.float64)
    gaps = np.abs(values[..., 1] - values[..., 2] / _TOP).sum(axis=-1)
    return ratio(gaps, values[..., 0].sum(axis=-1))
