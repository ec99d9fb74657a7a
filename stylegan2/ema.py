"""Exponential moving average of the generator's weights."""

import torch
from torch import nn


def ema_beta(images_seen: int, batch: int, ema_kimg: float, rampup: float | None) -> float:
    """Compute how much of the old average stays.

    Args:
        images_seen: images before this batch; with a ramp-up the first average is the generator itself.
        batch: images per iteration.
        ema_kimg: half-life in thousands of images.
        rampup: bound on the half-life, as a fraction of the images seen; None = no bound.
    """
    # -------------------------------------------------------------------------------------------------------
    # Karras et al. 2018 (1710.10196, section 4), with a half-life: β = ½^(batch / half-life)
    # -------------------------------------------------------------------------------------------------------
    half_life = ema_kimg * 1000
    if rampup is not None:
        half_life = min(half_life, images_seen * rampup)
    return float(0.5 ** (batch / max(half_life, 1e-8)))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, beta: float) -> None:
    """Move the average towards the network: parameters are blended, buffers copied.

    Args:
        average: changed in place; same architecture as `network`.
        network: the network as it is now.
        beta: share of the old average that stays, 0..1.
    """
    # -------------------------------------------------------------------------------------------------------
    # β mean + (1 − β) now = mean + (1 − β)(now − mean): one step of length 1 − β, in place
    # -------------------------------------------------------------------------------------------------------
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1 - beta)
    for kept, current in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(current)
