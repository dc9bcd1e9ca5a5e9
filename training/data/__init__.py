"""The clips of a data folder, and their landmarks, fits and crops."""
