"""Tensor operations of StyleGAN2 in plain PyTorch, differentiable to any order."""
