"""Pictures: references aligned with a target mesh, rendered, and composited into the frame."""
