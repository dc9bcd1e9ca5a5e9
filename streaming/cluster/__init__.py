"""One API over many machines: a director that places sessions, and nodes that run them, as actors of Ray."""
