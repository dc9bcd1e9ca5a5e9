"""Training of the weights that the engine ships with; never imported at run time."""
