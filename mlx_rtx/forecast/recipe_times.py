"""Estimated times of the default recipes on another machine, as ranges."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_rtx.forecast.machines import Machine
from mlx_rtx.forecast.step_benchmark import Mode, StepBenchmark
from mlx_rtx.training.recipes import RECIPES
from mlx_rtx.training.settings import RunConfig


@dataclass(frozen=True)
class Solved:
    """Approximate end of a curriculum, as a mean over the three seeds in results/table4."""

    samples: int
    length: int
    """Mean length of a sample in tokens; most samples are of early stages."""


SOLVED = {"copy": Solved(4_053, 1_258), "selective-copy": Solved(660_267, 1_525)}


HELD_OUT = {"image": 5_000, "text": 436}  # number of sequences of a validation on all held-out sequences

Range = tuple[float, float]


@dataclass(frozen=True)
class RecipeTime:
    """A recipe and its estimated time without fused kernels."""

    task: str
    samples: int
    length: int
    """Mean length of a sample in tokens."""
    step: Range
    """Seconds of a step at full length."""
    whole: Range
    """Seconds of all samples, including validations."""


def recipe_times(machine: Machine) -> Iterator[RecipeTime]:
    """Yield the time of each default recipe of a task of the paper; curricula end at the samples in `SOLVED`."""
    for task in (task for task, recipes in RECIPES.items() if "paper" in recipes):
        settings = RECIPES[task]["default"]
        full = settings.task.shape.length
        end = SOLVED.get(task, Solved(settings.training.samples, full))
        step, scored = _seconds(settings, machine, "training"), _seconds(settings, machine, "forward")
        steps, scorings = end.samples / settings.training.batch, _scorings(task, settings, end.samples)
        least, most = ((steps * a + scorings * b) * end.length / full for a, b in zip(step, scored, strict=True))
        yield RecipeTime(task, end.samples, end.length, step, (least, most))


def _seconds(settings: RunConfig, machine: Machine, mode: Mode) -> Range:
    """Return the seconds of a training step at full length, or of a forward pass with the same batch."""
    shape, training = settings.task.shape, settings.training
    benchmark = StepBenchmark(settings.model_config(shape), settings.model, mode, training.segment, settings.optimizer)
    sizes = training.batch, shape.length, shape.targets
    return machine.seconds(benchmark.work(*sizes)._replace(multiply_adds=benchmark.executed(*sizes)))


def _scorings(task: str, settings: RunConfig, samples: int) -> float:
    """Return how many batches are scored in validations of ``samples`` samples, including the averaged weights."""
    training = settings.training
    validations = samples / training.batch / training.validate_every
    scored = training.validate_samples or HELD_OUT[task]
    return validations * scored / training.batch * (2 if settings.optimizer.average else 1)
