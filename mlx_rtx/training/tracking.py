"""What a run logs, passed on to other programs as it comes: TensorBoard, and what has the interface of wandb."""

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
    """Another program that is told of a run."""

    log: Callable[[dict[str, float], int], Any]  # values by name, and the step that they are of
    close: Callable[[], Any]


def make_tracker(name: TrackerName, folder: Path, config: dict[str, Any]) -> Tracker:
    """A tracker by name.

    TensorBoard's files lie in the folder ``tensorboard`` of the run; wandb and trackio call the run what its folder is
    called, and send it where they are set up to.

    Args:
        name: which.
        folder: the run's.
        config: its settings.

    Raises:
        UserError: its package is missing, or it cannot begin.
    """
    try:
        module = importlib.import_module(MODULES[name])  # late: heavy, and optional
    except ImportError:
        raise UserError(
            f"--tracker {name}: needs a package (pip install 'mlx-rtx[{name}]'); or drop the flag"
        ) from None
    try:
        if name == "tensorboard":
            suffix = f".{time.time_ns()}"  # a file's own name says the second only
            return _to_tensorboard(module.SummaryWriter(str(folder / "tensorboard"), filename_suffix=suffix))
        module.init(project=PROJECT, name=folder.resolve().name, config=config)
        return Tracker(lambda values, step: module.log(values, step=step), module.finish)
    except Exception as error:  # no login, no network, no space: theirs to say
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--tracker {name}: cannot begin ({type(error).__name__}: {reason}); or drop the flag"
        ) from None


def _to_tensorboard(writer: Any) -> Tracker:
    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(log, writer.close)


def numbers(kind: str, fields: dict[str, Any]) -> dict[str, float]:
    """The numbers among an event's fields, by kind and name; those of a list by their place as well.

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
