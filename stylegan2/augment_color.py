"""Colour augmentations: all of them in one affine map of RGB."""

import math

import torch
from torch import Tensor

from stylegan2.augment_parameters import AugmentParameters, beside
from stylegan2.errors import StyleGAN2Error


def color_matrices(params: AugmentParameters, batch: int, device: torch.device) -> Tensor:
    """Compute the affine map (r, g, b, 1) → (r', g', b', 1) of each image.

    Returns:
        float32 [N, 4, 4]; exactly the unit matrix for untouched images.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2020 (2006.06676), appendix B, algorithm 1: C ← T_k · … · T_1 with v = (1, 1, 1, 0)/√3:
    # luma flip I − 2vvᵀ, hue rotation around v (Rodrigues' formula), saturation vvᵀ + s(I − vvᵀ). The last
    # is written I + (s − 1)(I − vvᵀ), which is exactly I at s = 1.
    # -------------------------------------------------------------------------------------------------------
    rgb_unit = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], device=device))
    unit = torch.eye(4, device=device)
    along_grey = torch.zeros(4, 4, device=device)
    along_grey[:3, :3] = 1 / 3
    product = unit.expand(batch, 4, 4)
    if params.brightness is not None:
        offset = torch.zeros(batch, 4, 4, device=device)
        offset[:, :3, 3] = params.brightness[:, None]
        product = (unit + offset) @ product
    if params.contrast is not None:
        product = (unit + _per_image(params.contrast - 1) * rgb_unit) @ product
    if params.lumaflip is not None:
        product = (unit - 2 * _per_image(params.lumaflip) * along_grey) @ product
    if params.hue is not None:
        product = _rotation_about_grey(params.hue, rgb_unit, along_grey) @ product
    if params.saturation is not None:
        product = (unit + _per_image(params.saturation - 1) * (rgb_unit - along_grey)) @ product
    return product


def apply_color(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply the map of each image.

    Args:
        images: [N, C, H, W] with 3 channels, or 1: grey is treated as r = g = b, the result is their mean.
        matrices: [N, 4, 4], best on the CPU: whether they do anything is decided there.

    Raises:
        StyleGAN2Error: for another number of channels.
    """
    batch, channels, height, width = images.shape
    if channels not in (1, 3):
        raise StyleGAN2Error(
            f"colour augmentation: got images of {channels} channels, expected 1 or 3; use augpipe 'bg'"
        )
    if bool((matrices == torch.eye(4, device=matrices.device)).all()):
        return images
    matrices = beside(matrices.to(images.dtype), images)
    linear, offset = matrices[:, :3, :3], matrices[:, :3, 3:]
    if channels == 1:
        linear = linear.sum(dim=2, keepdim=True).mean(dim=1, keepdim=True)  # [N, 1, 1]
        offset = offset.mean(dim=1, keepdim=True)
    flat = images.reshape(batch, channels, height * width)
    return (linear @ flat + offset).reshape(batch, channels, height, width)


def _per_image(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1)


def _rotation_about_grey(angle: Tensor, rgb_unit: Tensor, along_grey: Tensor) -> Tensor:
    """Rotate by `angle` [N] around (1, 1, 1)/√3: I + sin θ K + (1 − cos θ) K², with K² = vvᵀ − I on RGB."""
    cross = torch.zeros(4, 4, device=angle.device)
    cross[0, 2] = cross[1, 0] = cross[2, 1] = 1 / math.sqrt(3)
    cross = cross - cross.T
    unit = torch.eye(4, device=angle.device)
    return unit + _per_image(angle.sin()) * cross + _per_image(1 - angle.cos()) * (along_grey - rgb_unit)
