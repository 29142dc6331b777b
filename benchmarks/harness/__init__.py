"""What the benchmarks share: the machine, the scene, the competitors, the rounds, the server, the records."""
