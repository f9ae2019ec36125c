"""Which batch and segment fit into a memory, and how long a step takes: predictions, and one step to hold them to."""

from dataclasses import dataclass
from typing import NamedTuple

from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.machines import Machine
from mlx_rtx.forecast.memory import Memory
from mlx_rtx.forecast.step_benchmark import StepBenchmark, StepTiming
from mlx_rtx.training.settings import RunConfig

USABLE = 2 / 3  # of a machine's memory: about what macOS lets the GPU of a 16 GB machine work in

LARGEST_BATCH = 4096
LONGEST_SEGMENT = 128  # blocks that are looked at together
SHORT = (2, 4)  # segments of the sequences that are timed in place of a long one


class Choice(NamedTuple):
    """A segment length, what it takes at the recipe's batch, and the largest batch (a power of two) that fits."""

    segment: int
    memory: Memory
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
        sizes = (2**i for i in range(LARGEST_BATCH.bit_length()))
        return max((size for size in sizes if self.memory(size, segment).peak <= memory), default=0)

    def seconds(self, batch: int, segment: int | None) -> tuple[float, tuple[int, ...]]:
        """Seconds of a step on this machine, and the lengths that were timed for it.

        A long recurrent step is not run: time grows linearly with length, so two short ones tell.
        """
        benchmark, shape = self.benchmark(segment), self.settings.task.shape
        unit = (segment or shape.length) * self.settings.architecture.block
        if self.settings.model == "regular" or shape.length <= (SHORT[1] + 1) * unit:
            return benchmark.measure(batch, shape.length, shape.targets, repeats=3).seconds, (shape.length,)
        short = tuple(count * unit for count in SHORT)
        reads = [length if shape.targets == shape.length else min(shape.targets, length) for length in short]
        one, two = (benchmark.measure(batch, *sizes, repeats=3).seconds for sizes in zip(short, reads, strict=True))
        return one + (two - one) * (shape.length - short[0]) / (short[1] - short[0]), short

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
