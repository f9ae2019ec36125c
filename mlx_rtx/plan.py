"""Plan what fits into a memory, and how long a run takes: ``python -m mlx_rtx.plan copy --memory 16GB``.

Nothing is trained. Memory is predicted from the settings, time from a few short steps on this machine or, for one
that is not at hand, estimated from its published figures. With --verify one whole step is run to hold the prediction
to. Without a task, ``python -m mlx_rtx.plan --machine m4``, it says how long each default recipe takes.
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
    """Settings of the command itself; all others are those of a training run."""

    settings: RunConfig
    memory: str | None = None
    """Memory of the machine, such as 16GB, of which a run is planned into two thirds; this machine's if not given."""
    machine: Literal["this", "m4"] = "this"
    """Machine to plan for: this one, where steps are timed, or one not at hand, by its published figures."""
    recipe: Literal["default", "paper"] = "default"
    """Where the other flags' defaults come from."""
    verify: bool = False
    """Run whole steps on this machine, and end with code 1 if memory is off by more than 15 % from the prediction,
    or on a GPU from its range."""

    def __post_init__(self):
        at_hand = self.machine == "this"
        require(at_hand or not self.verify, f"machine={self.machine}: is not at hand to verify; drop one of the two")


@dataclass(frozen=True, kw_only=True)
class Overview:
    """How long each default recipe takes."""

    machine: Literal["m4"]
    """Machine, one that is not at hand."""


def main(arguments: list[str]) -> None:
    """Say what fits, what it takes and how long."""
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
    say_memory(planner, batch, segment)
    seconds = say_time(planner, batch, segment, machine)
    if command.verify:
        verify(planner, batch, segment, seconds)


def overview(machine: Machine) -> None:
    """Print a line a recipe."""
    print(f"machine: {machine.description}: not at hand; estimates from {machine.source}")
    print("default recipes, with their validations, by plain operations")
    print(f"{'recipe':16} {'samples':>9} {'of tokens':>10} {'a step':>16} {'in all':>16}")
    for row in recipe_times(machine):
        solved = " (until solved, as elsewhere)" if row.task in SOLVED else ""
        print(
            f"{row.task:16} {row.samples:>9,} {row.length:>10,} {span(row.step):>16} {span(row.whole):>16}{solved}",
            flush=True,
        )
    print("make train trains copy")


def size_in_bytes(text: str) -> float:
    """Bytes that a size such as ``16GB`` or ``500 MB`` names; G is 1e9.

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
    """Say what is planned for what."""
    settings, shape = planner.settings, planner.settings.task.shape
    config = settings.model_config(shape)
    print(
        f"model: {settings.model}, {parameter_count(config, settings.model):,} parameters, layers={config.layers} "
        f"dim={config.dim} heads={config.heads} block={config.block} history={config.history} length={shape.length}"
    )
    if machine:
        print(f"machine: {machine.description}: not at hand; estimates from {machine.source}")
    else:
        print(f"machine: {backend.device()}")
    print(f"memory: {gigabytes(size)}, of which a run may take {gigabytes(USABLE * size)}; all figures are predictions")


def table(planner: Planner, usable: float) -> None:
    """Print a row a segment length."""
    batch = planner.settings.training.batch
    print(f"{'--segment':>9} {f'peak at batch {batch}':>18} {'largest batch':>14}")
    for segment, memory, largest in planner.choices(usable):
        print(f"{segment:>9} {gigabytes(memory.peak):>18} {most(largest):>14}")


def say_memory(planner: Planner, batch: int, segment: int | None) -> None:
    """Print the proposal, and what its memory is for."""
    memory: Memory = planner.memory(batch, segment)
    own = (planner.settings.training.batch, planner.settings.training.segment)
    text = "the run's own settings fit" if (batch, segment) == own else "the run's own settings do not fit; use"
    print(f"{text}: --batch {batch}" + ("" if planner.settings.model == "regular" else f" --segment {segment}"))
    print(
        f"  peak {between(memory)}: weights, gradients and moments {gigabytes(memory.weights)}, "
        f"carries and tokens {gigabytes(memory.carries)}, one segment {gigabytes(memory.segment)}"
        + (f", queued ahead of the GPU up to {gigabytes(memory.queued)}" if memory.queued else "")
        + (f"; at the optimizer's step {gigabytes(memory.optimizer)}" if memory.optimizer == memory.peak else "")
    )


def say_time(planner: Planner, batch: int, segment: int | None, machine: Machine | None) -> float:
    """Print the seconds of a step and of the run; return the former, or the most that they may be."""
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
        how = "by steps timed at" if size == batch else f"by steps of {size:,} sequences timed at"
        print(
            f"  a step takes {seconds:.3g} s" + (f", {how} {lengths} tokens" if size else " or more, for its products")
        )
        step = seconds, seconds
    samples, length = planner.settings.training.samples, planner.settings.task.shape.length
    whole = samples / batch * step[0], samples / batch * step[1]
    text = span(whole) if machine else duration(whole[0])
    print(f"  {samples:,} samples take {text}, if all are of {length:,} tokens")
    if isinstance(planner.settings.progress, CurriculumConfig):
        print("  (a curriculum begins with short ones, and ends when the task is solved)")
    return step[1]


def verify(planner: Planner, batch: int, segment: int | None, seconds: float) -> None:
    """Run whole steps and compare; end with code 1 where the memory is off."""
    timing, predicted = planner.verify(batch, segment), planner.memory(batch, segment)
    off = predicted.ratio(timing.peak_bytes) - 1
    print(f"verified: peak {gigabytes(timing.peak_bytes)}, {off:+.1%} off {between(predicted)}", end="; ")
    print(f"a step {timing.seconds:.3g} s, {timing.seconds / seconds - 1:+.1%}")
    if abs(off) > WITHIN:
        print(f"the prediction of memory is off by more than {WITHIN:.0%}", file=sys.stderr)
        sys.exit(1)


def between(memory: Memory) -> str:
    """A predicted peak, or its range where it is one."""
    return ("" if memory.least == memory.peak else f"{gigabytes(memory.least)} to ") + gigabytes(memory.peak)


def most(batch: int) -> str:
    """The largest batch, in words where there is none, or none that was looked at."""
    return "none" if not batch else f"{batch:,}" + ("+" if batch == LARGEST_BATCH else "")


def gigabytes(size: float) -> str:
    """A size to three digits."""
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def span(seconds: Range) -> str:
    """A range of times in one unit, to two digits.

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
    """A time in the two units that matter."""
    for unit, length, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} {seconds % length // part:.0f} {below}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    run_command(main)
