"""The clips of a data folder, and the landmarks, fits and crops made of them."""
