"""Conversion of settings to and from a run folder's ``config.json``."""

from dataclasses import asdict, fields

from mlx_rtx.model.config import Architecture
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.typed import make
from mlx_rtx.tasks import Data
from mlx_rtx.training.recipes import RECIPES
from mlx_rtx.training.settings import RunConfig

RENAMED = {"once": "without_replacement"}  # earlier names of tasks' settings


def to_stored(task: str, config: RunConfig, data: Data) -> dict:
    """Return the settings in the form that ``config.json`` stores."""
    parts = asdict(config)
    model = {"kind": parts.pop("model"), **asdict(config.model_config(data))}
    del parts["architecture"]
    described = {**data.describe(), "sha256": data.fingerprint}
    return {"task": task, "model": model, "settings": parts, "data": described}


def from_stored(stored: dict) -> tuple[str, RunConfig]:
    """Return the task's name and the settings from the result of `to_stored`.

    Raises:
        UserError: the settings do not fit this version.
    """
    try:
        recipe, model = RECIPES[stored["task"]]["default"], stored["model"]
        parts = stored["settings"] | {
            "architecture": {f.name: model[f.name] for f in fields(Architecture) if f.name in model}
        }
        parts["task"] = {RENAMED.get(name, name): value for name, value in parts["task"].items()}
        made = {name: make(type(getattr(recipe, name)), part) for name, part in parts.items()}
        require(isinstance(stored["data"]["sha256"], str | None), "data: has no sha256")
        return stored["task"], RunConfig(model=model["kind"], **made)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"config.json: its settings do not fit this mlx_rtx ({error})") from None
