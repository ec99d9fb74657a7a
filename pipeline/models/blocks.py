"""Building blocks of the segmentation networks: DropBlock, convolution block, spatial attention."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_OPENCV_CHANNELS = 128  # what every version of OpenCV takes as one picture


class DropBlock(nn.Module):
    """Zeroes random square blocks of each feature map while training (Ghiasi et al. 2018, Algorithm 1).

    Every channel of every sample draws its own blocks. On maps smaller than the block, the block shrinks to
    the map. Draws come from torch's global generator: the same state gives the same mask. On the CPU it is
    made for maps stored channels last, the order that the networks compute in; others give the same values.

    Attributes:
        block_size: edge of a block in pixels of the feature map.
        keep: expected fraction of units kept (blocks overlap, so slightly more are), 0 < keep ≤ 1;
            1 turns it off.
        inplace: whether the input itself may be changed.
    """

    def __init__(self, block_size: int, keep: float, inplace: bool = False) -> None:
        super().__init__()
        if block_size < 1 or not 0 < keep <= 1:
            raise ValueError(f"got block_size={block_size}, keep={keep}; expected >= 1 and 0 < keep <= 1")
        self.block_size = block_size
        self.keep = keep
        self.inplace = inplace

    # ------------------------------------------------------------------------------------------------------
    # Ghiasi et al. 2018, Algorithm 1, lines 6 and 7, with the mask M of 0 and 1:
    #   A ← A · M · count(M) / count_ones(M)
    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape; the identity in evaluation mode."""
        if not self.training or self.keep == 1:
            return x
        if x.device.type == "cpu":
            factors = torch.from_numpy(_factors(self._draw(x.shape))).permute(0, 3, 1, 2)  # [N, C, H, W]
            factors = factors.to(x.dtype)
        else:
            kept = self._draw_on_device(x)
            factors = kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1)).to(x.dtype)
        return x.mul_(factors) if self.inplace else x * factors

    def extra_repr(self) -> str:
        """Show the settings in the network's printed form."""
        return f"block_size={self.block_size}, keep={self.keep}, inplace={self.inplace}"

    # ------------------------------------------------------------------------------------------------------
    # Ghiasi et al. 2018, equation 1, with a block of b_h × b_w (both 7, unless the map is smaller):
    #   γ = (1 − keep) / (b_h b_w) · H W / ((H − b_h + 1)(W − b_w + 1))
    # is the probability that a place where a whole block fits becomes the corner of a dropped block.
    def _places(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int], float]:
        """Give the block, the places where it fits (rows, columns), and γ."""
        block = (min(self.block_size, height), min(self.block_size, width))
        rows, columns = height - block[0] + 1, width - block[1] + 1
        gamma = (1 - self.keep) / math.prod(block) * (height * width) / (rows * columns)
        return block, (rows, columns), gamma

    def _draw_on_device(self, x: Tensor) -> Tensor:
        """Draw which units to keep, 0 or 1, like x in shape, type and device."""
        n, c, height, width = x.shape
        block, places, gamma = self._places(height, width)
        seeds = torch.rand(n, c, *places, device=x.device) < gamma
        # Max over every window that reaches a seed: each seed grows into a block down and to the right.
        padding = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
        grown = F.max_pool2d(F.pad(seeds.to(torch.float16), padding), block, stride=1)
        return (1 - grown).to(x.dtype)

    def _draw(self, shape: Sequence[int]) -> NDArray[np.uint8]:
        """Draw which units to drop: uint8 [N, H, W, C] of 0 and 1.

        On the CPU it is several times faster to draw only the few seeds, and to grow them as bytes.
        """
        n, c, height, width = shape
        block, (rows, columns), gamma = self._places(height, width)
        positions = bernoulli_positions(n * c * rows * columns, gamma)  # in [N, C, rows, columns]
        maps, place = np.divmod(positions, rows * columns)
        sample, channel = np.divmod(maps, c)
        row, column = np.divmod(place, columns)
        seeds = np.zeros((n, height, width, c), np.uint8)
        seeds.reshape(-1)[((sample * height + row) * width + column) * c + channel] = 1
        kernel = np.ones(block, np.uint8)
        anchor = (block[1] - 1, block[0] - 1)  # OpenCV counts x, y; this one grows down and to the right
        for picture in seeds:  # [H, W, C]
            for first in range(0, c, _OPENCV_CHANNELS):
                part = np.ascontiguousarray(picture[..., first : first + _OPENCV_CHANNELS])
                picture[..., first : first + _OPENCV_CHANNELS] = cv2.dilate(
                    part, kernel, anchor=anchor
                ).reshape(part.shape)
        return seeds


def _factors(dropped: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn 0 (kept) and 1 (dropped) into count / kept and 0, float32 of the same shape, in one pass."""
    rows = dropped.reshape(-1, dropped.shape[-2] * dropped.shape[-1])  # [N·H, W·C]
    kept = dropped.size - cv2.countNonZero(rows)
    table = np.zeros((1, 256), np.float32)
    table[0, 0] = dropped.size / max(kept, 1)
    return np.asarray(cv2.LUT(rows, table), np.float32).reshape(dropped.shape)


def bernoulli_positions(count: int, probability: float) -> NDArray[np.int64]:
    """Draw the positions of successes in `count` independent trials, in time proportional to the successes.

    The gaps between successes of a Bernoulli process are geometric: with U uniform in (0, 1],
    ⌊ln U / ln(1 − p)⌋ failures come before the next success. Draws from torch's global CPU generator.

    Args:
        count: number of trials.
        probability: of success, 0 < p ≤ 1.

    Returns:
        int64 [successes], rising, each in 0..count − 1.
    """
    if probability >= 1:
        return np.arange(count)
    expected = count * probability
    chunk = int(expected + 4 * math.sqrt(expected)) + 8  # one chunk nearly always suffices
    log_failure = math.log1p(-probability)
    chunks: list[NDArray[np.int64]] = []
    last = -1
    while last < count:
        uniform = 1 - torch.rand(chunk, dtype=torch.float64).numpy()  # in (0, 1]
        gaps = np.minimum(np.log(uniform) / log_failure, count).astype(np.int64)
        positions = last + np.cumsum(gaps + 1)
        chunks.append(positions)
        last = int(positions[-1])
    drawn = np.concatenate(chunks)
    return drawn[: np.searchsorted(drawn, count)]


class ConvBlock(nn.Sequential):
    """3×3 convolution, DropBlock, batch normalisation, ReLU (Guo et al. 2020, figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, block_size: int, keep: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.drop = DropBlock(block_size, keep, inplace=True)  # the convolution keeps no output
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)


class SpatialAttention(nn.Module):
    """Weights every position by what its channels hold (Woo et al. 2018, equation 5; 98 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    # ------------------------------------------------------------------------------------------------------
    # M(F) = σ(f^{7×7}([mean over channels; max over channels])),  F' = F · M(F)
    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # [N, 2, H, W]
        return x * torch.sigmoid(self.conv(pooled))
