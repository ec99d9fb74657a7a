"""Tensor operations of StyleGAN2 in plain PyTorch, differentiable to any order."""

import torch


def describe_implementation(device: torch.device | str) -> str:
    """Say in one line which implementation of the operations runs on a device, and why.

    Args:
        device: where the networks compute, such as `cpu` or `cuda:0`.
    """
    return (
        f"ops: reference (pure torch {torch.__version__}) on {torch.device(device)}; "
        "no compiled kernels are part of this version"
    )
