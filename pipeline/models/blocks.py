"""Building blocks of the segmentation networks: DropBlock, convolution block, spatial attention."""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock(nn.Module):
    """Zeroes random square blocks of each feature map while training (Ghiasi et al. 2018, Algorithm 1).

    Every channel of every sample draws its own blocks. On maps smaller than the block, the block shrinks to
    the map. Draws come from torch's global generator: the same state gives the same mask.

    Attributes:
        block_size: edge of a block in pixels of the feature map.
        keep: expected fraction of units kept (blocks overlap, so slightly more are), 0 < keep ≤ 1;
            1 turns it off.
    """

    def __init__(self, block_size: int, keep: float) -> None:
        super().__init__()
        if block_size < 1 or not 0 < keep <= 1:
            raise ValueError(f"got block_size={block_size}, keep={keep}; expected >= 1 and 0 < keep <= 1")
        self.block_size = block_size
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape; the identity in evaluation mode."""
        if not self.training or self.keep == 1:
            return x
        dropped = self._draw(x)
        kept = dropped.numel() - int(torch.count_nonzero(dropped))
        # Equation in Algorithm 1, line 7: A ← A × count(M) / count_ones(M).
        scale = dropped.numel() / max(kept, 1)
        return x * (1 - dropped).to(x.dtype).mul_(scale)

    def extra_repr(self) -> str:
        """Show the settings in the network's printed form."""
        return f"block_size={self.block_size}, keep={self.keep}"

    # ------------------------------------------------------------------------------------------------------
    # Ghiasi et al. 2018, equation 1, with a block of b_h × b_w (both 7, unless the map is smaller):
    #   γ = (1 − keep) / (b_h b_w) · H W / ((H − b_h + 1)(W − b_w + 1))
    # is the probability that a place where a whole block fits becomes the corner of a dropped block.
    def _draw(self, x: Tensor) -> Tensor:
        """Draw which units to drop: uint8 [N, C, H, W] of 0 and 1, on x's device."""
        n, c, height, width = x.shape
        block = (min(self.block_size, height), min(self.block_size, width))
        rows, columns = height - block[0] + 1, width - block[1] + 1
        gamma = (1 - self.keep) / math.prod(block) * (height * width) / (rows * columns)
        if x.device.type != "cpu":
            seeds = torch.rand(n, c, rows, columns, device=x.device) < gamma
            # Max over every window that reaches a seed: each seed grows into a block down and to the right.
            padding = (block[1] - 1, block[1] - 1, block[0] - 1, block[0] - 1)
            grown = F.max_pool2d(F.pad(seeds.to(torch.float16), padding), block, stride=1)
            return grown.to(torch.uint8)

        # On the CPU it is 2 to 5 times faster to draw only the few seeds, and to grow them as bytes. All maps
        # are stacked into one tall picture; as whole blocks fit into their map, none reaches the next one.
        positions = bernoulli_positions(n * c * rows * columns, gamma)
        row = positions // columns  # counts through all maps
        tall_row = row // rows * height + row % rows
        seeds_tall = np.zeros((n * c * height, width), np.uint8)  # [N·C·H, W]
        seeds_tall[tall_row, positions % columns] = 1
        kernel = np.ones(block, np.uint8)
        anchor = (block[1] - 1, block[0] - 1)  # OpenCV counts x, y; this one grows down and to the right
        grown_tall = cv2.dilate(seeds_tall, kernel, anchor=anchor)
        return torch.from_numpy(grown_tall).view(n, c, height, width)  # [N, C, H, W]


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
        self.drop = DropBlock(block_size, keep)
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
