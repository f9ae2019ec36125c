"""Estimated step times on other machines, from published measurements.

Nothing here was measured by this project. The time of a step is estimated as the sum of the times for arithmetic,
memory traffic, launches and one wait, the form that fits measured steps best (benchmarks/README.md), with rates
published by others; it is a range, from their best to their worst rates. Compiled functions fuse elementwise
operations, and so launch and move less than is counted here; products with a small inner dimension, and a machine that
is in use, are slower.
"""

from dataclasses import dataclass

from mlx_rtx.forecast.graph import Work


@dataclass(frozen=True)
class Machine:
    """Memory of a machine, and its rates from best to worst."""

    description: str
    memory: int
    """Total memory in bytes."""
    multiply_adds_per_s: tuple[float, float]
    """Multiply-adds per second of float32 matrix products."""
    bytes_per_s: tuple[float, float]
    """Bytes per second read and written by other operations."""
    launch: tuple[float, float]
    """Overhead in seconds of an operation that depends on the previous one, in addition to arithmetic and traffic."""
    launches_per_buffer: int
    """Number of operations that MLX submits to the GPU in one command buffer."""
    buffer: float
    """Overhead per command buffer, in seconds."""
    wait: float
    """Latency in seconds when the host waits for a result."""
    source: str

    def seconds(self, work: Work) -> tuple[float, float]:
        """Return the estimated time of a step in seconds, minimum and maximum."""
        buffers = work.launches / self.launches_per_buffer
        least, most = (
            work.multiply_adds / rate
            + work.bytes / bandwidth
            + work.launches * launch
            + buffers * self.buffer
            + self.wait
            for rate, bandwidth, launch in zip(self.multiply_adds_per_s, self.bytes_per_s, self.launch, strict=True)
        )
        return least, most


# [1] github.com/TristanBilot/mlx-benchmark, benchmarks/detailed_benchmark.md, "M4 (6E+4P+10GPU+16GB)": MLX 0.20.0, each
#     operation in float32 and evaluated separately. The M4 Mac mini has these cores; Apple states 120 GB/s for it.
# [2] github.com/ml-explore/mlx/issues/4521: measured on an M3 Ultra with MLX 0.32.2. For an M4 it is an estimate.
# [3] MLX 0.32, mlx/backend/metal/device.cpp: chips of architecture "g", such as the M4, commit after 40 operations, or
#     after inputs of 40 Mi numbers, which is not counted here.
MACHINES = {
    "m4": Machine(
        description="Apple M4, 10 GPU cores, 16 GB",
        memory=16_000_000_000,
        # [1] (102400, 512) @ (512, 1024) takes 32.4 ms, 1.66e12/s; with 64 instead of 512, closer to D here, 6.8 ms
        multiply_adds_per_s=(1.6e12, 1.0e12),
        # [1] a sum of 537 MB takes 5.8 ms, 92 GB/s; concatenating two arrays of 256 MB 11.6 ms, 88 GB/s; ReLU of 34 MB
        # 1.1 ms, 63 GB/s
        bytes_per_s=(92e9, 65e9),
        # [2] 3,200 tiny dependent operations take 8.8 ms, 2.75 µs each, of which 0.4 µs is for buffers; the maximum is
        # a guess, twice the minimum
        launch=(2.5e-6, 5e-6),
        launches_per_buffer=40,  # [3]
        buffer=20e-6,  # [2]
        wait=0.17e-3,  # [1] operations on a few thousand numbers take 0.17 to 0.18 ms
        source="published measurements of an M4 and, for launches, an M3 Ultra (mlx_rtx/forecast/machines.py)",
    ),
}
