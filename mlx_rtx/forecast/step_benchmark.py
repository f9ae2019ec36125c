"""Steps of a model on random tokens: their time, memory and work, measured or predicted, for benchmarks and `plan`."""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlx_rtx import kernels
from mlx_rtx.forecast.extrapolation import Step, from_short_steps, line
from mlx_rtx.forecast.graph import CountedExecution, Work, count_work
from mlx_rtx.forecast.memory import Memory, forward_memory, kernel_memory, training_memory
from mlx_rtx.forecast.operations import executed_ops, training_ops
from mlx_rtx.model.base import Implementation, Transformer
from mlx_rtx.model.config import ModelConfig, ModelKind
from mlx_rtx.model.registry import MODELS
from mlx_rtx.training.evaluation import SEGMENT, iter_logits
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx

Mode = Literal["forward", "training"]
WALKED = 48  # blocks up to which the graph of a step is traversed as a whole


@dataclass(frozen=True)
class StepTiming:
    """Times of a step in seconds, and its peak memory."""

    seconds: float
    """Median time."""
    fastest: float
    slowest: float
    first: float
    """Time of the first call, including compilation."""
    peak_bytes: int


@dataclass(frozen=True)
class StepBenchmark:
    """Forward passes by segments, as in `evaluate`, or training steps of a model.

    Example:
        >>> benchmark = StepBenchmark(ModelConfig(vocab_size=16, max_len=64, dim=8, heads=2, block=4))
        >>> timing = benchmark.measure(batch=2, length=64, targets=16)
    """

    config: ModelConfig
    model: ModelKind = "recurrent"
    mode: Mode = "training"
    segment: int | None = 8
    """Blocks per segment of the gradient checkpointing; None for the whole sequence."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def measure(self, batch: int, length: int, targets: int, repeats: int = 5, shortest: float = 0.3) -> StepTiming:
        """Time steps on ``batch`` sequences of ``length`` tokens whose last ``targets`` positions have targets.

        Args:
            batch, length, targets: sizes.
            repeats: minimum number of timings after the first call.
            shortest: minimum total seconds of these timings.
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
        return StepTiming(statistics.median(times), min(times), max(times), first, mx.get_peak_memory())

    def memory(self, batch: int, length: int, targets: int, gpu: bool | None = None) -> Memory:
        """Predict the memory of a step on a GPU or on the CPU; default: the device in use."""
        if self.mode == "training":
            memory = training_memory(self.config, length, batch, targets, self.segment, self.model)
        else:
            memory = forward_memory(self.config, length, batch, targets, self.model)
        fused = self.mode == "training" and self.model == "recurrent" and self.config.fusible
        if gpu is None and fused and kernels.available():
            return kernel_memory(self.config, length, batch, targets, self.segment)
        gpu = mx.default_device() == mx.gpu if gpu is None else gpu
        if not gpu:
            return memory
        blocks = None if self.model == "regular" else self.segment or -(-length // self.config.block)
        work = self.work(batch, length, targets)
        return memory.on_gpu(work, self.mode == "training", blocks, self.model, self.config.dtype)

    def executed(self, batch: int, length: int, targets: int) -> int:
        """Return the multiply-adds in the matrix products of a step."""
        if self.mode == "training":
            return batch * training_ops(self.config, length, targets, self.model, self.segment)
        return batch * executed_ops(self.config, length, self.model, targets, segment=SEGMENT)

    def work(self, batch: int, length: int, targets: int) -> Work:
        """Return the work of a step with plain operations; fused kernels launch and move less.

        Work is linear in the number of segments if there are at least three, linear in the batch from 2 on (at 1 some
        sums need no operation), and almost linear in the number of layers. Therefore small graphs are traversed and the
        rest is extrapolated. This is exact, except for many layers and for very long steps (see `extrapolation`).
        """

        def at(layers: int, batch: int) -> Work:
            benchmark = replace(self, config=replace(self.config, layers=layers))
            return benchmark._of_few_layers(batch, length, targets)

        return line(lambda batch: line(lambda layers: at(layers, batch), self.config.layers, 1), batch, 2)

    def _of_few_layers(self, batch: int, length: int, targets: int) -> Work:
        """Return `work` for a small batch and few layers."""
        unit, spare = self._spare(length, targets)
        walked, whole = length - spare * unit, targets == length
        if self.mode == "training" and self.model == "recurrent" and walked > WALKED * self.config.block:
            step = Step(length, targets, self.segment or -(-length // self.config.block))
            return from_short_steps(
                lambda short: replace(self, segment=short.segment).count(batch, short.length, short.targets),
                self.config,
                step,
            )

        def at(spare: int) -> Work:
            short = walked + spare * unit
            return self.count(batch, short, short if whole else targets)

        return line(at, spare, 0)

    def _spare(self, length: int, targets: int) -> tuple[int, int]:
        """Return the tokens per segment, and how many segments of ``length`` repeat the previous one."""
        blocks = SEGMENT if self.mode == "forward" else self.segment
        if self.model == "regular" or blocks is None:
            return length, 0
        unit = blocks * self.config.block
        read = 1 if targets == length else -(-targets // unit)  # segments that differ because they have outputs
        return unit, max(length // unit - 2 - read, 0)

    @functools.cache  # noqa: B019 (benchmarks are few)
    def count(self, batch: int, length: int, targets: int) -> Work:
        """Return `work` by traversing the whole step, segment by segment."""
        tokens, classes = self._data(batch, length, targets)
        execution, model = CountedExecution(_walked(self.config, self.model, self.mode)), self._model("exportable")
        if self.mode == "forward":
            for _ in iter_logits(model, lambda start, end: tokens[:, start:end], length, targets, execution):
                pass
            return execution.work
        step = TrainingStep(model, self.optimizer, self.segment, execution=execution)
        parameters, state = model.trainable_parameters(), step.optimizer.state
        step.take(tokens, classes, self.optimizer.lr, mx.random.key(0))  # counts everything except the optimizer

        def update(parameters: dict, state: dict, gradients: dict) -> tuple:
            model.update(parameters)
            step.optimizer.state = state
            taken, _ = apply_gradients(model, step.optimizer, gradients, self.optimizer)
            return taken, model.trainable_parameters(), step.optimizer.state

        return execution.work.plus(count_work(update, parameters, state, parameters))

    def _data(self, batch: int, length: int, targets: int) -> tuple[mx.array, mx.array]:
        tokens = mx.random.randint(0, self.config.vocab_size, (batch, length), key=mx.random.key(batch))
        return tokens, tokens[:, :targets] % self.config.outputs

    def _model(self, implementation: Implementation) -> Transformer:
        """Return a new model, whose weights are not evaluated: counting does not need them."""
        model = MODELS[self.model](self.config, implementation)
        model.train(self.mode == "training")
        return model

    def _step(self) -> Callable[[mx.array, mx.array], None]:
        """Return a function of (tokens, targets) that runs a forward pass or training step and waits for it."""
        model = self._model("auto")
        step = TrainingStep(model, self.optimizer, self.segment)
        mx.eval(model.parameters(), step.optimizer.state)

        def train(tokens: mx.array, targets: mx.array) -> None:
            step.take(tokens, targets, self.optimizer.lr, mx.random.key(0))
            mx.eval(model.parameters(), step.optimizer.state)

        def forward(tokens: mx.array, targets: mx.array) -> None:
            for logits in iter_logits(
                model, lambda start, end: tokens[:, start:end], tokens.shape[1], targets.shape[1]
            ):
                mx.eval(logits)

        return train if self.mode == "training" else forward


@functools.cache
def _walked(config: ModelConfig, model: ModelKind, mode: Mode) -> dict[Any, tuple[Work, Any]]:
    """Return the cache of traversed functions for a configuration."""
    return {}
