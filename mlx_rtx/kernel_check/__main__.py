"""Check the fused kernels on this machine, as the first training does: ``python -m mlx_rtx.kernel_check copy``.

The command takes the flags of a training, and repeats the check if there is an earlier result.
"""

import sys
from dataclasses import dataclass

from mlx_rtx.kernel_check.decision import describe, settle
from mlx_rtx.kernel_check.verdict import Question, Verdict, VerdictFile, ask
from mlx_rtx.kernel_check.worker import LIMIT
from mlx_rtx.support import backend
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.parsing import parse_subcommand
from mlx_rtx.training.recipes import recipes_by_task
from mlx_rtx.training.settings import RunConfig

import mlx.core as mx

PROGRAM = "python -m mlx_rtx.kernel_check"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Command-line arguments: the settings of a training whose kernels are checked, and the time limit."""

    settings: RunConfig
    limit: float = LIMIT
    """Time limit in seconds, for compiling and again for running. After a third of it no further form is compiled."""

    def __post_init__(self):
        require(0 < self.limit <= 86400, f"limit={self.limit}: must be above 0 and at most 86400, a day")


def main(arguments: list[str]) -> None:
    """Check a training's kernels again and print the verdict; exit with 1 if any form fails."""
    choices = {
        task: (settings.task.summary, Arguments(settings=settings))
        for task, settings in recipes_by_task("default").items()
    }
    command = parse_subcommand(choices, arguments, PROGRAM, __doc__ or "")
    settings, shape = command.settings, command.settings.architecture
    require(mx.default_device() == mx.gpu, "no GPU found: kernels require an NVIDIA GPU or Metal")
    require(shape.fusible, "no kernels for these settings: they require float32, alpha not gated, and dim at least 8")
    print(f"device: {backend.device()}", flush=True)
    question = ask(shape, settings.training.batch)
    file = VerdictFile.named(question.key)
    file.path.unlink(missing_ok=True)
    verdict = settle(file, question, command.limit)
    if verdict is None:
        raise UserError("another process is checking kernels; wait until it ends")
    show(question, verdict)
    if verdict.failure or len(verdict.correct) < len(verdict.trials):
        sys.exit(1)


def show(question: Question, verdict: Verdict) -> None:
    """Print the verdict, one line per form."""
    options = " ".join(f"{name}={value}" for name, value in question.options.items())
    print(f"for: {options} batch={question.batch}")
    for trial in verdict.trials:
        deviation = "" if trial.error is None else f", deviation {trial.error:.2g}"
        print(f"{trial.form}: {trial.failure or 'correct'}{deviation}{times(trial.seconds)}")
    if verdict.plain:
        print(f"plain operations{times(verdict.plain)}")
    print(f"kernels: {describe(verdict)}")


def times(seconds: dict[int, float]) -> str:
    """Return the times in milliseconds by number of windows, as text."""
    return "".join(f", {windows} windows {1000 * value:.3g} ms" for windows, value in seconds.items())


if __name__ == "__main__":
    run_command(main)
