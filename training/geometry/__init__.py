"""Training of the face model and of the geometry generator, which moves its lower face from speech."""
