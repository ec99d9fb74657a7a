"""Figures that compare predictions with labels."""
