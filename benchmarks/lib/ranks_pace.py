"""The speed of a training with several ranks. Each rank runs ``python -m lib.ranks_pace``.

Model, segments and optimizer are those of a task's default recipe. Tokens are random, so the cost of the data is not
included.
"""

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.command import run_command
from mlx_rtx.support.randomness import step_key
from mlx_rtx.support.trees import count
from mlx_rtx.training.joining import join_ranks
from mlx_rtx.training.ranks import ManyRanks, Ranks
from mlx_rtx.training.recipes import RECIPES
from mlx_rtx.training.settings import RunConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx

Scaling = Literal["weak", "strong", "alone"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A training of a task with a number of ranks."""

    task: str
    ranks: int
    rows: int
    """Sequences per step, over all ranks."""
    scaling: Scaling
    """weak: the recipe's batch per rank; strong: the recipe's batch in all; alone: one rank with its share of that."""


@dataclass(frozen=True, kw_only=True)
class Pace(Point):
    """The measured times of a point."""

    seconds: float
    """Seconds per step, the median of the trials."""
    trials: list[float]
    all_sum_seconds: float
    """Seconds of an all-reduce of as many numbers as the gradient has, the median; 0 with one rank."""
    gradients: int
    """Numbers in the gradient, 4 bytes each."""
    loss: float
    """Loss of the last step. Without dropout it does not depend on the number of ranks if ``rows`` is the same."""

    @property
    def samples_per_s(self) -> float:
        """Sequences per second, over all ranks."""
        return self.rows / self.seconds


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Number of repetitions."""

    trials: int = 5
    steps: int = 4
    """Steps per trial."""
    warm_up: int = 2
    exchanges: int = 30
    small: bool = False
    """Use tiny sizes, to test that everything works."""


def points(task: str, sizes: list[int], rows: int) -> list[Point]:
    """Return the points to measure of a task with ``rows`` sequences per step; the least important ones come last."""
    more = [n for n in sizes if n > 1 and rows % n == 0]
    found = [Point(task=task, ranks=1, rows=rows, scaling="strong")]
    for n in more:
        found.append(Point(task=task, ranks=n, rows=rows, scaling="strong"))
        found.append(Point(task=task, ranks=n, rows=rows * n, scaling="weak"))
    return found + [Point(task=task, ranks=1, rows=rows // n, scaling="alone") for n in more]


def settings_of(task: str, small: bool) -> tuple[RunConfig, ModelConfig]:
    """Return the default recipe and its model configuration, or a tiny variant of both."""
    recipe = RECIPES[task]["default"]
    if small:
        architecture = replace(recipe.architecture, dim=12, heads=2, block=8, positions="block")
        recipe = replace(recipe, architecture=architecture, training=replace(recipe.training, batch=8))
    shape = recipe.task.shape
    config = ModelConfig(
        **asdict(recipe.architecture),
        vocab_size=shape.vocab_size,
        max_len=64 if small else shape.length,
        out_size=shape.out_size,
    )
    return recipe, config


class Training:
    """Training steps of a point, each on the same random batch."""

    def __init__(self, point: Point, ranks: Ranks, small: bool):
        self.recipe, config = settings_of(point.task, small)
        mx.random.seed(0)
        self.model = MODELS[self.recipe.model](config)
        self.step = TrainingStep(self.model, self.recipe.optimizer, self.recipe.training.segment, ranks=ranks)
        key, shape = mx.random.key(1), (point.rows, min(self.recipe.task.shape.targets, config.max_len))
        self.tokens = mx.random.randint(0, config.vocab_size, (point.rows, config.max_len), key=key)
        self.targets = mx.random.randint(0, config.outputs, shape, key=key)
        self.done, self.loss = 0, mx.array(0.0)
        mx.eval(self.tokens, self.targets, self.model.parameters(), self.step.state)

    def take(self, steps: int) -> float:
        """Take some steps and return the seconds per step."""
        began = time.perf_counter()
        for _ in range(steps):
            key = step_key(0, self.done, "dropout")
            self.loss = self.step.take(self.tokens, self.targets, self.recipe.optimizer.lr, key).loss
            self.done += 1
        mx.eval(self.model.parameters(), self.step.state)
        return (time.perf_counter() - began) / steps


def measure(point: Point, ranks: Ranks, effort: Effort) -> Pace:
    """Time training steps, and then the all-reduce alone."""
    training = Training(point, ranks, effort.small)
    training.take(effort.warm_up)
    trials = [training.take(effort.steps) for _ in range(effort.trials)]
    size = count(training.model.trainable_parameters())
    alone = exchange(ranks, size, effort.exchanges)
    return Pace(
        **asdict(point), seconds=statistics.median(trials), trials=trials, all_sum_seconds=alone, gradients=size,
        loss=float(training.loss),
    )  # fmt: skip


def exchange(ranks: Ranks, size: int, times: int) -> float:
    """Return the median seconds of an all-reduce of ``size`` numbers."""
    if not isinstance(ranks, ManyRanks):
        return 0.0
    numbers, found = mx.zeros(size), []
    mx.eval(numbers)
    for _ in range(times):
        began = time.perf_counter()
        mx.eval(mx.distributed.all_sum(numbers, group=ranks.group))
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def parts_of(ranks: Ranks, sizes: list[int]) -> dict[int, Ranks | None]:
    """Return for each size a group of the first ranks, or None on ranks outside of it.

    Sizes that the backend cannot make are missing: the ring raises RuntimeError, because it cannot split groups.
    """
    found: dict[int, Ranks | None] = {1: Ranks() if ranks.first else None}
    for n in sizes:
        if n == ranks.size and n > 1:
            found[n] = ranks
        elif 1 < n < ranks.size and isinstance(ranks, ManyRanks):
            try:
                part = ranks.group.split(int(ranks.rank >= n))
            except RuntimeError as error:
                print(json.dumps({"left_out": f"{n} ranks as a part of {ranks.size}: {error}"}), flush=True)
                continue
            found[n] = ManyRanks(part) if ranks.rank < n else None
    return found


def paces(ranks: Ranks, todo: list[Point], effort: Effort, seconds: float) -> Iterator[Pace]:
    """Measure one point after the other while there is time, by the first rank's clock."""
    end = time.perf_counter() + seconds
    parts, ready = parts_of(ranks, sorted({point.ranks for point in todo})), set()
    for point in todo:
        if point.ranks not in parts:
            continue
        if point.task not in ready:  # all ranks build their kernels at the same time
            ready.add(point.task)
            for rows in {other.rows // other.ranks for other in todo if other.task == point.task}:
                Training(replace(point, rows=rows), Ranks(), effort.small).take(1)
        go_on = ranks.broadcast({"go_on": mx.array(float(time.perf_counter() < end))})["go_on"]
        if not go_on.item():  # ranks outside of the last group wait here for those that measured
            print(json.dumps({"left_out": f"{point}: no time was left"}), flush=True)
            continue
        part = parts[point.ranks]
        if part is not None:
            yield measure(point, part, effort)


def main(arguments: list[str]) -> None:
    """Read points, effort and seconds as JSON, and print one line of JSON per point."""
    asked = json.loads(arguments[0])
    todo, effort = [Point(**point) for point in asked["points"]], Effort(**asked["effort"])
    with join_ranks() as ranks:
        for pace in paces(ranks, todo, effort, asked["seconds"]):
            print(json.dumps({"pace": asdict(pace)}), flush=True)


if __name__ == "__main__":
    run_command(main)
