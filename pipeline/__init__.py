"""Segmentation: datasets, phantom, models, training, inference, metrics and report."""

import os

# Before torch loads its OpenMP: threads that wait shall not spin for long (see stages/__init__.py).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
