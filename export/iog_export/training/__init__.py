"""Training of IOG networks on photographs with object masks, and their evaluation with simulated annotators."""
