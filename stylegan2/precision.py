"""Convolutions on CUDA in the precision that their tensors have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def use_full_precision() -> None:
    """Make cuDNN deterministic and switch its TensorFloat-32 off; for this process.

    By default it rounds the factors of float32 convolutions to 10 bits, on GPUs from 2020 on: an error of
    about 10⁻³ of the result. Without a GPU nothing changes.
    """
    for owner, name, value in _switches():
        setattr(owner, name, value)


@contextmanager
def full_precision() -> Iterator[None]:
    """`use_full_precision` for the length of a block; it holds for all threads of the process meanwhile."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _switches()]
    use_full_precision()
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _switches() -> list[tuple[Any, str, Any]]:
    """Owner and name of every setting, and what it is set to."""
    cudnn = torch.backends.cudnn
    deterministic = (cudnn, "deterministic", True)
    if not hasattr(cudnn, "conv"):  # before PyTorch 2.9
        return [deterministic, (cudnn, "allow_tf32", False)]
    # `allow_tf32` may not be read any more once somebody has used the newer names, and goes unheeded where
    # these say otherwise. Convolutions alone would do; but if the two differ, `allow_tf32` raises.
    return [deterministic, (cudnn.conv, "fp32_precision", "ieee"), (cudnn.rnn, "fp32_precision", "ieee")]
