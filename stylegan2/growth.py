"""Growing: networks of a higher resolution that begin as ones of a lower resolution, enlarged or reduced.

Karras et al. 2018 (1710.10196) grow both networks block by block and fade the new ones in. Here nothing is
faded: the new blocks get weights with which they pass on what the smaller networks made, so that training
goes on from where it stood, and they learn from there.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stylegan2.networks.discriminator import Discriminator, DiscriminatorBlock
from stylegan2.networks.layers import ResampledConv2d

_SLOPE = 0.2  # of lrelu

log = logging.getLogger(__name__)


def grown_weights(
    tensors: Mapping[str, Tensor], network: nn.Module, smaller_generator: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Complete the weights of a smaller network to those of a larger one.

    Blocks are named after their resolution and keep their weights.

    - Generator of the architecture `skip`: new image layers start at 0, so the picture is at first the
      smaller network's, enlarged. The others draw with their last image layer alone, and start it afresh.
    - Discriminator of the architecture `resnet` with leaky ReLU and at least twice as many feature maps as
      the image has channels: D(x) = D_smaller(x at half the size), see `_pass_image_on`, as long as
      `conv_clamp`, where one is set, limits nothing in either. Otherwise the blocks beyond the
      smaller network start afresh, and with them the reading of the image; a warning is logged.

    Args:
        tensors: state of the smaller network.
        network: the larger one, a generator or a discriminator.
        smaller_generator: arguments that the smaller generator is built with.

    Returns:
        A state for `network`; entries that neither network can fill are left out.
    """
    smaller = smaller_generator["img_resolution"]
    adds_up = (smaller_generator.get("synthesis_kwargs") or {}).get("architecture", "skip") == "skip"
    completed = {}
    for name, value in network.state_dict().items():
        parts = name.removeprefix("synthesis.").split(".")
        beyond = parts[0].startswith("b") and parts[0][1:].isdigit() and int(parts[0][1:]) > smaller
        if not beyond:
            if name in tensors:
                completed[name] = tensors[name]
        elif adds_up and parts[1] == "torgb" and parts[2] == "weight":
            completed[name] = torch.zeros_like(value)
        else:
            completed[name] = value.clone()
    if isinstance(network, Discriminator):
        _read_smaller_image(completed, tensors, network, smaller)
    return completed


def _read_smaller_image(
    completed: dict[str, Tensor], tensors: Mapping[str, Tensor], network: Discriminator, smaller: int
) -> None:
    """Change the new blocks in `completed`: they shall hand the reduced image to the smaller one's reader."""
    resolutions = [smaller << steps for steps in range(1, (network.img_resolution // smaller).bit_length())]
    channels = network.img_channels
    blocks: dict[int, DiscriminatorBlock] = {}
    for resolution in resolutions:
        block = network.get_submodule(f"b{resolution}")
        assert isinstance(block, DiscriminatorBlock)
        if not _can_pass_on(block, channels):
            log.warning(
                "growing from %d to %d pixels: the discriminator's new blocks cannot pass the image on (they "
                "can with resnet, lrelu and at least %d feature maps) and start afresh",
                smaller,
                network.img_resolution,
                2 * channels,
            )
            return
        blocks[resolution] = block
    weight, bias = (tensors[f"b{smaller}.fromrgb.{part}"] for part in ("weight", "bias"))
    largest = resolutions[-1]
    _pass_image_on(completed, f"b{largest}.fromrgb", blocks[largest].fromrgb, _signs(channels), 1.0)
    for resolution in reversed(resolutions):
        block, name = blocks[resolution], f"b{resolution}"
        # conv1 of a residual block comes out times √½, and so does what the next block reads from it.
        incoming = 1.0 if resolution == largest else math.sqrt(0.5)
        _pass_image_on(completed, f"{name}.conv0", block.conv0, _signs(channels), incoming, read=True)
        completed[f"{name}.skip.weight"].zero_()
        if resolution > 2 * smaller:
            _pass_image_on(completed, f"{name}.conv1", block.conv1, _signs(channels), 1.0, read=True)
            continue
        # act(a·x) = a·act(x) for a > 0: √2 inside makes up for √½ outside.
        gain = blocks[largest].fromrgb.weight_gain * math.sqrt(2)
        rows = weight[:, :, 0, 0].double() * gain  # [C_out, channels]
        completed[f"{name}.conv1.weight"].zero_()
        _pass_image_on(completed, f"{name}.conv1", block.conv1, rows, 1.0, read=True)
        completed[f"{name}.conv1.bias"].copy_(bias * math.sqrt(2))


def _can_pass_on(block: DiscriminatorBlock, channels: int) -> bool:
    leaky = block.conv0.activation == block.conv1.activation == "lrelu"
    return block.architecture == "resnet" and leaky and block.conv0.weight.shape[1] >= 2 * channels


def _signs(channels: int) -> Tensor:
    """The rows (I, −I), [2 · channels, channels]: every channel of an image and its negative."""
    identity = torch.eye(channels, dtype=torch.float64)
    return torch.cat([identity, -identity])


def _pass_image_on(
    completed: dict[str, Tensor],
    name: str,
    layer: ResampledConv2d,
    rows: Tensor,
    incoming: float,
    read: bool = False,
) -> None:
    """Set the first feature maps of a layer to act(rows · image), and leave its other feature maps afresh.

    Args:
        completed: receives weight and bias of the layer.
        name: of the layer.
        layer: a convolution, whose middle tap is used.
        rows: [feature maps, image channels].
        incoming: factor on the activations that the layer reads.
        read: the layer reads the image from 2 · channels activations instead of from itself.
    """
    # ------------------------------------------------------------------------------------------------------
    # lrelu(x) − lrelu(−x) = (1 + slope) x: two activations of opposite sign hold the image itself
    # ------------------------------------------------------------------------------------------------------
    if read:
        scale = 1 / ((1 + _SLOPE) * math.sqrt(2) * incoming)  # √2: gain of the activation
        rows = torch.cat([rows, -rows], dim=1) * scale  # [feature maps, 2 · channels]
    weight, middle = completed[f"{name}.weight"], layer.padding
    count, inputs = rows.shape
    weight[:count] = 0
    weight[:count, :inputs, middle, middle] = (rows / layer.weight_gain).to(weight.dtype)
    completed[f"{name}.bias"][:count] = 0
