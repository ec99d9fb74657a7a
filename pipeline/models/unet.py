"""The U-Net that the other networks vary: three levels, widths doubling (Ronneberger et al. 2015)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.blocks import ConvBlock

LEVELS = 3
SIZE_MULTIPLE = 2**LEVELS
"""Height and width of a network's input must be divisible by this."""

RECEPTIVE_RADIUS = 82
"""A logit depends on no pixel of the input that lies further away, in rows or columns.

So far reach two 3×3 convolutions a level, attention's 7×7 at the bottom, the transposed convolutions, and the
grid of pooling, which makes it differ by position (68 to 82).
"""

INITIAL_LOGIT = -2.0
"""Where heads begin: ln(0.12 / 0.88), as about 12% of the field of view is vessel."""


class UNet(nn.Module):
    """U-Net with DropBlock and batch normalisation, from normalised RGB to vessel logits.

    Attributes:
        base_width: channels of the first level; the levels have 1, 2, 4 and 8 times as many.
        dropblock_size, dropblock_keep: see `DropBlock`; keep = 1 turns it off.
        bottleneck: what stands between the two convolutions at the bottom; nothing by default.
        decoder_widths: channels of the decoder's levels, from coarse to fine.
    """

    def __init__(
        self,
        base_width: int = 16,
        dropblock_size: int = 7,
        dropblock_keep: float = 1.0,
        bottleneck: nn.Module | None = None,
    ) -> None:
        super().__init__()
        drop = (dropblock_size, dropblock_keep)
        widths = [base_width * 2**level for level in range(LEVELS + 1)]
        self.encoder = nn.ModuleList(
            _pair(in_channels, width, drop)
            for in_channels, width in zip([3, *widths], widths[:-1], strict=False)
        )
        self.bottom = nn.Sequential(
            ConvBlock(widths[-2], widths[-1], *drop),
            bottleneck or nn.Identity(),
            ConvBlock(widths[-1], widths[-1], *drop),
        )
        rising = widths[-2::-1]
        self.decoder_widths = tuple(rising)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 3, stride=2, padding=1, output_padding=1) for width in rising
        )
        self.decoder = nn.ModuleList(_pair(2 * width, width, drop) for width in rising)
        self.head = nn.Conv2d(base_width, 1, 1)
        nn.init.constant_(self.head.bias, INITIAL_LOGIT)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map float [N, 3, H, W] to logits [N, 1, H, W].

        Raises:
            ValueError: H or W is not divisible by 8.
        """
        logits: Tensor = self.head(self.decode(x)[-1])
        return logits

    def decode(self, x: Tensor) -> list[Tensor]:
        """Map float [N, 3, H, W] to the features of the decoder's levels, from coarse to fine.

        Returns:
            For a base width of w, [N, 4 w, H / 4, W / 4], [N, 2 w, H / 2, W / 2] and [N, w, H, W].

        Raises:
            ValueError: H or W is not divisible by 8.
        """
        if x.ndim != 4 or x.shape[2] % SIZE_MULTIPLE or x.shape[3] % SIZE_MULTIPLE:
            raise ValueError(f"got {tuple(x.shape)}; expected [N, 3, H, W] with H and W divisible by 8")
        # Every layer keeps this order of memory; on the CPU channels last is 1.2 times (training) to 1.6
        # times (inference) faster.
        on_cpu = x.device.type == "cpu"
        x = x.contiguous(memory_format=torch.channels_last if on_cpu else torch.contiguous_format)
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        features = []
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
            features.append(x)
        return features


def _pair(in_channels: int, width: int, drop: tuple[int, float]) -> nn.Sequential:
    return nn.Sequential(ConvBlock(in_channels, width, *drop), ConvBlock(width, width, *drop))
