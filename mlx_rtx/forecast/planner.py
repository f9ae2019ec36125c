"""Predictions of which batch and segment fit into memory and how long a step takes, and their verification."""

import functools
import time
from dataclasses import dataclass
from typing import NamedTuple

from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.machines import Machine
from mlx_rtx.forecast.memory import Memory
from mlx_rtx.forecast.step_benchmark import StepBenchmark, StepTiming
from mlx_rtx.support import backend
from mlx_rtx.training.settings import RunConfig

import mlx.core as mx

USABLE = 2 / 3  # fraction of a machine's memory, about what macOS lets the GPU of a 16 GB machine use

LARGEST_BATCH = 4096
LONGEST_SEGMENT = 128  # largest number of blocks per segment to consider
SHORT = (2, 4)  # segments of the short sequences that are timed instead of a long one
AFFORDABLE = 0.4  # seconds that the products of timed steps may take; each step runs about five times


class Choice(NamedTuple):
    """A segment length, its memory at the recipe's batch, and the largest batch (a power of two) that fits."""

    segment: int
    memory: Memory
    batch: int


class Estimate(NamedTuple):
    """Seconds of a step, and the lengths and batch of the timed steps; if none were timed, a lower bound."""

    seconds: float
    lengths: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Planner:
    """Predicts memory and time of a run's training steps, at the full length of its task.

    Args:
        settings: settings of the run; its data is not needed.
        machine: machine to predict for; None for this machine.
    """

    settings: RunConfig
    machine: Machine | None = None

    def benchmark(self, segment: int | None) -> StepBenchmark:
        """Return the benchmark of training steps with ``segment`` blocks per segment."""
        config = self.settings.model_config(self.settings.task.shape)
        return StepBenchmark(config, self.settings.model, "training", segment, self.settings.optimizer)

    def memory(self, batch: int, segment: int | None) -> Memory:
        """Predict the memory of a step."""
        shape = self.settings.task.shape
        return self.benchmark(segment).memory(batch, shape.length, shape.targets, gpu=self.machine is not None or None)

    def choices(self, memory: float) -> list[Choice]:
        """Return what fits into ``memory`` bytes, by segment length; regular transformers have a single segment.

        Segments longer than `LONGEST_SEGMENT` are not considered for long sequences: they only take more memory.
        """
        blocks = -(-self.settings.task.shape.length // self.settings.architecture.block)
        segments = [2**i for i in range(blocks.bit_length()) if 2**i < min(blocks, LONGEST_SEGMENT + 1)]
        if self.settings.model == "regular":
            segments = [blocks]
        elif blocks <= LONGEST_SEGMENT + 1:
            segments.append(blocks)
        return [
            Choice(segment, self.memory(self.settings.training.batch, segment), self._largest(segment, memory))
            for segment in segments
        ]

    def _largest(self, segment: int, memory: float) -> int:
        """Return the largest power of two that fits as a batch, 0 if none does."""
        sizes = (2**i for i in reversed(range(LARGEST_BATCH.bit_length())))
        return next((size for size in sizes if self.memory(size, segment).peak <= memory), 0)

    def seconds(self, batch: int, segment: int | None) -> Estimate:
        """Estimate the time of a step on this machine.

        For long sequences of a recurrent model, two short lengths are timed and extrapolated linearly. For large
        batches a smaller batch is timed and scaled up, which may overestimate the time. If even that would take too
        long, nothing is timed, and the result is a lower bound, the time of the step's matrix products.
        """
        benchmark, shape = self.benchmark(segment), self.settings.task.shape
        unit = (segment or shape.length) * self.settings.architecture.block
        lengths: tuple[int, ...] = (shape.length,)
        if self.settings.model == "recurrent" and shape.length > (SHORT[1] + 1) * unit:
            lengths = tuple(count * unit for count in SHORT)
        reads = [length if shape.targets == shape.length else min(shape.targets, length) for length in lengths]
        steps = list(zip(lengths, reads, strict=True))
        rate, memory = multiply_adds_per_second(), USABLE * 1e9 * backend.memory_gb()

        def affordable(size: int) -> bool:
            expected = sum(benchmark.executed(size, *step) for step in steps) / rate
            return expected <= AFFORDABLE and benchmark.memory(size, *steps[-1]).peak <= memory

        sizes = [batch, *(2**i for i in reversed(range(batch.bit_length())) if 2**i < batch)]
        size = next(filter(affordable, sizes), 0)
        if not size:
            return Estimate(benchmark.executed(batch, shape.length, shape.targets) / rate, (), 0)
        times = [benchmark.measure(size, *step, repeats=3).seconds for step in steps]
        seconds = times[0]
        if len(lengths) > 1:
            seconds += (times[1] - times[0]) * (shape.length - lengths[0]) / (lengths[1] - lengths[0])
        return Estimate(seconds * batch / size, lengths, size)

    def verify(self, batch: int, segment: int | None) -> StepTiming:
        """Time steps of the full length and batch."""
        shape = self.settings.task.shape
        return self.benchmark(segment).measure(batch, shape.length, shape.targets, repeats=2)

    def work(self, batch: int, segment: int | None) -> Work:
        """Return the work of a step, with the multiply-adds that this package executes."""
        benchmark, shape = self.benchmark(segment), self.settings.task.shape
        sizes = batch, shape.length, shape.targets
        return benchmark.work(*sizes)._replace(multiply_adds=benchmark.executed(*sizes))

    def proposal(self, memory: float) -> tuple[int, int | None] | None:
        """Return batch and segment that fit: the run's own, else a smaller segment, else a smaller batch; or None."""
        batch, segment = self.settings.training.batch, self.settings.training.segment
        if self.memory(batch, segment).peak <= memory:
            return batch, segment
        rows = self.choices(memory)
        fitting = [(batch, row.segment) for row in rows if row.memory.peak <= memory]
        smaller = [(row.batch, row.segment) for row in rows if row.batch]
        return max(fitting or smaller, default=None)


@functools.cache
def multiply_adds_per_second() -> float:
    """Measure this machine's rate in one large matrix product."""
    side, factor = 1024, mx.random.normal((1024, 1024), key=mx.random.key(0))
    mx.eval(factor @ factor)
    began = time.perf_counter()
    mx.eval(factor @ factor)
    return side**3 / (time.perf_counter() - began)
