"""Training of the speech encoder: a teacher, synthesised sentences with known phonemes, and the distillation."""
