"""Score a trained model on held-out data: ``python -m mlx_rtx.evaluate runs/copy --noise 8192``."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_rtx.forecast.room import require_evaluation_room
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
    """Score the best weights of a run, at any length, in nearly constant memory."""

    run: tyro.conf.Positional[Path]
    """Run folder that training wrote."""
    split: str | None = None
    """What to score on: validation or test (image), validation or stream (text); all of it but for --samples."""
    noise: int | None = None
    """Copy: noise tokens; what the run was trained for if not given."""
    samples: int | None = None
    """Sequences to score; if not given as many as --test-samples of the run: all there are, 256 of fresh ones."""
    batch: int = 32
    """Sequences at a time."""
    seed: int = 1
    """Fixes fresh sequences."""
    data: str | None = None
    """Where the data lies now, if not where training found it; or other text, of which what training would hold out
    is scored."""
    validation: float | str | None = None
    """Text: what to score instead of what training held out, as of mlx_rtx.train: a file, a split, or a share."""
    device: DeviceName | None = None
    """Where to score; on the GPU if there is one, if not given."""
    json: Path | None = None
    """File to write the scores to, for programs: unrounded, null where one is no number."""

    def __post_init__(self):
        require_positive(self, "batch")
        require(self.samples is None or self.samples >= 1, f"samples={self.samples}: must be at least 1")
        require(self.seed >= 0, f"--seed {self.seed}: must be 0 or above")
        require_at_most(self, batch=2**20, samples=2**26, seed=2**63 - 1)


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, score, and print."""
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
        "--split stream: a regular transformer would need memory for the square of its length; use --split validation",
    )
    samples = command.samples
    if samples is None:
        samples = settings.progress.test_samples
    require_evaluation_room(settings, data, command.batch)
    model, _ = load(command.run)
    started = time.perf_counter()
    scores = evaluate(model, data.held_out(split, samples, command.batch, mx.random.key(command.seed)))
    seconds = time.perf_counter() - started
    print(f"task={name} split={split} {line(data.describe())}")
    if stored["data"]["sha256"] not in (None, data.fingerprint):  # None: of a model that was converted
        print("note: this is other data than the run was trained on")
    if folder.unjudged:
        print(f"note: {folder.unjudged}")
    print(scores.text(data.metrics))
    if not math.isfinite(scores.loss):
        print("note: some losses are not finite, where the state has outgrown all numbers; their tokens count as wrong")
    if scores.sequences > 1:
        print(f"95 % intervals: {intervals(scores, data)}")
    if command.json:
        finite = {field: value if math.isfinite(value) else None for field, value in scores.stored().items()}
        about = {"task": name, "split": split, **data.stage, "parameters": count(model.parameters())}
        write_json(command.json, {**about, "scores": finite, "environment": backend.environment()})
    rate = scores.sequences / seconds
    print(line({"seconds": seconds, "sequences_per_s": rate, "peak_gb": mx.get_peak_memory() / 1e9}))


def load_data(command: EvaluateCommand, settings: RunConfig) -> Data:
    """The data to score on: the run's, with what the command changes of it."""
    task = settings.task
    if command.data is not None:
        if not isinstance(task, StoredTask):
            raise UserError(f"--data {command.data}: this task makes its own data; drop the flag")
        task = replace(task, data=command.data)
    if command.validation is not None:
        if not isinstance(task, TextTask):
            raise UserError(f"--validation {command.validation}: only text has it; drop the flag")
        task = replace(task, validation=command.validation)
    data = task.load(RunFolder(command.run).vocabulary())
    if command.noise is not None:
        require("noise" in data.stage, f"--noise {command.noise}: only the copy tasks have noise; drop the flag")
        data = data.at_stage({"noise": command.noise})
    return data


def intervals(scores: Scores, data: Data) -> str:
    """95 % intervals of what was scored, in words."""
    parts = [f"loss ± {1.96 * scores.loss_se:.2g}"] if math.isfinite(scores.loss) else []
    if "sequence_accuracy" in data.metrics or scores.targets == scores.sequences:
        low, high = interval(scores.sequence_accuracy, scores.sequences)
        right = round(scores.sequence_accuracy * scores.sequences)
        parts.append(f"{right:,} of {scores.sequences:,} right, {low:.2%} … {high:.2%}")
    return "; ".join(parts)


if __name__ == "__main__":
    run_command(main)
