"""How fast our renderer is beside networks of the classes that others paint faces with: `python -m benchmarks`."""
