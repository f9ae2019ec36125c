"""Points of the sweep: a model of the paper's at a batch size, timed, with what it was made to do."""

import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlx_rtx import ModelConfig, loss_and_grad
from mlx_rtx.config import Architecture
from mlx_rtx.models import MODELS, Transformer
from mlx_rtx.ops import executed_ops, paper_ops, training_ops, true_ops
from mlx_rtx.optimizer import apply_gradients, make_optimizer
from mlx_rtx.settings import COPY_PAPER, IMAGE_PAPER, TEXT_PAPER

import mlx.core as mx
from graph import Work, walk

REPEATS, SHORTEST = 5, 0.3  # timings of a point, and seconds they take together at least


@dataclass(frozen=True)
class Shape:
    """A task of the paper as its tables describe it."""

    architecture: Architecture
    vocab_size: int
    length: int
    targets: int
    out_size: int | None = None
    regular: tuple[int, ...] = ()
    """Layers of the regular transformers that its table compares."""


SHAPES = {
    "image": Shape(IMAGE_PAPER.architecture, 256, 1024, 1, out_size=10, regular=(1, 4)),
    "text": Shape(TEXT_PAPER.architecture, 65, 256, 256, regular=(1, 6)),
    "copy": Shape(COPY_PAPER.architecture, 16, 4128, 16),
}


@dataclass(frozen=True)
class Group:
    """One model of a shape in one mode: the points of a process."""

    shape: str
    model: Literal["recurrent", "regular"]
    layers: int
    mode: Literal["forward", "training"]

    def __str__(self) -> str:
        return f"{self.name}, {self.mode}"

    @property
    def name(self) -> str:
        """Shape and model."""
        return f"{self.shape} {self.model}" + (f"-{self.layers}" if self.model == "regular" else "")


@dataclass(frozen=True)
class Point:
    """A measured batch size of a group. Counts are of the whole batch."""

    group: Group
    batch: int
    seconds: float  # median
    fastest: float
    slowest: float
    first: float  # the first call, which also compiles what has to be
    peak_gb: float
    launches: int
    bytes: int
    paper: int
    true: int
    executed: int


def groups(shapes: tuple[str, ...]) -> list[Group]:
    """All models of the shapes, forward and training."""
    models = [(s, "recurrent", 1) for s in shapes] + [(s, "regular", r) for s in shapes for r in SHAPES[s].regular]
    return [Group(*model, mode) for model in models for mode in ("forward", "training")]


class Runner:
    """A model of a group, ready to run at any batch size."""

    def __init__(self, group: Group):
        self.group, self.shape = group, SHAPES[group.shape]
        architecture = replace(self.shape.architecture, layers=group.layers)
        self.config = ModelConfig(
            **asdict(architecture),
            vocab_size=self.shape.vocab_size,
            max_len=self.shape.length,
            out_size=self.shape.out_size,
        )
        self.segment = None if group.model == "regular" else 8
        self.step = self._make()
        self._walk = functools.cache(lambda batch: walk(self._make(), *self._data(batch)))

    def _make(self) -> Callable[[mx.array, mx.array], None]:
        """Forward pass, or training step, on fresh weights."""
        model: Transformer = MODELS[self.group.model](self.config)
        training = self.group.mode == "training"
        model.train(training)
        optimizer = make_optimizer(TEXT_PAPER.optimizer, model)
        mx.eval(model.parameters(), optimizer.state)

        def train(tokens: mx.array, targets: mx.array) -> None:
            loss, gradients = loss_and_grad(model, tokens, targets, self.segment, key=mx.random.key(0))
            apply_gradients(model, optimizer, gradients, 1.0)
            mx.eval(model.parameters(), optimizer.state, loss)

        def forward(tokens: mx.array, targets: mx.array) -> None:
            mx.eval(model(tokens, last=targets.shape[1]))

        return train if training else forward

    def work(self, batch: int) -> Work:
        """What a step launches and moves. It is linear in the batch from 2 on; at 1 some sums are no work."""
        if batch <= 2:
            return self._walk(batch)
        two, three = self._walk(2), self._walk(3)
        return Work(*(a + (batch - 2) * (b - a) for a, b in zip(two, three, strict=True)))

    def measure(self, batch: int) -> Point:
        """Time a batch size."""
        data = self._data(batch)
        mx.eval(data)
        mx.reset_peak_memory()
        first = self._time(data)
        times: list[float] = []
        while len(times) < REPEATS or sum(times) < SHORTEST:
            times.append(self._time(data))
        config, shape, model = self.config, self.shape, self.group.model
        if self.group.mode == "training":  # the two formulas count a forward pass; backward takes twice as much
            passes, executed = 3, training_ops(config, shape.length, shape.targets, model, self.segment)
        else:
            passes, executed = 1, executed_ops(config, shape.length, model, shape.targets)
        work = self.work(batch)
        return Point(
            group=self.group,
            batch=batch,
            seconds=statistics.median(times),
            fastest=min(times),
            slowest=max(times),
            first=first,
            peak_gb=mx.get_peak_memory() / 1e9,
            launches=work.launches,
            bytes=work.bytes,
            paper=passes * batch * paper_ops(config, shape.length, model),
            true=passes * batch * true_ops(config, shape.length, model),
            executed=batch * executed,
        )

    def _data(self, batch: int) -> tuple[mx.array, mx.array]:
        tokens = mx.random.randint(0, self.shape.vocab_size, (batch, self.shape.length), key=mx.random.key(batch))
        return tokens, tokens[:, : self.shape.targets] % self.config.outputs

    def _time(self, data: tuple[mx.array, mx.array]) -> float:
        clock = time.perf_counter()
        self.step(*data)
        return time.perf_counter() - clock


def run_group(group: Group, batches: tuple[int, ...], seconds: float, memory_gb: float) -> Iterator[Point | str]:
    """Points of rising batch size while the next is expected to fit; last, if any is left out, a line that says so."""
    started, runner, points = time.perf_counter(), Runner(group), []
    for batch in sorted(batches):
        if points:
            ratio = batch / points[-1].batch
            expected_gb, expected_s = points[-1].peak_gb * ratio, points[-1].seconds * ratio
            left = seconds - (time.perf_counter() - started)
            if expected_gb > memory_gb:
                yield f"batch {batch} and above left out: would need about {expected_gb:,.1f} GB of {memory_gb:,.1f}"
                return
            if (REPEATS + 1) * expected_s > left:
                yield f"batch {batch} and above left out: would take about {(REPEATS + 1) * expected_s:,.0f} s"
                return
        points.append(runner.measure(batch))
        yield points[-1]


def call_group(group: Group, batches: tuple[int, ...], seconds: float, memory_gb: float) -> Iterator[Point | str]:
    """`run_group` in a process of its own; if it dies, what it had measured still counts."""
    order = json.dumps([asdict(group), batches, seconds, memory_gb])
    with subprocess.Popen([sys.executable, __file__, order], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            read = json.loads(line)
            yield read if isinstance(read, str) else Point(**{**read, "group": group})
    if process.returncode:
        yield f"its process ended with {process.returncode}; the points before stand"


if __name__ == "__main__":
    asked, *limits = json.loads(sys.argv[1])
    for result in run_group(Group(**asked), *limits):
        print(json.dumps(result if isinstance(result, str) else asdict(result)), flush=True)
