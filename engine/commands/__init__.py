"""The commands that need no network."""
