"""Which batch and segment fit into a memory, and how long a step takes: predictions, and one step to hold them to."""

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

USABLE = 2 / 3  # of a machine's memory: about what macOS lets the GPU of a 16 GB machine work in

LARGEST_BATCH = 4096
LONGEST_SEGMENT = 128  # blocks that are looked at together
SHORT = (2, 4)  # segments of the sequences that are timed in place of a long one
AFFORDABLE = 0.4  # seconds that the products of steps may take which are timed; each is run about five times


class Choice(NamedTuple):
    """A segment length, what it takes at the recipe's batch, and the largest batch (a power of two) that fits."""

    segment: int
    memory: Memory
    batch: int


class Estimate(NamedTuple):
    """Seconds of a step, and by what steps: their lengths, and sequences. By none it is the least that it takes."""

    seconds: float
    lengths: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class Planner:
    """Predicts the training steps of a run, at the full length of its task.

    Args:
        settings: of the run. Its data is not needed.
        machine: one that is not at hand; this one if None.
    """

    settings: RunConfig
    machine: Machine | None = None

    def benchmark(self, segment: int | None) -> StepBenchmark:
        """Training steps with another segment."""
        config = self.settings.model_config(self.settings.task.shape)
        return StepBenchmark(config, self.settings.model, "training", segment, self.settings.optimizer)

    def memory(self, batch: int, segment: int | None) -> Memory:
        """Predicted memory of a step."""
        shape = self.settings.task.shape
        return self.benchmark(segment).memory(batch, shape.length, shape.targets, gpu=self.machine is not None or None)

    def choices(self, memory: float) -> list[Choice]:
        """What fits into ``memory`` bytes, a row a segment length; a regular transformer has one, the whole.

        Of a long sequence no segment above `LONGEST_SEGMENT` is looked at: it would only take more memory.
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
        """The largest power of two that fits as a batch; 0 if none does."""
        sizes = (2**i for i in reversed(range(LARGEST_BATCH.bit_length())))
        return next((size for size in sizes if self.memory(size, segment).peak <= memory), 0)

    def seconds(self, batch: int, segment: int | None) -> Estimate:
        """How long a step takes on this machine.

        A long recurrent step is not run: time grows linearly with length, so two short ones tell. Nor is one of so
        many sequences that it would take long: of fewer it takes its share, or somewhat more. Of a model that is too
        large even so nothing is run, and what its products take at least is given.
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
        """Run whole steps."""
        shape = self.settings.task.shape
        return self.benchmark(segment).measure(batch, shape.length, shape.targets, repeats=2)

    def work(self, batch: int, segment: int | None) -> Work:
        """What a step does, what fused kernels multiply included."""
        benchmark, shape = self.benchmark(segment), self.settings.task.shape
        sizes = batch, shape.length, shape.targets
        return benchmark.work(*sizes)._replace(multiply_adds=benchmark.executed(*sizes))

    def proposal(self, memory: float) -> tuple[int, int | None] | None:
        """Batch and segment: the run's own where they fit, else a smaller segment, else a smaller batch."""
        batch, segment = self.settings.training.batch, self.settings.training.segment
        if self.memory(batch, segment).peak <= memory:
            return batch, segment
        rows = self.choices(memory)
        fitting = [(batch, row.segment) for row in rows if row.memory.peak <= memory]
        smaller = [(row.batch, row.segment) for row in rows if row.batch]
        return max(fitting or smaller, default=None)


@functools.cache
def multiply_adds_per_second() -> float:
    """What this machine does in one large product."""
    side, factor = 1024, mx.random.normal((1024, 1024), key=mx.random.key(0))
    mx.eval(factor @ factor)
    began = time.perf_counter()
    mx.eval(factor @ factor)
    return side**3 / (time.perf_counter() - began)
