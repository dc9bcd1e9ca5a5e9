"""The painter's twins on a GPU, for batches of many people."""
