"""Training of IOG networks on photographs with object masks."""
