"""What this machine can do at best: multiply-adds, bytes and launches a second."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Ceilings:
    """Rates that no program here exceeds by much."""

    multiply_adds_per_s: float
    """Of a square matrix product in float32."""
    bytes_per_s: float
    """Read and written by an elementwise operation on an array larger than the caches."""
    launches_per_s: float
    """Of small operations that wait for each other."""


def measure_ceilings(size: int = 2048, megabytes: int = 256, launches: int = 2000) -> Ceilings:
    """Measure them, in a few seconds.

    Args:
        size: side of the matrices.
        megabytes: size of the array that is copied.
        launches: length of the chain of small operations.
    """
    a = mx.random.normal((size, size))
    big = mx.zeros((megabytes * 250_000,))
    small = mx.zeros((8,))
    mx.eval(a, big, small)

    def chain() -> mx.array:
        x = small
        for _ in range(launches):
            x = x + 1
        return x

    return Ceilings(
        multiply_adds_per_s=size**3 / _seconds(lambda: a @ a),
        bytes_per_s=2 * big.nbytes / _seconds(lambda: big + 1),
        launches_per_s=launches / _seconds(chain),
    )


def _seconds(function: Callable[[], mx.array], repeats: int = 5) -> float:
    mx.eval(function())
    times = []
    for _ in range(repeats):
        clock = time.perf_counter()
        mx.eval(function())
        times.append(time.perf_counter() - clock)
    return statistics.median(times)
