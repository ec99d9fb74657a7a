"""Bilinear sampling at the points of a grid, with derivatives of every order in every version of PyTorch.

PyTorch 2.6 cannot differentiate the gradient of `grid_sample`, which R1 on augmented images needs; 2.13 can.
For a fixed grid nothing but the sampling and its adjoint is needed, however often one differentiates.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def sample_bilinear(images: Tensor, grid: Tensor) -> Tensor:
    """Sample images at given points; 0 outside.

    Args:
        images: float [N, C, H, W].
        grid: float [N, h, w, 2], x and y in −1..1 from edge to edge of the outer pixels; a constant.

    Returns:
        float [N, C, h, w].

    Raises:
        ValueError: a gradient of the grid is asked for.
    """
    if grid.requires_grad:
        raise ValueError("the grid requires a gradient; expected a constant one")
    sampled: Tensor = _Sampling.apply(images, grid)
    return sampled


# ----------------------------------------------------------------------------------------------------------
# Sampling with fixed weights is linear, y = S x. So the gradient of a loss by x is Sᵀ g, with g the gradient
# by y; that is linear in g, with the gradient S h for a gradient h by Sᵀ g: the sampling again.
class _Sampling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _Spreading.apply(gradients[0], grid, ctx.size), None


class _Spreading(torch.autograd.Function):
    """The adjoint: every value goes to the pixels that it was sampled from, with the same weights."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        of_this_size = values.new_empty(size)  # only asked for its shape
        spread, _ = torch.ops.aten.grid_sampler_2d_backward(
            values, of_this_size, grid, 0, 0, False, [True, False]
        )
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sampling.apply(gradients[0], grid), None, None
