"""The torch side of iog-runtime: networks, published checkpoints, and their export to the runtime's graphs."""
