"""The machine's peak rates, as measured: multiply-adds, bytes and launches per second."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

LONG = 0.05  # minimum seconds of a timing, so that starting and waiting for the device is negligible


@dataclass(frozen=True)
class Ceilings:
    """Rates that programs do not exceed by much, unless their arrays stay in the caches."""

    multiply_adds_per_s: float
    """Rate of a square matrix product in float32."""
    bytes_per_s: float
    """Bytes read and written by an elementwise operation on an array larger than the caches."""
    launches_per_s: float
    """Rate of small operations that depend on each other."""


def measure_ceilings(size: int = 2048, megabytes: int = 256) -> Ceilings:
    """Measure the ceilings, in a few seconds.

    Args:
        size: number of rows and columns of the matrices.
        megabytes: size of the array that is copied.
    """
    a = mx.random.normal((size, size)) / math.sqrt(size)  # repeated products stay finite
    big = mx.zeros((megabytes * 250_000,))
    small = mx.zeros((8,))
    mx.eval(a, big, small)
    return Ceilings(
        multiply_adds_per_s=size**3 / _seconds(lambda x: x @ a, a),
        bytes_per_s=2 * big.nbytes / _seconds(lambda x: x + 1, big),
        launches_per_s=1 / _seconds(lambda x: x + 1, small),
    )


def _seconds(function: Callable[[mx.array], mx.array], x: mx.array, repeats: int = 5) -> float:
    """Return the seconds per application: the median of chains of applications that take at least ``LONG``."""

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
