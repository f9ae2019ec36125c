"""Try fused kernels on this machine, as a training for which that is new does: ``python -m mlx_rtx.kernel_check copy``.

It takes the flags of a training, and forgets what was found before.
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
    """What is given on the command line: a training, whose kernels are tried."""

    settings: RunConfig
    limit: float = LIMIT
    """Seconds that compiling may take, and again all the rest. A third of it gone, no other form is begun."""

    def __post_init__(self):
        require(0 < self.limit <= 86400, f"limit={self.limit}: must be above 0 and at most 86400, a day")


def main(arguments: list[str]) -> None:
    """Forget the verdict on a training's kernels, find it anew and print it; end with 1 where a form is not right."""
    choices = {
        task: (settings.task.summary, Arguments(settings=settings))
        for task, settings in recipes_by_task("default").items()
    }
    command = parse_subcommand(choices, arguments, PROGRAM, __doc__ or "")
    settings, shape = command.settings, command.settings.architecture
    require(mx.default_device() == mx.gpu, "there is no GPU here: kernels are for NVIDIA GPUs and Metal")
    require(shape.fusible, "no kernels: they are for float32, alpha but gated, and at least 8 channels")
    print(f"device: {backend.device()}", flush=True)
    question = ask(shape, settings.training.batch)
    file = VerdictFile.named(question.key)
    file.path.unlink(missing_ok=True)
    verdict = settle(file, question, command.limit)
    if verdict is None:
        raise UserError("another process is trying kernels right now; wait for it")
    show(question, verdict)
    if verdict.failure or len(verdict.right) < len(verdict.trials):
        sys.exit(1)


def show(question: Question, verdict: Verdict) -> None:
    """Print what was found, a line a form."""
    options = " ".join(f"{name}={value}" for name, value in question.options.items())
    print(f"for: {options} batch={question.batch}")
    for trial in verdict.trials:
        deviation = "" if trial.error is None else f", deviates by {trial.error:.2g}"
        print(f"{trial.form}: {trial.failure or 'right'}{deviation}{times(trial.seconds)}")
    if verdict.plain:
        print(f"plain operations{times(verdict.plain)}")
    print(f"kernels: {describe(verdict)}")


def times(seconds: dict[int, float]) -> str:
    """Milliseconds by windows."""
    return "".join(f", {windows} windows {1000 * value:.3g} ms" for windows, value in seconds.items())


if __name__ == "__main__":
    run_command(main)
