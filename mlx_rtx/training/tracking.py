"""Experiment trackers: TensorBoard, wandb and trackio receive what a run logs."""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mlx_rtx.support.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]
MODULES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "mlx_rtx"


class Tracker(NamedTuple):
    """Functions of an experiment tracker."""

    log: Callable[[dict[str, float], int], Any]  # takes values by name, and their step
    close: Callable[[], Any]


def make_tracker(name: TrackerName, folder: Path, config: dict[str, Any]) -> Tracker:
    """Return a tracker by name.

    TensorBoard's files are written to ``tensorboard`` in the run folder. wandb and trackio name the run after its
    folder and send data to wherever they are configured to.

    Args:
        name: name of the tracker.
        folder: run folder.
        config: settings of the run.

    Raises:
        UserError: its package is missing, or it cannot be started.
    """
    try:
        module = importlib.import_module(MODULES[name])  # imported late: heavy and optional
    except ImportError:
        raise UserError(
            f"--tracker {name}: needs a package (pip install 'mlx-rtx[{name}]'); or drop the flag"
        ) from None
    try:
        if name == "tensorboard":
            suffix = f".{time.time_ns()}"  # the default file name has a resolution of one second
            return _to_tensorboard(module.SummaryWriter(str(folder / "tensorboard"), filename_suffix=suffix))
        module.init(project=PROJECT, name=folder.resolve().name, config=config)
        return Tracker(lambda values, step: module.log(values, step=step), module.finish)
    except Exception as error:  # e.g. no login, no network, no disk space
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--tracker {name}: cannot start ({type(error).__name__}: {reason}); fix this, or drop the flag"
        ) from None


def _to_tensorboard(writer: Any) -> Tracker:
    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def numbers(kind: str, fields: dict[str, Any]) -> dict[str, float]:
    """Return the numbers among an event's fields, keyed by kind and name, in lists also by index.

    Example:
        >>> numbers("train", {"step": 5, "loss": 0.5, "alpha": [0.25], "sample": "To be"})
        {'train/loss': 0.5, 'train/alpha/0': 0.25}
    """
    found: dict[str, float] = {}
    for name, value in fields.items():
        if isinstance(value, list):
            found |= numbers(f"{kind}/{name}", {str(i): each for i, each in enumerate(value)})
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
            found[f"{kind}/{name}"] = value
    return found
