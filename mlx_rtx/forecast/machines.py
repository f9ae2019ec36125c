"""Machines that are not at hand, from published figures: what is said of them is a prediction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A machine's size and its two ceilings."""

    description: str
    memory: int
    """Bytes in all."""
    multiply_adds_per_s: float
    """In float32."""
    bytes_per_s: float
    source: str


MACHINES = {
    "m4": Machine(
        description="Apple M4, 10 GPU cores, 16 GB",
        memory=16_000_000_000,
        multiply_adds_per_s=1.45e12,
        bytes_per_s=110e9,
        source="published measurements: about 2.9 TFLOPS in float32, 100 to 120 GB/s",
    ),
}
USABLE = 2 / 3  # of a machine's memory: about what macOS lets the GPU of a 16 GB machine work in
