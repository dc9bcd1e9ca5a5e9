"""The `.avatar` file and its videos."""
