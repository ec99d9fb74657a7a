"""Segmentation: datasets, phantom, models, training, inference, metrics and report."""
