"""The runtime: speech in, frames with sound out. Imports no other package of this project."""
