"""What serves the benchmarks: sweeps, ceilings, fits, and the PyTorch twin."""
