"""How long the default recipes take on a machine that is not at hand, from least to most: estimates."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_rtx.forecast.machines import Machine
from mlx_rtx.forecast.step_benchmark import Mode, StepBenchmark
from mlx_rtx.training.recipes import RECIPES
from mlx_rtx.training.settings import RunConfig


@dataclass(frozen=True)
class Solved:
    """When a curriculum ended: about what the three seeds of results/table4 took on average."""

    samples: int
    length: int
    """Tokens of a sample, on average: most are of early stages."""


SOLVED = {"copy": Solved(4_053, 1_258), "selective-copy": Solved(660_267, 1_525)}


HELD_OUT = {"image": 5_000, "text": 436}  # sequences of a validation that takes all there are

Range = tuple[float, float]


@dataclass(frozen=True)
class RecipeTime:
    """A recipe and its estimated time. What fused kernels bring is not counted."""

    task: str
    samples: int
    length: int
    """Tokens of a sample, on average."""
    step: Range
    """Seconds of a step at full length."""
    whole: Range
    """Seconds of all samples, validations included."""


def recipe_times(machine: Machine) -> Iterator[RecipeTime]:
    """A line for each default recipe of a task of the paper: one that ends when it is solved, by when it was here."""
    for task in (task for task, recipes in RECIPES.items() if "paper" in recipes):
        settings = RECIPES[task]["default"]
        full = settings.task.shape.length
        end = SOLVED.get(task, Solved(settings.training.samples, full))
        step, scored = _seconds(settings, machine, "training"), _seconds(settings, machine, "forward")
        steps, scorings = end.samples / settings.training.batch, _scorings(task, settings, end.samples)
        least, most = ((steps * a + scorings * b) * end.length / full for a, b in zip(step, scored, strict=True))
        yield RecipeTime(task, end.samples, end.length, step, (least, most))


def _seconds(settings: RunConfig, machine: Machine, mode: Mode) -> Range:
    """Of a training step at full length, or of a forward pass of as many sequences."""
    shape, training = settings.task.shape, settings.training
    benchmark = StepBenchmark(settings.model_config(shape), settings.model, mode, training.segment, settings.optimizer)
    sizes = training.batch, shape.length, shape.targets
    return machine.seconds(benchmark.work(*sizes)._replace(multiply_adds=benchmark.executed(*sizes)))


def _scorings(task: str, settings: RunConfig, samples: int) -> float:
    """How many batches validations score until so many samples: the weights, and their average if there is one."""
    training = settings.training
    validations = samples / training.batch / training.validate_every
    scored = training.validate_samples or HELD_OUT[task]
    return validations * scored / training.batch * (2 if settings.optimizer.average else 1)
