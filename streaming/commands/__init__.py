"""The commands that use the network: serve, mic."""
