"""Training of the dual-attention renderer: samples, losses and the run."""
