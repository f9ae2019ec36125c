"""Points of a sweep: time, memory and counted operations of models with the paper's shapes at a given size."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mlx_rtx import ModelConfig
from mlx_rtx.forecast.operations import paper_ops, true_ops
from mlx_rtx.forecast.step_benchmark import Mode, StepBenchmark
from mlx_rtx.model.config import Architecture, ModelKind
from mlx_rtx.tasks import Shape
from mlx_rtx.training.recipes import COPY, COPY_PAPER, IMAGE_PAPER, TEXT_PAPER

REPEATS, SHORTEST = 3, 0.4  # timings per point, and the minimum seconds that they take together
BENCHMARKS = Path(__file__).parent.parent  # the folder that contains `lib`
WORKER = [sys.executable, "-m", "lib.sweep"]
SEGMENT = 8  # blocks per segment of the gradient


@dataclass(frozen=True)
class Subject:
    """A task of the paper, with the sizes in its tables."""

    architecture: Architecture
    shape: Shape
    regular: tuple[int, ...] = ()
    """Numbers of layers of the regular transformers in its table."""


def keeping_weights(architecture: Architecture) -> Architecture:
    """Return the architecture without dropout on attention weights: fused attention and other reports have none."""
    return replace(architecture, attention_dropout=0.0)


SUBJECTS = {
    "image": Subject(keeping_weights(IMAGE_PAPER.architecture), IMAGE_PAPER.task.shape, regular=(1, 4)),
    "text": Subject(keeping_weights(TEXT_PAPER.architecture), TEXT_PAPER.task.shape, regular=(1, 6)),
    "copy": Subject(keeping_weights(COPY_PAPER.architecture), COPY_PAPER.task.shape),
    # for growth with length: positions without a maximum length, and every output read, as in text
    "long": Subject(COPY.architecture, COPY.task.shape._replace(targets=COPY.task.shape.length)),
}


@dataclass(frozen=True)
class Group:
    """One model of a subject in one mode. Its points are measured in one process."""

    subject: str
    model: ModelKind
    layers: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"

    @property
    def name(self) -> str:
        """Subject and model."""
        return f"{self.subject} {self.model}" + (f"-{self.layers}" if self.model == "regular" else "")


@dataclass(frozen=True)
class Size:
    """Batch B, length L, block width K, width D."""

    batch: int
    length: int
    block: int
    dim: int

    def __str__(self) -> str:
        return f"B={self.batch} L={self.length} K={self.block} D={self.dim}"


@dataclass(frozen=True)
class Point:
    """A group measured at a size. Counts are for the whole batch."""

    group: Group
    size: Size
    seconds: float  # median
    fastest: float
    slowest: float
    first: float  # the first call, including compilation
    peak_gb: float
    predicted_gb: tuple[float, float]  # at least, at most
    launches: int
    bytes: int
    paper: int
    true: int
    executed: int


def groups(
    subjects: Sequence[str],
    models: Sequence[ModelKind] = ("recurrent", "regular"),
    modes: Sequence[Mode] = ("forward", "training"),
) -> list[Group]:
    """Return all models of the subjects in each mode."""
    found: list[tuple[str, ModelKind, int]] = [(subject, "recurrent", 1) for subject in subjects]
    found += [(subject, "regular", layers) for subject in subjects for layers in SUBJECTS[subject].regular]
    return [Group(s, model, layers, mode) for s, model, layers in found if model in models for mode in modes]


def own_size(subject: str, batch: int = 1) -> Size:
    """Return the size of a subject in the paper."""
    shape, architecture = SUBJECTS[subject].shape, SUBJECTS[subject].architecture
    return Size(batch, shape.length, architecture.block, architecture.dim)


class Bench:
    """A group at a size, to be measured or predicted."""

    def __init__(self, group: Group, size: Size):
        subject = SUBJECTS[group.subject]
        shape = subject.shape
        whole = shape.targets == shape.length
        self.group, self.size = group, size
        self.at = size.batch, size.length, size.length if whole else min(shape.targets, size.length)
        architecture = replace(subject.architecture, layers=group.layers, block=size.block, dim=size.dim)
        config = ModelConfig(
            **asdict(architecture), vocab_size=shape.vocab_size, max_len=size.length, out_size=shape.out_size
        )
        self.benchmark = StepBenchmark(config, group.model, group.mode, SEGMENT, TEXT_PAPER.optimizer)

    @property
    def executed(self) -> int:
        """Multiply-adds per step."""
        return self.benchmark.executed(*self.at)

    @property
    def memory_gb(self) -> tuple[float, float]:
        """Lower and upper bound of the predicted peak memory."""
        memory = self.benchmark.memory(*self.at)
        return memory.least / 1e9, memory.peak / 1e9

    def measure(self) -> Point:
        """Measure time and peak memory."""
        config, model, (batch, length, _) = self.benchmark.config, self.group.model, self.at
        timing = self.benchmark.measure(*self.at, repeats=REPEATS, shortest=SHORTEST)
        work = self.benchmark.work(*self.at)
        passes = 3 if self.group.mode == "training" else 1  # the formulas count a forward pass; backward is two
        return Point(
            group=self.group,
            size=self.size,
            seconds=timing.seconds,
            fastest=timing.fastest,
            slowest=timing.slowest,
            first=timing.first,
            peak_gb=timing.peak_bytes / 1e9,
            predicted_gb=self.memory_gb,
            launches=work.launches,
            bytes=work.bytes,
            paper=passes * batch * paper_ops(config, length, model),
            true=passes * batch * true_ops(config, length, model),
            executed=self.executed,
        )


def run_group(group: Group, sizes: Sequence[Size], seconds: float, memory_gb: float) -> Iterator[Point | str]:
    """Yield for each size its point, or the reason why it was left out, based on predicted memory and time."""
    end = time.perf_counter() + seconds
    points: list[Point] = []
    for size in sizes:
        bench = Bench(group, size)
        if bench.memory_gb[0] > memory_gb:
            yield f"{size} left out: would need about {bench.memory_gb[0]:,.1f} GB of {memory_gb:,.1f}"
            continue
        expected, left = (REPEATS + 2) * _expected(bench, points), end - time.perf_counter()
        if points and expected > left:
            yield f"{size} left out: would take about {expected:,.0f} s"
            continue
        points.append(bench.measure())
        yield points[-1]


def _expected(bench: Bench, points: list[Point]) -> float:
    """Return an upper bound of the seconds per step: each point scaled by arithmetic or launches, the smallest one."""
    executed, blocks = bench.executed, bench.size.length / bench.size.block

    def growth(point: Point) -> float:
        more_blocks = blocks * point.size.block / point.size.length if bench.group.model == "recurrent" else 1.0
        return max(executed / point.executed, more_blocks)

    return min((point.seconds * growth(point) for point in points), default=0.0)


def call_group(group: Group, sizes: Sequence[Size], seconds: float, memory_gb: float) -> Iterator[Point | str]:
    """Call `run_group` in a separate process, cheapest sizes first; if it crashes, only the current size is lost."""
    end = time.perf_counter() + seconds
    own = own_size(group.subject)  # first, so that it is measured however short the time
    todo = sorted(sizes, key=lambda size: (size != own, Bench(group, size).executed))
    while todo:
        order = json.dumps([asdict(group), [asdict(size) for size in todo], end - time.perf_counter(), memory_gb])
        done = 0
        # in its own session: Ctrl-C interrupts only this process, which then kills the worker
        worker = subprocess.Popen(
            [*WORKER, order], cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        with worker as process, contextlib.ExitStack() as unless_done:
            unless_done.callback(process.kill)
            assert process.stdout is not None
            for line in process.stdout:
                done += 1
                read = json.loads(line)
                yield read if isinstance(read, str) else Point(**{**read, "group": group, "size": Size(**read["size"])})
            unless_done.pop_all()
        if process.returncode and done < len(todo):
            yield f"{todo[done]} left out: its process ended with {process.returncode}"
            done += 1
        todo = todo[done:]


if __name__ == "__main__":
    asked, asked_sizes, *limits = json.loads(sys.argv[1])
    for result in run_group(Group(**asked), [Size(**size) for size in asked_sizes], *limits):
        print(json.dumps(result if isinstance(result, str) else asdict(result)), flush=True)
