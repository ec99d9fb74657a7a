"""Sizes and adjoints of resampling with a filter: numbers alone, for every implementation of upfirdn2d."""

from typing import NamedTuple

from stylegan2.errors import StyleGAN2Error

# The kernels count in 32 bits. Adjoints have a little more padding; larger factors ask for gigabytes of taps.
MOST_FACTOR, MOST_PADDING = 2**16, 2**30
_INT32 = 2**31 - 1


class Sampling(NamedTuple):
    """Factors and padding of one pass; pairs are (x, y), padding is (left, right, top, bottom)."""

    up: tuple[int, int]
    down: tuple[int, int]
    padding: tuple[int, int, int, int]

    def check(self) -> None:
        """Whether the numbers are in range.

        Raises:
            StyleGAN2Error: a factor is not in 1..MOST_FACTOR, or a padding has more than 32 bits.
        """
        if not all(1 <= factor <= MOST_FACTOR for factor in (*self.up, *self.down)):
            raise StyleGAN2Error(
                f"ops: got up={self.up}, down={self.down}, expected factors from 1 to {MOST_FACTOR}"
            )
        if not all(-_INT32 <= pad <= _INT32 for pad in self.padding):
            raise StyleGAN2Error(f"ops: got padding={self.padding}, expected numbers of 32 bits")

    def output_size(self, size: tuple[int, int], taps: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the result for an image and a filter, both as (height, width)."""
        left, right, top, bottom = self.padding
        height = (size[0] * self.up[1] + top + bottom - taps[0]) // self.down[1] + 1
        width = (size[1] * self.up[0] + left + right - taps[1]) // self.down[0] + 1
        return height, width

    def transposed(self, size: tuple[int, int], taps: tuple[int, int]) -> "Sampling":
        """The sampling of the adjoint operation, from gradients of the result to gradients of the image."""
        out_height, out_width = self.output_size(size, taps)
        left, _, top, _ = self.padding
        padding = (
            taps[1] - 1 - left,
            (size[1] - 1) * self.up[0] + 1 + left - out_width * self.down[0],
            taps[0] - 1 - top,
            (size[0] - 1) * self.up[1] + 1 + top - out_height * self.down[1],
        )
        return Sampling(self.down, self.up, padding)
