"""Tensor operations of StyleGAN2, compiled for CUDA and for the CPU, and in plain PyTorch."""

from stylegan2.ops.selection import (
    CONVOLUTION_VARIABLE,
    CONVOLUTIONS,
    IMPLEMENTATIONS,
    VARIABLE,
    describe_implementation,
    select,
    select_convolution,
    selected,
    selected_convolution,
    use,
    use_convolution,
    use_reference,
)

__all__ = [
    "CONVOLUTIONS",
    "CONVOLUTION_VARIABLE",
    "IMPLEMENTATIONS",
    "VARIABLE",
    "describe_implementation",
    "select",
    "select_convolution",
    "selected",
    "selected_convolution",
    "use",
    "use_convolution",
    "use_reference",
]
