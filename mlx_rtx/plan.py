"""Predict the memory and time of a training run: ``python -m mlx_rtx.plan copy --memory 16GB``.

Nothing is trained. Memory is predicted from the settings; time is extrapolated from a few short steps on this machine,
or, for another machine, estimated from published measurements. With --verify, whole steps are run and compared with the
prediction. Without a task, ``python -m mlx_rtx.plan --machine m4`` prints the time of each default recipe.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from typing import Literal

from mlx_rtx.forecast.machines import MACHINES, Machine
from mlx_rtx.forecast.memory import WITHIN, Memory
from mlx_rtx.forecast.planner import LARGEST_BATCH, USABLE, Planner
from mlx_rtx.forecast.recipe_times import SOLVED, Range, recipe_times
from mlx_rtx.model.registry import parameter_count
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.parsing import parse, parse_subcommand
from mlx_rtx.training.curriculum import CurriculumConfig
from mlx_rtx.training.recipes import recipes_by_task
from mlx_rtx.training.settings import RunConfig

PROGRAM = "python -m mlx_rtx.plan"
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """Flags of the command itself; all others are those of a training run."""

    settings: RunConfig
    memory: str | None = None
    """Memory of the machine, such as 16GB, of which a run may use two thirds; None: this machine's memory."""
    machine: Literal["this", "m4"] = "this"
    """Machine to plan for: this one, on which steps are timed, or another, with times from published measurements."""
    recipe: Literal["default", "paper"] = "default"
    """Source of the other flags' defaults: the settings that gave the best results, or the paper's."""
    verify: bool = False
    """Run whole steps on this machine and compare their peak memory with the prediction.
    A difference above 15 % (on a GPU: from the predicted range) gives exit code 1."""

    def __post_init__(self):
        here = self.machine == "this"
        require(here or not self.verify, f"machine={self.machine}: only this machine can be verified; drop one of them")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Print how long each default recipe takes on another machine."""

    machine: Literal["m4"]
    """Machine to estimate for."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, and print what fits into memory and how long it takes."""
    if arguments and arguments[0].startswith("--machine"):
        overview(MACHINES[parse(Overview, arguments, PROGRAM).machine])
        return
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--recipe", default="default")
    try:
        recipe = first.parse_known_args(arguments)[0].recipe
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    recipes = recipes_by_task(recipe)
    choices = {task: (own.task.summary, PlanCommand(settings=own)) for task, own in recipes.items()}
    command = parse_subcommand(choices, arguments, PROGRAM, __doc__ or "")
    machine = MACHINES.get(command.machine)
    planner = Planner(command.settings, machine)
    there = machine.memory if machine else 1e9 * backend.memory_gb()
    size = size_in_bytes(command.memory) if command.memory else there
    proposal = planner.proposal(USABLE * size)
    if proposal is None:
        raise UserError(
            f"memory={gigabytes(size)}: not even one sequence fits into two thirds of it; use a smaller --dim"
        )
    introduce(planner, size, machine)
    table(planner, USABLE * size)
    batch, segment = proposal
    print_memory(planner, batch, segment)
    seconds = print_time(planner, batch, segment, machine)
    if command.verify:
        verify(planner, batch, segment, seconds)


def overview(machine: Machine) -> None:
    """Print one line per recipe."""
    print(f"machine: {machine.description}; estimates from {machine.source}")
    print("default recipes including validations, with plain operations instead of fused kernels")
    print(f"{'recipe':16} {'samples':>9} {'tokens each':>11} {'step':>16} {'total':>16}")
    for row in recipe_times(machine):
        solved = " (until solved, on other machines)" if row.task in SOLVED else ""
        print(
            f"{row.task:16} {row.samples:>9,} {row.length:>11,} {span(row.step):>16} {span(row.whole):>16}{solved}",
            flush=True,
        )
    print("make train trains copy")


def size_in_bytes(text: str) -> float:
    """Parse a size such as ``16GB`` or ``500 MB`` into bytes; G is 1e9.

    Example:
        >>> size_in_bytes("16GB")
        16000000000.0
    """
    found = re.fullmatch(r"([0-9.]+) *([KMGT]?)I?B?", text.strip().upper())
    try:
        assert found
        size = float(found[1]) * UNITS[found[2]]
        assert size > 0
    except (AssertionError, ValueError):
        raise UserError(f"memory={text}: must be a size such as 16GB") from None
    return size


def introduce(planner: Planner, size: float, machine: Machine | None) -> None:
    """Print the model and the machine."""
    settings, shape = planner.settings, planner.settings.task.shape
    config = settings.model_config(shape)
    print(
        f"model: {settings.model}, {parameter_count(config, settings.model):,} parameters, layers={config.layers} "
        f"dim={config.dim} heads={config.heads} block={config.block} history={config.history} length={shape.length}"
    )
    if machine:
        print(f"machine: {machine.description}; estimates from {machine.source}")
    else:
        print(f"machine: {backend.device()}")
    print(f"memory: {gigabytes(size)}, of which a run may use {gigabytes(USABLE * size)}; all figures are predictions")


def table(planner: Planner, usable: float) -> None:
    """Print one row per segment length."""
    batch = planner.settings.training.batch
    print(f"{'--segment':>9} {f'peak at batch {batch}':>18} {'largest batch':>14}")
    for segment, memory, largest in planner.choices(usable):
        print(f"{segment:>9} {gigabytes(memory.peak):>18} {batch_text(largest):>14}")


def print_memory(planner: Planner, batch: int, segment: int | None) -> None:
    """Print the proposed batch and segment, and their memory by purpose."""
    memory: Memory = planner.memory(batch, segment)
    own = (planner.settings.training.batch, planner.settings.training.segment)
    text = "the run's own settings fit" if (batch, segment) == own else "the run's own settings do not fit; use"
    print(f"{text}: --batch {batch}" + ("" if planner.settings.model == "regular" else f" --segment {segment}"))
    print(
        f"  peak {peak_text(memory)}: weights, gradients and moments {gigabytes(memory.weights)}, "
        f"carries and tokens {gigabytes(memory.carries)}, one segment {gigabytes(memory.segment)}"
        + (f", queued ahead of the GPU up to {gigabytes(memory.queued)}" if memory.queued else "")
        + (f"; during the optimizer's update {gigabytes(memory.optimizer)}" if memory.optimizer == memory.peak else "")
    )


def print_time(planner: Planner, batch: int, segment: int | None, machine: Machine | None) -> float:
    """Print the time of a step and of the run; return the (maximum) seconds of a step."""
    if machine:
        work = planner.work(batch, segment)
        step = machine.seconds(work)
        print(
            f"  a step takes {span(step)}, an estimate: {work.multiply_adds / 1e9:,.1f} G multiply-adds, "
            f"{work.bytes / 1e9:,.1f} GB moved, {work.launches:,} launches"
        )
    else:
        seconds, timed, size = planner.seconds(batch, segment)
        lengths = " and ".join(f"{length:,}" for length in timed)
        how = "from steps timed at" if size == batch else f"from steps with {size:,} sequences timed at"
        print(
            f"  a step takes {seconds:.3g} s"
            + (f", {how} {lengths} tokens" if size else " or more, the time of its matrix products")
        )
        step = seconds, seconds
    samples, length = planner.settings.training.samples, planner.settings.task.shape.length
    whole = samples / batch * step[0], samples / batch * step[1]
    text = span(whole) if machine else duration(whole[0])
    print(f"  {samples:,} samples take {text}, if all have {length:,} tokens")
    if isinstance(planner.settings.progress, CurriculumConfig):
        print("  (a curriculum begins with short ones, and ends when the task is solved)")
    return step[1]


def verify(planner: Planner, batch: int, segment: int | None, seconds: float) -> None:
    """Run whole steps and compare them with the prediction; exit with code 1 if the memory differs too much."""
    timing, predicted = planner.verify(batch, segment), planner.memory(batch, segment)
    off = predicted.ratio(timing.peak_bytes) - 1
    print(f"verified: peak {gigabytes(timing.peak_bytes)}, {off:+.1%} from {peak_text(predicted)}", end="; ")
    print(f"a step {timing.seconds:.3g} s, {timing.seconds / seconds - 1:+.1%}")
    if abs(off) > WITHIN:
        print(f"peak memory differs from the prediction by more than {WITHIN:.0%}", file=sys.stderr)
        sys.exit(1)


def peak_text(memory: Memory) -> str:
    """Format a predicted peak, or its range."""
    return ("" if memory.least == memory.peak else f"{gigabytes(memory.least)} to ") + gigabytes(memory.peak)


def batch_text(batch: int) -> str:
    """Format the largest batch: none if there is none, followed by + if larger ones were not considered."""
    return "none" if not batch else f"{batch:,}" + ("+" if batch == LARGEST_BATCH else "")


def gigabytes(size: float) -> str:
    """Format a size to three digits."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def span(seconds: Range) -> str:
    """Format a range of times in one unit, to two digits.

    Example:
        >>> span((1234.0, 2345.0))
        '21 to 39 min'
    """
    unit, length = next(
        ((unit, length) for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)) if seconds[1] >= 2 * length),
        ("s", 1.0),
    )
    least, most = (float(f"{value / length:.2g}") for value in seconds)
    return f"{least:g} to {most:g} {unit}" if least != most else f"{most:g} {unit}"


def duration(seconds: float) -> str:
    """Format a time in its two largest units."""
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // part:.0f} {below}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    run_command(main)
