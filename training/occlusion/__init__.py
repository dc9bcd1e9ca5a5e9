"""The network that detects objects before a mouth."""
