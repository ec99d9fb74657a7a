"""Convolutions on CUDA in the precision that their tensors have."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def use_full_precision() -> None:
    """Make cuDNN deterministic and switch its TensorFloat-32 off; for this process.

    By default it rounds the factors of float32 convolutions to 10 bits, on GPUs from 2020 on: an error of
    about 10⁻³ of the result. Without a GPU nothing changes.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def full_precision() -> Iterator[None]:
    """`use_full_precision` for the length of a block."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    use_full_precision()
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = before
