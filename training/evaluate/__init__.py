"""Figures of each stage on people that training never saw."""
