"""The HTTP server: routes, access, live sessions, health."""
