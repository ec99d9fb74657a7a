"""SA-UNet: Spatial Attention U-Net for Retinal Vessel Segmentation (Guo et al. 2020, arXiv 2004.03696)."""

from pipeline.models.blocks import SpatialAttention
from pipeline.models.unet import UNet


class SAUNet(UNet):
    """U-Net with spatial attention between the two bottleneck convolutions.

    With the defaults, the paper's network for DRIVE: 537,299 parameters, 98 of them attention.
    """

    def __init__(self, base_width: int = 16, dropblock_size: int = 7, dropblock_keep: float = 0.82) -> None:
        super().__init__(base_width, dropblock_size, dropblock_keep, bottleneck=SpatialAttention())
