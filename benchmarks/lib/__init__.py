"""Parts of the benchmarks: sweeps, ceilings, fits, and the PyTorch model that MLX is compared with."""
