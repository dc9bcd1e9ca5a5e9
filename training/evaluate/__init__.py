"""Figures of each stage on people outside the training."""
