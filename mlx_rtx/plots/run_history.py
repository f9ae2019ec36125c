"""The history of a run, read from its ``metrics.jsonl``, as arrays."""

import math
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.forecast.operations import paper_ops
from mlx_rtx.model.config import Architecture
from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import fits
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.stored_settings import from_stored

import numpy as np


@dataclass(frozen=True)
class History:
    """History of a run; each array has one entry per report or per validation."""

    name: str
    """Name of the run folder."""
    description: str
    """Short description of task and model."""
    samples: np.ndarray
    """Samples at each report."""
    loss: np.ndarray
    """Training loss at each report, in nats."""
    alpha: np.ndarray
    """α of each layer (reports, layers); no columns for a regular transformer."""
    operations: np.ndarray
    """Operations of all samples up to each report, by the paper's count."""
    validated: np.ndarray
    """Samples at each validation."""
    validation_loss: np.ndarray
    """Validation loss in nats, of the weights or of their average, whichever is lower."""
    accuracy: np.ndarray
    """Validation accuracy, in [0, 1]."""
    stages: list[tuple[int, int]]
    """Samples at which each stage of the curriculum begins, and its noise; empty without a curriculum."""

    @property
    def validated_operations(self) -> np.ndarray:
        """Operations up to each validation."""
        return np.interp(self.validated, self.samples, self.operations)


def read_history(path: Path) -> History:
    """Read a run folder.

    Raises:
        UserError: it is not a run folder, or has fewer than two reports or no validation.
    """
    folder = RunFolder(path)
    task, settings = from_stored(folder.read_config())
    lines = read_lines(folder.metrics)
    reports = [line for line in lines if line["kind"] == "train"]
    checks = _better([line for line in lines if line["kind"] == "validation"])
    require(
        len(reports) > 1 and bool(checks),
        f"{path}: needs at least two reports and a validation; continue the training",
    )
    alphas = {len(report["alpha"]) for report in reports}
    require(len(alphas) == 1, f"{folder.metrics}: its reports have {sorted(alphas)} values of α; restore it")
    shape = settings.architecture
    samples = np.array([report["samples"] for report in reports])
    each = [paper_ops(shape, report["length"], settings.model) for report in reports]
    begins = [(0, reports[0]["noise"])] if fits(reports[0].get("noise"), int) else []
    begins += [(line["samples"], line["next_noise"]) for line in lines if line["kind"] == "stage"]
    return History(
        name=path.resolve().name,
        description=f"{task}, {_model(settings.model, shape)}",
        samples=samples,
        loss=np.array([report["loss"] for report in reports]),
        alpha=np.array([report["alpha"] for report in reports]).reshape(len(reports), -1),
        operations=np.cumsum(np.diff(samples, prepend=0) * np.array(each, dtype=np.float64)),
        validated=np.array([check["samples"] for check in checks]),
        validation_loss=np.array([check["loss"] for check in checks]),
        accuracy=np.array([check["accuracy"] for check in checks]),
        stages=begins,
    )


def _better(checks: list[dict]) -> list[dict]:
    """Return one validation per step: of the weights or of their average, whichever has the lower loss."""
    finite_first = sorted(checks, key=lambda check: check["loss"] if math.isfinite(check["loss"]) else math.inf)
    best = {check["step"]: check for check in reversed(finite_first)}
    return [best[step] for step in sorted(best)]


def _model(kind: str, shape: Architecture) -> str:
    layers = f"{shape.layers} layer" + ("s" if shape.layers > 1 else "")
    return f"{kind}, {layers}" if kind == "regular" or shape.layers > 1 else f"recurrent ({shape.history})"
