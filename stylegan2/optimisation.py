"""Optimiser steps under lazy regularisation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BETAS = (0.0, 0.99)
EPS = 1e-8
LARGEST_GRADIENT = 1e5
FUSED_DEVICES = ("cpu", "cuda")


def lazy_hyperparameters(lr: float, interval: int | None) -> tuple[float, tuple[float, float]]:
    """Correct learning rate and betas for the steps that regularisation adds.

    Args:
        lr: learning rate without regularisation.
        interval: iterations between regularisation steps; None = there are none.

    Returns:
        Learning rate and Adam's betas.
    """
    if interval is None:
        return lr, BETAS
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2019 (1912.04958), appendix B: with k + 1 steps instead of k, c = k / (k + 1):
    # λ' = c · λ,  β' = β^c
    # -------------------------------------------------------------------------------------------------------
    ratio = interval / (interval + 1)
    return lr * ratio, (BETAS[0] ** ratio, BETAS[1] ** ratio)


def lazy_adam(network: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
    """Make the one Adam that main and regularisation steps of a network share."""
    corrected_lr, betas = lazy_hyperparameters(lr, interval)
    parameters = list(network.parameters())
    # One pass over memory instead of one for each operation of Adam; elsewhere torch chooses.
    fused = True if all(parameter.device.type in FUSED_DEVICES for parameter in parameters) else None
    return torch.optim.Adam(parameters, lr=corrected_lr, betas=betas, eps=EPS, fused=fused)


def step_with_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Take a step with the accumulated gradients and forget them.

    Single gradients that are not finite are made harmless. A parameter without a gradient counts as having a
    zero one: Adam's moments move on for all parameters alike.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                torch.nan_to_num(
                    parameter.grad,
                    nan=0.0,
                    posinf=LARGEST_GRADIENT,
                    neginf=-LARGEST_GRADIENT,
                    out=parameter.grad,
                )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def trainable(network: nn.Module, opponent: nn.Module) -> Iterator[None]:
    """Compute gradients for one network only; the opponent's weights are constants meanwhile."""
    network.requires_grad_(True)
    opponent.requires_grad_(False)
    try:
        yield
    finally:
        opponent.requires_grad_(True)
