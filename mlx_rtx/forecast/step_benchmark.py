"""Steps of a model on random tokens, to be timed, weighed and counted: what benchmarks and `plan` share."""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mlx_rtx import kernels
from mlx_rtx.forecast.graph import Work, walk
from mlx_rtx.forecast.memory import Memory, forward_memory, kernel_memory, training_memory
from mlx_rtx.forecast.operations import Kind, executed_ops, training_ops
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.registry import MODELS
from mlx_rtx.training.evaluation import PIECE, piecewise
from mlx_rtx.training.gradient import loss_and_grad
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

import mlx.core as mx

Mode = Literal["forward", "training"]


@dataclass(frozen=True)
class Timing:
    """A step's time in seconds, and the most memory that its arrays took."""

    seconds: float
    """Median."""
    fastest: float
    slowest: float
    first: float
    """The first call, which also compiles what has to be."""
    peak_bytes: int


@dataclass(frozen=True)
class Trial:
    """A model at work: forward passes in pieces, as `evaluate` makes them, or training steps.

    Example:
        >>> trial = Trial(ModelConfig(vocab_size=16, max_len=64, dim=8, heads=2, block=4))
        >>> timing = trial.measure(batch=2, length=64, targets=16)
    """

    config: ModelConfig
    model: Kind = "recurrent"
    mode: Mode = "training"
    segment: int | None = 8
    """Blocks to a segment of the gradient; the whole sequence if None."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def measure(self, batch: int, length: int, targets: int, repeats: int = 5, shortest: float = 0.3) -> Timing:
        """Time steps on ``batch`` sequences of ``length`` tokens whose last ``targets`` positions are read.

        Args:
            repeats: timings after the first call, at least.
            shortest: seconds that they take together, at least.
        """
        data, step = self._data(batch, length, targets), self._step()
        mx.eval(data)
        mx.synchronize()
        mx.reset_peak_memory()

        def once() -> float:
            clock = time.perf_counter()
            step(*data)
            mx.synchronize()
            return time.perf_counter() - clock

        first, times = once(), [once()]
        while len(times) < repeats or sum(times) < shortest:
            times.append(once())
        return Timing(statistics.median(times), min(times), max(times), first, mx.get_peak_memory())

    def memory(self, batch: int, length: int, targets: int, gpu: bool | None = None) -> Memory:
        """The memory predicted for a step, on a GPU or on the CPU; if not given, on the device in use."""
        if self.mode == "training":
            memory = training_memory(self.config, length, batch, targets, self.segment, self.model)
        else:
            memory = forward_memory(self.config, length, batch, targets, self.model)
        fused = self.mode == "training" and self.model == "recurrent" and self.config.dtype == "float32"
        if gpu is None and fused and kernels.available():
            return kernel_memory(self.config, length, batch, targets, self.segment)
        gpu = mx.default_device() == mx.gpu if gpu is None else gpu
        if not gpu:
            return memory
        blocks = None if self.model == "regular" else self.segment or -(-length // self.config.block)
        work = self.work(batch, length, targets)
        return memory.on_gpu(work, self.mode == "training", blocks, self.model, self.config.dtype)

    def executed(self, batch: int, length: int, targets: int) -> int:
        """Multiply-adds in the matrix products of a step."""
        if self.mode == "training":
            return batch * training_ops(self.config, length, targets, self.model, self.segment)
        return batch * executed_ops(self.config, length, self.model, targets, segment=PIECE)

    def work(self, batch: int, length: int, targets: int) -> Work:
        """What a step launches, multiplies and moves by plain operations; fused kernels launch and move less.

        Its graph is linear in the number of segments once there are a first, a middle and a last one, and linear
        in the batch from 2 on (at 1 some sums are no work). So small ones are walked, and the rest is arithmetic.
        """
        unit, spare = self._spare(length, targets)
        short, whole = length - spare * unit, targets == length

        def at(batch: int) -> Work:
            one = self._walk(batch, short, short if whole else targets)
            if not spare:
                return one
            return _line(one, self._walk(batch, short + unit, short + unit if whole else targets), spare)

        return at(batch) if batch <= 2 else _line(at(2), at(3), batch - 2)

    def _spare(self, length: int, targets: int) -> tuple[int, int]:
        """Tokens of a segment, and how many segments of ``length`` repeat the one before."""
        blocks = PIECE if self.mode == "forward" else self.segment
        if self.model == "regular" or blocks is None or length > targets > blocks * self.config.block:
            return length, 0
        unit = blocks * self.config.block
        return unit, max(length // unit - 3, 0)

    @functools.cache  # noqa: B019 (trials are few)
    def _walk(self, batch: int, length: int, targets: int) -> Work:
        return walk(self._step(), *self._data(batch, length, targets))

    def _data(self, batch: int, length: int, targets: int) -> tuple[mx.array, mx.array]:
        tokens = mx.random.randint(0, self.config.vocab_size, (batch, length), key=mx.random.key(batch))
        return tokens, tokens[:, :targets] % self.config.outputs

    def _step(self) -> Callable[[mx.array, mx.array], None]:
        """A function of (tokens, targets): forward pass or training step of a model with fresh weights."""
        model = MODELS[self.model](self.config)
        model.train(self.mode == "training")
        optimizer = make_optimizer(self.optimizer, model)
        mx.eval(model.parameters(), optimizer.state)

        def train(tokens: mx.array, targets: mx.array) -> None:
            loss, gradients = loss_and_grad(model, tokens, targets, self.segment, key=mx.random.key(0))
            apply_gradients(model, optimizer, gradients, self.optimizer.clip)
            mx.eval(model.parameters(), optimizer.state, loss)

        def forward(tokens: mx.array, targets: mx.array) -> None:
            for logits in piecewise(model, lambda start, end: tokens[:, start:end], tokens.shape[1], targets.shape[1]):
                mx.eval(logits)

        return train if self.mode == "training" else forward


def _line(one: Work, two: Work, further: int) -> Work:
    """Where a line through ``one`` and ``two`` is ``further`` steps after ``one``."""
    return Work(*(a + further * (b - a) for a, b in zip(one, two, strict=True)))
