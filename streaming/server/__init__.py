"""The HTTP server: routes, access, sessions, health."""
