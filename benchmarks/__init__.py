"""Benchmarks: `python -m benchmarks` compares our renderer with networks of rival classes; `benchmarks.browser`,
`benchmarks.backends` and `benchmarks.soak` measure the live picture, the renderer's backends, and leaks of sessions."""
