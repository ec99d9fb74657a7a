"""Sampling on a grid: PyTorch's values and gradients, and derivatives of the gradient in any version."""

import pytest
import torch
from torch.nn import functional as F

from stylegan2.grid_sampling import sample_bilinear


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 5, 4, generator=generator, dtype=dtype)
    grid = 2.6 * torch.rand(2, 3, 6, 2, generator=generator, dtype=dtype) - 1.3  # some points lie outside
    return images, grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_pytorch(dtype: torch.dtype) -> None:
    images, grid = case(dtype)
    ours, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    sampled = sample_bilinear(ours, grid)
    expected = F.grid_sample(theirs, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    assert torch.equal(sampled, expected)
    weights = torch.randn(sampled.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    (sampled * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_derivatives_of_first_and_second_order_are_right() -> None:
    images, grid = case()
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sample_bilinear(x, grid), (images,))
    assert torch.autograd.gradgradcheck(lambda x: sample_bilinear(x, grid).square(), (images,))


def test_a_gradient_of_the_grid_is_refused() -> None:
    images, grid = case()
    with pytest.raises(ValueError, match="expected a constant"):
        sample_bilinear(images, grid.requires_grad_())
