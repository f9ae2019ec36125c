"""Train a recurrent transformer from scratch: ``python -m mlx_rtx.train copy --noise 4096``."""

import argparse
import contextlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlx_rtx.forecast.memory_check import require_training_memory
from mlx_rtx.kernel_check import decide
from mlx_rtx.support import backend
from mlx_rtx.support.backend import DeviceName
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.parsing import parse_subcommand, read_config_file
from mlx_rtx.support.trees import count
from mlx_rtx.tasks import Data
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.joining import join_ranks, rank_folder, rank_settings
from mlx_rtx.training.log import line
from mlx_rtx.training.ranks import Ranks
from mlx_rtx.training.recipes import recipes_by_task
from mlx_rtx.training.settings import RunConfig
from mlx_rtx.training.stored_settings import from_stored, to_stored
from mlx_rtx.training.tracking import make_tracker
from mlx_rtx.training.trainer import Trainer

PROGRAM = "python -m mlx_rtx.train"
CHANGEABLE = ("samples", "report_every", "test_samples", "data", "validation", "tracker")  # may change with --resume


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of the command line."""

    settings: RunConfig
    out: Path
    """Run folder to write to."""
    resume: bool = False
    """Resume the run in --out bit-exactly, with its stored settings."""
    recipe: Literal["default", "paper"] = "default"
    """Source of the other flags' defaults: the settings that gave the best results, or the paper's."""
    config: Path | None = None
    """TOML file with lines such as noise = 4096; flags override it."""
    device: DeviceName | None = None
    """Device to train on; None: the GPU if there is one."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, train, and print the result; with mlx.launch, as one of several ranks."""
    with join_ranks() as ranks, contextlib.ExitStack() as held:
        with ranks.fail_together():
            out, resume = read_out(arguments)
        folder = held.enter_context(rank_folder(ranks, out, resume))
        with ranks.fail_together():
            command, task = read_command(arguments if ranks.first else [*arguments, f"--out={folder.path}"])
            backend.use_device(command.device)
            settings = command.settings
            share = rank_settings(ranks, settings)
            data = settings.task.load(folder.vocabulary() if command.resume else None)
            require_training_memory(share, data)
            held.enter_context(folder.locked())
            before = resumed_config(folder, data) if command.resume else None
            if before is None:
                folder.require_new()
            trainer = Trainer(settings, data, folder, before is not None and folder.has_begun(), ranks)
        ended = trainer.done
        again = f"{PROGRAM} {task} --out {out} --resume"
        if not ended:
            with ranks.fail_together():
                decision = decide(
                    settings.model, settings.architecture, share.training.batch, kept_kernels(before), say=print
                )
                stored, tracker = to_stored(task, settings, data), settings.training.tracker
                update_config(folder, before, {**stored, "kernels": decision.stored}, data, ranks)
                if tracker and ranks.first:
                    trainer.log.tracker = make_tracker(tracker, folder.path, stored)
            ranks.remedy = f"resume with: {again}"
            with decision.at_work():
                introduce(task, command, trainer, decision.text)
                try:
                    ended = trainer.fit() is not None
                finally:
                    trainer.log.close()
        print_end(trainer, ended, again)


def print_end(trainer: Trainer, ended: bool, again: str) -> None:
    """Print how a training ended, and the command that resumes it."""
    if not ended:
        print(f"stopped and saved at step {trainer.step}; resume with: {again}")
    elif trainer.progress.exhausted:
        waited = trainer.progress.waited
        print(f"no better weights in {waited} validations: ended early; the best weights are in {trainer.folder.model}")
    elif trainer.finished:
        print(f"solved after {trainer.samples:,} samples; the best weights are in {trainer.folder.model}")
    else:
        best = trainer.folder.model
        print(f"samples used up; the best weights are in {best}; continue with: {again} --samples N")


def resumed_config(folder: RunFolder, data: Data) -> dict:
    """Return the ``config.json`` of a run to resume; raise UserError if it was trained on other data."""
    config = folder.read_config()
    made_with = config["data"]["sha256"]
    require(made_with == data.fingerprint, f"--data: {folder.path} was trained on other data; pass the original data")
    return config


def kept_kernels(config: dict | None) -> dict | None:
    """Return the entry of a ``config.json`` about the kernels that the run began with, None if absent."""
    kept = (config or {}).get("kernels")
    return kept if isinstance(kept, dict) and {"key", "form"} <= kept.keys() else None


def update_config(folder: RunFolder, before: dict | None, now: dict, data: Data, ranks: Ranks) -> None:
    """Write ``config.json``: for a new run with its environment, for a resumed run if a setting has changed."""
    if before is None:
        folder.begin({**now, "environment": backend.environment() | ranks.described}, data.vocabulary)
    elif (changed := {**before, **now}) != before:
        folder.write_config(changed)


def read_out(arguments: list[str]) -> tuple[Path, bool]:
    """Return the run folder and whether to resume its run, before all other arguments are parsed."""
    early, _ = _read_early(arguments)
    return Path(early.out or default_out(arguments[0] if arguments else "")), early.resume


def default_out(task: str) -> Path:
    """Return the default run folder."""
    return Path("runs", task)


def _read_early(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the flags that determine the other flags' defaults; return them and the arguments from a config file."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--recipe", default="default")
    first.add_argument("--config", type=Path)
    try:
        early, _ = first.parse_known_args(arguments)
        from_file = read_config_file(early.config) if early.config else []
        early, _ = first.parse_known_args([*from_file, *arguments])
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    return early, from_file


def read_command(arguments: list[str]) -> tuple[Arguments, str]:
    """Return the parsed arguments and the task's name.

    Defaults come from the recipe or, with --resume, from the run folder; a config file overrides them, and flags
    override both.
    """
    early, from_file = _read_early(arguments)
    choices = {
        task: (settings.task.summary, Arguments(settings=settings, out=default_out(task)))
        for task, settings in recipes_by_task(early.recipe).items()
    }
    task = arguments[0] if arguments else ""
    if task in choices and early.resume:
        description, command = choices[task]
        folder = RunFolder(early.out or command.out)
        made_for, stored = from_stored(folder.read_config())
        require(made_for == task, f"--out {folder.path}: holds a run of {made_for}, not of {task}; choose another")
        choices[task] = description, replace(command, settings=stored, out=folder.path)
    try:
        given = parse_subcommand(choices, [*arguments[:1], *from_file, *arguments[1:]], PROGRAM, __doc__ or "")
    except UserError as error:
        from_there = any(word in str(error) for word in from_file if word.startswith("--"))
        raise UserError(f"{error} (in {early.config}?)" if from_there else str(error)) from None
    given = replace(given, settings=_with_absolute_paths(given.settings))
    if early.resume:
        _refuse_changes(_with_absolute_paths(choices[task][1].settings), given.settings, given.out)
    return given, task


def _with_absolute_paths(settings: RunConfig) -> RunConfig:
    return replace(settings, task=settings.task.with_absolute_paths())


def _refuse_changes(stored: RunConfig, given: RunConfig, out: Path) -> None:
    """Raise UserError if a resumed run is given other values for settings that determine its weights."""
    before = _by_flag(stored)
    for name, value in _by_flag(given).items():
        flag = name.replace("_", "-")
        require(
            name in CHANGEABLE or value == before[name],
            f"--{flag} {value}: {out} was trained with {before[name]}; drop the flag, or choose another --out",
        )


def _by_flag(settings: RunConfig) -> dict[str, Any]:
    """Return all settings by the name of their flag."""
    flags: dict[str, Any] = {}
    for concern, value in asdict(settings).items():
        flags |= value if isinstance(value, dict) else {concern: value}
    return flags


def introduce(task: str, command: Arguments, trainer: Trainer, kernels: str | None) -> None:
    """Print the task, model, device and end of the run, and advice about its settings."""
    settings = command.settings
    parameters = count(trainer.model.parameters())
    shape = settings.architecture
    say = trainer.log.say
    recipe = "" if command.resume else f" recipe={command.recipe}"
    say(f"task={task} {line(trainer.data.describe())}{recipe}")
    recurrent = f" block={shape.block} history={shape.history}" if settings.model == "recurrent" else ""
    say(
        f"model: {settings.model}, {parameters:,} parameters, layers={shape.layers} dim={shape.dim} "
        f"heads={shape.heads}{recurrent} positions={shape.positions}"
    )
    say(f"device: {backend.device()}")
    if (ranks := trainer.ranks).size > 1:
        rows = settings.training.batch
        say(f"ranks: {ranks.size}, each with {rows // ranks.size} of the {rows} sequences per step")
    if kernels:
        say(f"kernels: {kernels}")
    if slow := backend.advice():
        say(f"advice: {slow}")
    if settings.model == "regular" and shape.positions == "block":
        say("advice: with --positions block a regular transformer cannot tell blocks apart; use --positions absolute")
    for advice in settings.task.advise(settings.model, shape):
        say(f"advice: {advice}")
    say(f"run folder: {command.out}" + (f", resumed at step {trainer.step}" if trainer.step else ""))
    say(f"until: {trainer.progress.stop_condition}{settings.training.samples:,} samples; Ctrl-C saves and stops")


if __name__ == "__main__":
    run_command(main)
