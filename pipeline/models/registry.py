"""The networks by name, and the parameters that define one."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.models.sa_unet import SAUNet
from pipeline.models.unet import UNet
from pipeline.schema import Strict


class Architecture(Strict):
    """What has to be known to build a network and load its weights.

    Attributes:
        arch: `sa_unet`, or `unet` (the same without attention).
        base_width: channels of the first level.
        dropblock_size: edge of DropBlock's blocks, in pixels of the feature map.
        dropblock_keep: fraction of units that DropBlock keeps; 1 turns it off. (The papers on SA-UNet use
            0.82 for DRIVE and 0.87 for CHASE_DB1.)
    """

    arch: Literal["sa_unet", "unet"] = "sa_unet"
    base_width: Annotated[int, Field(ge=1, le=256)] = 16
    dropblock_size: Annotated[int, Field(ge=1)] = 7
    dropblock_keep: Annotated[float, Field(gt=0, le=1)] = 0.82


def build_model(architecture: Architecture) -> UNet:
    """Build the network with fresh weights from torch's global generator."""
    network = {"sa_unet": SAUNet, "unet": UNet}[architecture.arch]
    return network(architecture.base_width, architecture.dropblock_size, architecture.dropblock_keep)
