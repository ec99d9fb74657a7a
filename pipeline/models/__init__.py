"""Segmentation networks: from normalised images of any size divisible by 8 to vessel logits."""
