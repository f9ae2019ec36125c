"""Score a trained model on fresh samples: ``python -m mlx_rtx.evaluate runs/copy --noise 8192``."""

import time
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import tyro

from mlx_rtx.checkpoint import RunFolder, load
from mlx_rtx.commands import parse, run_command
from mlx_rtx.errors import require
from mlx_rtx.evaluation import evaluate
from mlx_rtx.log import line
from mlx_rtx.settings import from_stored


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score the best weights of a run on fresh samples, at any length, in nearly constant memory."""

    run: tyro.conf.Positional[Path]
    """Run folder that training wrote."""
    noise: int | None = None
    """Noise tokens; what the run was trained for if not given."""
    samples: int = 256
    """Fresh sequences to score."""
    batch: int = 32
    """Sequences at a time."""
    seed: int = 1
    """Fixes the sequences."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, score, print one line."""
    command = parse(EvaluateCommand, arguments, "python -m mlx_rtx.evaluate")
    require(command.seed >= 0, f"--seed {command.seed}: must be 0 or above")
    name, settings = from_stored(RunFolder(command.run).read_config())
    task = settings.task if command.noise is None else settings.task.at(command.noise)
    model, _ = load(command.run)
    started = time.perf_counter()
    scores = evaluate(model, task, command.samples, command.batch, mx.random.key(command.seed))
    rate = command.samples * task.length / (time.perf_counter() - started)
    print(f"task={name} noise={task.noise} {scores}")
    print(line({"tokens_per_s": rate, "peak_gb": mx.get_peak_memory() / 1e9}))


if __name__ == "__main__":
    run_command(main)
