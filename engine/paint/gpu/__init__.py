"""GPU counterparts of the painter, for batches of many people."""
