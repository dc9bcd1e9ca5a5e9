"""One encode of a session for all, and what it is published to."""
