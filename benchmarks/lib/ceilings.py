"""What this machine can do at best: multiply-adds, bytes and launches a second."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

LONG = 0.05  # seconds that a timing takes at least: beside them, starting and waiting for the device is little


@dataclass(frozen=True)
class Ceilings:
    """Rates that no program here exceeds by much, unless its arrays stay in the caches."""

    multiply_adds_per_s: float
    """Of a square matrix product in float32."""
    bytes_per_s: float
    """Read and written by an elementwise operation on an array larger than the caches."""
    launches_per_s: float
    """Of small operations that wait for each other."""


def measure_ceilings(size: int = 2048, megabytes: int = 256) -> Ceilings:
    """Measure them, in a few seconds.

    Args:
        size: side of the matrices.
        megabytes: size of the array that is copied.
    """
    a = mx.random.normal((size, size)) / math.sqrt(size)  # products of many stay finite
    big = mx.zeros((megabytes * 250_000,))
    small = mx.zeros((8,))
    mx.eval(a, big, small)
    return Ceilings(
        multiply_adds_per_s=size**3 / _seconds(lambda x: x @ a, a),
        bytes_per_s=2 * big.nbytes / _seconds(lambda x: x + 1, big),
        launches_per_s=1 / _seconds(lambda x: x + 1, small),
    )


def _seconds(function: Callable[[mx.array], mx.array], x: mx.array, repeats: int = 5) -> float:
    """Seconds of one application, from as many one after the other as take ``LONG``."""

    def run(times: int) -> float:
        clock, y = time.perf_counter(), x
        for _ in range(times):
            y = function(y)
        mx.eval(y)
        return (time.perf_counter() - clock) / times

    run(1)
    times = 1
    while (each := run(times)) * times < LONG:
        times = max(2 * times, math.ceil(LONG / each))
    return statistics.median(run(times) for _ in range(repeats))
