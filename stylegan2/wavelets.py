"""Orthogonal wavelet filters of the augmentations, and the band-pass filter bank made of them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Symlets: the least asymmetric orthogonal wavelets of Daubechies (1992, Ten Lectures, chapter 8).
# Low-pass taps; sum = sqrt(2), sum of squares = 1, even shifts orthogonal.
SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)

BANDS = 4


def band_filters() -> Tensor:
    """Build four zero-phase filters that split the frequencies into octaves and add up to the unit impulse.

    Returns:
        float32 [4, 43]: the bands [0, π/8], [π/8, π/4], [π/4, π/2], [π/2, π], in this order.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2020 (2006.06676), appendix B, image-space filtering. With the half-band pair of sym2
    #   L(z) = H(z) H(1/z) / 2,   U(z) = H(-z) H(-1/z) / 2,   L + U = 1,
    # the bands are  L(z)L(z²)L(z⁴),  L(z)L(z²)U(z⁴),  L(z)U(z²),  U(z).
    # -------------------------------------------------------------------------------------------------------
    taps = np.asarray(SYM2)
    alternating = taps * (-1.0) ** np.arange(len(taps))
    low = np.convolve(taps, taps[::-1]) / 2
    high = np.convolve(alternating, alternating[::-1]) / 2
    low2, low4, high2, high4 = _spread(low, 2), _spread(low, 4), _spread(high, 2), _spread(high, 4)
    below_quarter = np.convolve(low, low2)
    bands = [
        np.convolve(below_quarter, low4),
        np.convolve(below_quarter, high4),
        np.convolve(low, high2),
        high,
    ]
    length = max(len(band) for band in bands)
    centred = [np.pad(band, (length - len(band)) // 2) for band in bands]
    return torch.from_numpy(np.stack(centred).astype(np.float32))


def _spread(taps: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Replace z by z^step: put step − 1 zeros between neighbouring taps."""
    spread = np.zeros((len(taps) - 1) * step + 1)
    spread[::step] = taps
    return spread
