"""A network for inference only: batch normalisation folded into the convolutions before it."""

from copy import deepcopy

import torch
from torch import nn

from pipeline.models.blocks import ConvBlock


def folded(network: nn.Module) -> nn.Module:
    """Make a copy that gives the same logits in fewer passes over memory.

    Weights are folded in float64, so that float32 logits differ by no more than rounding. The copy has other
    parameters than the original: it cannot be trained or saved in its place.

    Args:
        network: any that consists of `ConvBlock`s and other layers; left as it is.

    Returns:
        The copy, in evaluation mode, on the same device, without gradients.
    """
    copy = deepcopy(network).eval().requires_grad_(False)
    for module in copy.modules():
        if isinstance(module, ConvBlock):
            _fold(module)
    return copy


# ----------------------------------------------------------------------------------------------------------
# Ioffe & Szegedy 2015, Algorithm 2, applied to the output of a convolution:
#   γ (W * x + b − μ) / √(σ² + ε) + β  =  (s W) * x + (s (b − μ) + β),   s = γ / √(σ² + ε)
def _fold(block: ConvBlock) -> None:
    conv, norm = block.conv, block.norm
    if norm.running_mean is None or norm.running_var is None or conv.bias is None:
        raise ValueError("got a block without running statistics or bias; expected those of ConvBlock")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)  # [C]
    weight = conv.weight.double() * scale[:, None, None, None]
    bias = scale * (conv.bias.double() - norm.running_mean.double()) + norm.bias.double()
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.bias.dtype), requires_grad=False)
    block.drop = nn.Identity()  # type: ignore[assignment]
    block.norm = nn.Identity()  # type: ignore[assignment]
