"""Deep supervision: while training, the coarser levels of the decoder are asked for the vessels as well."""

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.unet import INITIAL_LOGIT, UNet


class DeeplySupervised(nn.Module):
    """A network with a side head on every decoder level but the last (Lee et al. 2015, arXiv 1409.5185).

    A head is a 1×1 convolution to one logit. The heads serve training alone: what is kept is `network`.

    Attributes:
        network: what is trained.
        side_heads: of its decoder's levels, from coarse to fine.
    """

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.side_heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in network.decoder_widths[:-1])
        for head in self.side_heads:
            nn.init.constant_(head.bias, INITIAL_LOGIT)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map float [N, 3, H, W] to the network's logits [N, 1, H, W]."""
        logits: Tensor = self.network(x)
        return logits

    def predictions(self, x: Tensor) -> list[Tensor]:
        """Map float [N, 3, H, W] to logits [N, 1, H, W] of every level, the network's own first.

        Those of the side heads are enlarged to the size of the input, bilinearly: a truth that is shrunk
        instead would spread the capillaries over wider pixels.
        """
        *coarser, finest = self.network.decode(x)
        side = [
            F.interpolate(head(level).float(), x.shape[2:], mode="bilinear")
            for head, level in zip(self.side_heads, coarser, strict=True)
        ]
        return [self.network.head(finest), *reversed(side)]
