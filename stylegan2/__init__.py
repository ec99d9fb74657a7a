"""StyleGAN2-ADA in PyTorch, self-contained."""

import os

# Before torch loads its OpenMP: by default a thread that waits for another spins for long, which makes
# training up to ten times slower as soon as anything else wants one of the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
