"""What a deployed bundle is worth, measured with simulated annotators on photographs with object masks."""
