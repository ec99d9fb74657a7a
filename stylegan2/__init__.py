"""StyleGAN2-ADA in plain PyTorch, self-contained."""
