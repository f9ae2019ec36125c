"""Losses by model width and data size, from trainings that read a text once.

Every run is a row of ``losses.jsonl``. Runs that the file contains are skipped, so that an interrupted grid continues.
"""

import json
import math
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from mlx_rtx.model.config import ModelKind
from mlx_rtx.model.registry import MODELS, parameter_count
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.json_lines import parse_table, read_json_lines
from mlx_rtx.support.typed import make
from mlx_rtx.tasks import TextData, TextTask
from mlx_rtx.tasks.text_file import Text
from mlx_rtx.training.evaluation import Scores, evaluate
from mlx_rtx.training.progress import Progress
from mlx_rtx.training.recipes import TEXT
from mlx_rtx.training.settings import RunConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx

LENGTH = 128  # characters per sequence
EVALUATED = 256  # sequences per batch in evaluation
HEAD = 16  # width of an attention head if it divides the model's width; otherwise there is one head


@dataclass(frozen=True)
class GridPoint:
    """A run of the grid: model, number of characters, learning rate and seed."""

    model: ModelKind
    layers: int
    dim: int
    characters: int
    """Number of characters to train on, each read once."""
    lr: float
    seed: int = 0

    @property
    def batch(self) -> int:
        """Number of sequences per step, smaller for less data so that there are enough steps."""
        return 4 if self.characters < 1e6 else 8 if self.characters < 4e6 else 16

    def settings(self, data: str) -> RunConfig:
        """Return the run's settings: the recipe for text without dropout, with α = 0 initially and a cosine decay."""
        heads = self.dim // HEAD if self.dim % HEAD == 0 else 1
        positions: Literal["absolute", "block"] = "absolute" if self.model == "regular" else "block"
        architecture = replace(
            TEXT.architecture,
            dim=self.dim,
            heads=heads,
            layers=self.layers,
            positions=positions,
            dropout=0.0,
            alpha=0.0,
        )
        samples = self.characters // LENGTH
        return replace(
            TEXT,
            task=TextTask(data=data, length=LENGTH, without_replacement=True, characters=self.characters, sample=0),
            model=self.model,
            architecture=architecture,
            progress=replace(TEXT.progress, lr_decay="cosine"),
            optimizer=replace(TEXT.optimizer, lr=self.lr),
            training=replace(TEXT.training, samples=samples, batch=min(self.batch, samples), seed=self.seed),
        )


@dataclass(frozen=True)
class Loss:
    """Result of a run."""

    point: GridPoint
    parameters: int
    """Number of parameters N."""
    embeddings: int
    """Number of parameters in token and position embeddings."""
    tokens: int
    """Number of characters D trained on."""
    steps: int
    loss: float
    """Loss in nats per character of the held-out text."""
    loss_se: float
    seconds: float
    text: str
    """sha256 of the text."""

    def __post_init__(self):
        require(0 <= self.embeddings < self.parameters, f"embeddings={self.embeddings}: must be below the parameters")
        require(self.tokens > 0, f"tokens={self.tokens}: must be above 0")
        require(not self.loss <= 0, f"loss={self.loss}: must be above 0, or not finite")

    def row(self) -> str:
        """Return the run as a line of JSON."""
        values = asdict(self)
        return json.dumps({**values.pop("point"), **values})


def train(point: GridPoint, text: str, source: str) -> Loss:
    """Train on the point's characters of ``text``, and score on the held-out text; no checkpoints are saved."""
    began, settings = time.perf_counter(), point.settings(source)
    assert isinstance(settings.task, TextTask)
    data, training = TextData(settings.task, Text.of(text, source)), settings.training
    config = settings.model_config(data)
    mx.random.seed(point.seed)
    model = MODELS[point.model](config)
    step = TrainingStep(model, settings.optimizer, training.segment)
    progress = Progress(settings.progress, settings.optimizer.lr, data.chance)
    steps = training.samples // training.batch
    for i in range(steps):
        tokens, targets, _ = data.batch(point.seed, i, training.batch)
        step.take(tokens, targets, lr=progress.rate(i / steps))
    scores: Scores = evaluate(model, data.held_out("validation", None, EVALUATED, mx.random.key(point.seed)))
    return Loss(
        point,
        parameter_count(config, point.model),
        sum(array.size for array in model.embedding.parameters().values() if isinstance(array, mx.array)),
        steps * training.batch * LENGTH,
        steps,
        scores.loss,
        scores.loss_se,
        time.perf_counter() - began,
        str(data.fingerprint),
    )


def read_losses(path: Path) -> list[Loss]:
    """Return the runs in a file of rows; damaged rows are left out with a message.

    Raises:
        UserError: the file is missing, cannot be read, or has damaged rows only.
    """
    none = f"{path}: no losses of a grid; create them with python -m mlx_rtx.scaling train"
    require(path.exists(), none)
    return read_json_lines(path, _parse, none)


def _parse(row: bytes) -> Loss | None:
    values = parse_table(row) or {}
    of_point = {field.name for field in fields(GridPoint)} & values.keys()
    try:
        point = make(GridPoint, {name: values.pop(name) for name in of_point})
        return make(Loss, {"point": point, **values})
    except UserError:
        return None


def best_runs(losses: Iterable[Loss]) -> list[Loss]:
    """Return the run with the lowest loss among those that differ only in learning rate and seed."""
    best: dict[GridPoint, Loss] = {}
    for loss in losses:
        same = replace(loss.point, lr=0.0, seed=0)
        if same not in best or loss.loss < best[same].loss:
            best[same] = loss
    return list(best.values())


def seed_noise(losses: Iterable[Loss]) -> float | None:
    """Return the standard deviation of log loss among runs that differ only in their seed, None if there are none."""
    by_point: dict[GridPoint, list[float]] = {}
    for loss in losses:
        by_point.setdefault(replace(loss.point, seed=0), []).append(math.log(loss.loss))
    spreads = [statistics.variance(values) for values in by_point.values() if len(values) > 1]
    return math.sqrt(statistics.mean(spreads)) if spreads else None


def missing(points: Iterable[GridPoint], path: Path) -> Iterator[GridPoint]:
    """Return the points that have no row yet."""
    done = {loss.point for loss in read_losses(path)} if path.exists() else set()
    return (point for point in points if point not in done)
