"""Run folders: configuration, best weights, and all that a run needs to go on bit-exactly.

    config.json            the run's settings, and where and with what it was made
    tokenizer.json         the characters that a text model knows
    metrics.jsonl          one JSON object a report, validation or event
    model.safetensors      the best weights so far
    training.safetensors   the latest weights, the optimizer, and the loop's counters as metadata

Each file is written under another name first and then renamed: it is whole or it is not there.
"""

import json
import os
from pathlib import Path
from typing import Any

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.registry import MODELS
from mlx_rtx.model.segment import Carries, Carry
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import write_whole
from mlx_rtx.support.safetensors import FORMAT, read_arrays, write_arrays
from mlx_rtx.support.trees import flat
from mlx_rtx.tasks.vocabulary import Characters

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten


class RunFolder:
    """The files of one run at ``path``."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tokenizer = self.path / "tokenizer.json"
        self.model = self.path / "model.safetensors"
        self.training = self.path / "training.safetensors"

    def write_config(self, config: dict) -> None:
        """Create the folder with its configuration."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot make this folder ({error.strerror}); choose another") from None
        text = json.dumps({"format": FORMAT, **config}, indent=2) + "\n"
        write_whole(self.config, lambda path: path.write_text(text))

    def read_config(self) -> dict:
        """The configuration, checked to be one of ours."""
        require(self.path.is_dir(), f"{self.path}: no such run folder; name one that a training run wrote")
        try:
            config = json.loads(self.config.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path}: has no config.json, so it is no run folder of mlx_rtx") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config}: cannot be read ({error}); restore it or train again") from None
        found = config.get("format") if isinstance(config, dict) else None
        require(found == FORMAT, f"{self.config}: format={found!r}, not {FORMAT!r}: not written by this mlx_rtx")
        return config

    def make_model(self) -> Transformer:
        """A new model of the configured kind and sizes."""
        try:
            described = dict(self.read_config()["model"])
            kind = MODELS[described.pop("kind")]
            return kind(ModelConfig(**described))
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.config}: its model does not fit this mlx_rtx ({error})") from None

    def vocabulary(self) -> Characters | None:
        """The characters that a text model knows; None of any other model."""
        return Characters.load(self.tokenizer) if self.tokenizer.exists() else None

    def write_model(self, model: nn.Module) -> None:
        """Save the best weights."""
        write_arrays(self.model, flat(model.parameters()), {})

    def read_model(self, model: nn.Module) -> None:
        """Put the best weights into ``model``."""
        arrays, _ = read_arrays(self.model)
        _update(model, arrays, self.model)

    @property
    def unjudged(self) -> str | None:
        """What there is to say of the weights, where the run was stopped before a validation chose any."""
        if self.model.exists() or not self.training.exists():
            return None
        return "this run has come to no validation: its weights are those that it was stopped with"

    def write_training(
        self, model: nn.Module, optimizer_state: dict[str, Any], counters: dict, carry: Carries | None
    ) -> None:
        """Save all that going on needs: ``carry`` is what a stateful run goes on from."""
        arrays = {"model." + name: array for name, array in flat(model.parameters()).items()}
        arrays |= {"optimizer." + name: array for name, array in flat(optimizer_state).items()}
        if carry is not None:
            arrays |= {"carry." + name: array for name, array in flat(carry).items()}
        write_arrays(self.training, arrays, {"counters": json.dumps(counters)})

    def read_training(self, model: nn.Module) -> tuple[dict[str, Any], Carries | None, dict]:
        """Put the latest weights into ``model``; return (optimizer state, carry, counters)."""
        arrays, metadata = read_arrays(self.training)
        parts: dict[str, dict[str, mx.array]] = {"model": {}, "optimizer": {}, "carry": {}}
        for name, array in arrays.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = array
        _update(model, parts["model"], self.training)
        optimizer, layers = (tree_unflatten(list(parts[name].items())) for name in ("optimizer", "carry"))
        carry = tuple(Carry(*layer) for layer in layers) or None
        return optimizer, carry, json.loads(metadata["counters"])


def load(path: str | os.PathLike) -> tuple[Transformer, ModelConfig]:
    """Load the best weights of a run, or the latest ones where it was stopped before any were chosen.

    Args:
        path: the run folder, e.g. ``"runs/copy"``.

    Returns:
        (`RecurrentTransformer` or `RegularTransformer` in evaluation mode, its configuration).

    Raises:
        UserError: the folder or a file of it is missing, cut off, or not ours.
    """
    folder = RunFolder(path)
    model = folder.make_model()
    if folder.unjudged:
        folder.read_training(model)
    else:
        require(folder.model.exists(), f"{folder.model}: not found, so the run has no weights yet; go on with --resume")
        folder.read_model(model)
    model.eval()
    return model, model.config


def load_vocabulary(path: str | os.PathLike) -> Characters:
    """Load the characters that the text model of a run knows.

    Raises:
        UserError: the folder holds no text model.
    """
    folder = RunFolder(path)
    folder.read_config()
    vocabulary = folder.vocabulary()
    if vocabulary is None:
        raise UserError(f"{path}: has no tokenizer.json, so it is no text model; train one: mlx_rtx.train text")
    return vocabulary


def _update(model: nn.Module, arrays: dict[str, mx.array], path: Path) -> None:
    expected = {name: array.shape for name, array in flat(model.parameters()).items()}
    found = {name: array.shape for name, array in arrays.items()}
    for name in sorted(expected.keys() | found.keys()):
        require(
            expected.get(name) == found.get(name),
            f"{path}: {name} has shape {found.get(name)}, the configuration says {expected.get(name)}; "
            "the file belongs to another run",
        )
    model.load_weights(list(arrays.items()))
