"""Score a trained model on held-out data: ``python -m mlx_rtx.evaluate runs/copy --noise 8192``."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_rtx.forecast.memory_check import require_evaluation_memory
from mlx_rtx.support import backend
from mlx_rtx.support.backend import DeviceName
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import UserError, require, require_at_most, require_positive
from mlx_rtx.support.files import write_json
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.trees import count
from mlx_rtx.tasks import Data, StoredTask, TextTask
from mlx_rtx.training.checkpoint import RunFolder, load
from mlx_rtx.training.evaluation import Scores, evaluate, interval
from mlx_rtx.training.log import line
from mlx_rtx.training.settings import RunConfig
from mlx_rtx.training.stored_settings import from_stored

import mlx.core as mx
import tyro


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Score the best weights of a run on held-out data, at any length, in nearly constant memory."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    split: str | None = None
    """Split to score: validation or test (image), stream or validation (text), text, copy or validation (mixture)."""
    noise: int | None = None
    """Copy tasks: number of noise tokens; None: as in training."""
    samples: int | None = None
    """Number of sequences to score; None: the run's --test-samples, by default 256 for copy, all for image and text."""
    batch: int = 32
    """Number of sequences at a time."""
    seed: int = 1
    """Random seed of newly generated sequences."""
    data: str | None = None
    """Path of the data, if it has moved since training; or another text, whose held-out part is scored."""
    validation: float | str | None = None
    """Text to score instead of the run's validation set: a text, a split or a fraction, as in mlx_rtx.train."""
    device: DeviceName | None = None
    """Device to run on; None: the GPU if there is one."""
    json: Path | None = None
    """File to write the scores to as JSON, unrounded, with null for values that are not finite."""

    def __post_init__(self):
        require_positive(self, "batch")
        require(self.samples is None or self.samples >= 1, f"samples={self.samples}: must be at least 1")
        require(self.seed >= 0, f"--seed {self.seed}: must be 0 or above")
        require_at_most(self, batch=2**20, samples=2**26, seed=2**63 - 1)


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, score the model, and print the scores."""
    command = parse(EvaluateCommand, arguments, "python -m mlx_rtx.evaluate")
    backend.use_device(command.device)
    folder = RunFolder(command.run)
    stored = folder.read_config()
    name, settings = from_stored(stored)
    data = load_data(command, settings)
    split = command.split or data.splits[-1]
    require(split in data.splits, f"--split {split}: {name} has {' and '.join(data.splits)}")
    require(
        split != "stream" or settings.model == "recurrent",
        "--split stream: a regular transformer's memory grows with the square of the length; use --split validation",
    )
    samples = command.samples
    if samples is None:
        samples = settings.progress.test_samples
    require_evaluation_memory(settings, data, command.batch)
    model, _ = load(command.run)
    started = time.perf_counter()
    scores = evaluate(model, data.held_out(split, samples, command.batch, mx.random.key(command.seed)))
    seconds = time.perf_counter() - started
    print(f"task={name} split={split} {line(data.describe())}")
    if stored["data"]["sha256"] not in (None, data.fingerprint):  # None for converted models
        print("note: this data differs from the run's training data")
    if folder.weights_note:
        print(f"note: {folder.weights_note}")
    print(scores.text(data.metrics))
    if not math.isfinite(scores.loss):
        print("note: some losses are not finite because the state overflowed; their tokens count as wrong")
    if scores.sequences > 1:
        print(f"95 % intervals: {intervals(scores, data)}")
    if command.json:
        finite = {field: value if math.isfinite(value) else None for field, value in scores.stored().items()}
        about = {"task": name, "split": split, **data.stage, "parameters": count(model.parameters())}
        write_json(command.json, {**about, "scores": finite, "environment": backend.environment()})
    rate = scores.sequences / seconds
    print(line({"seconds": seconds, "sequences_per_s": rate, "peak_gb": mx.get_peak_memory() / 1e9}))


def load_data(command: EvaluateCommand, settings: RunConfig) -> Data:
    """Return the data to score on: the run's data, changed by the command's flags."""
    task = settings.task
    if command.data is not None:
        if not isinstance(task, StoredTask):
            raise UserError(f"--data {command.data}: this task generates its own data; drop the flag")
        task = replace(task, data=command.data)
    if command.validation is not None:
        if not isinstance(task, TextTask):
            raise UserError(f"--validation {command.validation}: only the text task has this flag; drop it")
        task = replace(task, validation=command.validation)
    data = task.load(RunFolder(command.run).vocabulary())
    if command.noise is not None:
        require("noise" in data.stage, f"--noise {command.noise}: only the copy tasks have noise; drop the flag")
        data = data.at_stage({"noise": command.noise})
    return data


def intervals(scores: Scores, data: Data) -> str:
    """Format 95 % intervals of the loss and, if sequences count, of the share of sequences that are right."""
    parts = [f"loss ± {1.96 * scores.loss_se:.2g}"] if math.isfinite(scores.loss) else []
    if "sequence_accuracy" in data.metrics or scores.targets == scores.sequences:
        low, high = interval(scores.sequence_accuracy, scores.sequences)
        right = round(scores.sequence_accuracy * scores.sequences)
        parts.append(f"{right:,} of {scores.sequences:,} right, {low:.2%} … {high:.2%}")
    return "; ".join(parts)


if __name__ == "__main__":
    run_command(main)
