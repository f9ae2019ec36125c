"""Machines that are not at hand: what others measured of them, and what a step would take there.

Nothing here was measured by this project. A step's time is estimated as the sum of its arithmetic, traffic, launches
and one wait, the form that fits measured steps best (benchmarks/README.md), from rates that others published: a range,
from their best to their worst. What is compiled there joins elementwise operations, and launches and moves less than is
counted here; products whose inner dimension is small, and a machine that is used meanwhile, are slower.
"""

from dataclasses import dataclass

from mlx_rtx.forecast.graph import Work


@dataclass(frozen=True)
class Machine:
    """A machine's size, and its rates from the best to the worst."""

    description: str
    memory: int
    """Bytes in all."""
    multiply_adds_per_s: tuple[float, float]
    """Of matrix products in float32."""
    bytes_per_s: tuple[float, float]
    """Read and written by other operations."""
    launch: tuple[float, float]
    """Seconds of an operation that waits for the one before it, beyond arithmetic and traffic."""
    launches_a_buffer: int
    """Operations that MLX hands to the GPU at a time, in a command buffer."""
    buffer: float
    """Seconds from one command buffer to the next."""
    wait: float
    """Seconds from the host's waiting for a result to its having it."""
    source: str

    def seconds(self, work: Work) -> tuple[float, float]:
        """The estimated time of a step, from least to most."""
        buffers = work.launches / self.launches_a_buffer
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
#     operation in float32 and waited for. These are the cores of an M4 Mac mini, to which Apple gives 120 GB/s.
# [2] github.com/ml-explore/mlx/issues/4521: measured on an M3 Ultra with MLX 0.32.2. For an M4 it is an estimate.
# [3] MLX 0.32, mlx/backend/metal/device.cpp: chips of architecture "g", as the M4 is, commit after 40 operations, or
#     after inputs of 40 Mi numbers, which is not counted here.
MACHINES = {
    "m4": Machine(
        description="Apple M4, 10 GPU cores, 16 GB",
        memory=16_000_000_000,
        # [1] (102400, 512) @ (512, 1024) takes 32.4 ms, 1.66e12; with 64 in the place of 512, nearer to D here, 6.8 ms
        multiply_adds_per_s=(1.6e12, 1.0e12),
        # [1] the sum of 537 MB takes 5.8 ms, 92 GB/s; to join two arrays of 256 MB 11.6 ms, 88; ReLU of 34 MB 1.1, 63
        bytes_per_s=(92e9, 65e9),
        # [2] 3,200 tiny operations that wait for each other take 8.8 ms, 2.75 µs each, of which the buffers have 0.4;
        # at most, by guess, twice that
        launch=(2.5e-6, 5e-6),
        launches_a_buffer=40,  # [3]
        buffer=20e-6,  # [2]
        wait=0.17e-3,  # [1] operations on a few thousand numbers take 0.17 to 0.18 ms
        source="published measurements of an M4 and, for launches, an M3 Ultra (mlx_rtx/forecast/machines.py)",
    ),
}
