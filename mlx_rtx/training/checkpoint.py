"""Run folders: configuration, best weights, and the checkpoint from which a run resumes bit-exactly.

    config.json            settings of the run, and the environment in which it began
    tokenizer.json         characters or subwords of a text model
    metrics.jsonl          one JSON object per report, validation or event; append-only
    model.safetensors      the best weights so far
    training.safetensors   the latest weights, the optimizer's state, and the loop's counters as metadata

All files except the log are written atomically (temporary file, then rename). Their sha256, stored in the file itself
or in config.json, is verified on reading, and safetensors files name their run: modified files, and files of another
run, are rejected.
"""

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelConfig
from mlx_rtx.model.registry import MODELS
from mlx_rtx.model.segment import Carries, Carry
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import as_path, read_data, read_json, remove_left_over, sha256, write_text
from mlx_rtx.support.locks import alone
from mlx_rtx.support.reports import make_folder
from mlx_rtx.support.safetensors import FORMAT, FORMATS, ArrayFile, open_arrays, write_arrays
from mlx_rtx.support.trees import flat
from mlx_rtx.support.typed import make, shown
from mlx_rtx.tasks.subwords import read_vocabulary
from mlx_rtx.tasks.vocabulary import Vocabulary
from mlx_rtx.training.counters import Counters

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

AGAIN = "restore it or train again"


class RunFolder:
    """The files of one run at ``path``."""

    def __init__(self, path: str | os.PathLike):
        self.path = as_path("path", path, "the folder of a run")
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.tokenizer = self.path / "tokenizer.json"
        self.model = self.path / "model.safetensors"
        self.training = self.path / "training.safetensors"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Return a context that locks the folder against other processes, and creates it if it is missing.

        Raises:
            UserError: another process has locked it, or it cannot be created.
        """
        with alone(make_folder(self.path) / ".lock", f"--out {self.path}"):
            remove_left_over(self.path)
            yield

    def require_new(self) -> None:
        """Raise UserError if the folder contains files of a run, which a new run would overwrite."""
        require(
            not os.path.lexists(self.config),
            f"--out {self.path}: already holds a run; add --resume to continue it, or choose another --out",
        )
        left = self._left()
        require(not left, f"--out {self.path}: holds {left} of a run without config.json; choose another --out")

    def has_begun(self) -> bool:
        """Return whether there is a checkpoint to resume from; False if the run stopped before it wrote any output.

        Raises:
            UserError: the checkpoint is missing although the run wrote other files.
        """
        if os.path.lexists(self.training):
            return True
        left = self._left()
        require(
            not left,
            f"{self.training}: not found, so the run of {left} cannot resume; restore it, or choose another --out",
        )
        return False

    def _left(self) -> str:
        """Return the names of the non-empty files of a run other than its configuration, for messages."""
        files = (self.metrics, self.model, self.training)
        return " and ".join(file.name for file in files if os.path.lexists(file) and file.lstat().st_size)

    def begin(self, config: dict, vocabulary: Vocabulary | None = None) -> None:
        """Write the files of a new run: the vocabulary of a text model and, last, the configuration."""
        make_folder(self.path)
        files = {}
        if vocabulary:
            vocabulary.save(self.tokenizer)
            files[self.tokenizer.name] = sha256(self.tokenizer.read_bytes())
        self.write_config({"format": FORMAT, "run": secrets.token_hex(8), **config, "files": files})

    def write_config(self, config: dict) -> None:
        """Write the configuration with its sha256."""
        make_folder(self.path)
        config = {**config, "format": FORMAT}
        write_text(self.config, json.dumps({**config, "sha256": _digest(config)}, indent=2) + "\n")

    def read_config(self) -> dict:
        """Read the configuration; raise UserError if it is missing, modified, or not written by this package."""
        require(self.path.is_dir(), f"{self.path}: no such run folder; name one that a training run wrote")
        try:
            config = read_json(self.config, AGAIN)
        except FileNotFoundError:
            raise UserError(f"{self.path}: has no config.json, so it is not a run folder of mlx_rtx") from None
        found = config.get("format") if isinstance(config, dict) else None
        require(
            isinstance(found, str) and found in FORMATS,
            f"{self.config}: format={shown(found)}, not {FORMAT!r}: not written by this mlx_rtx",
        )
        whole = config["sha256"] == _digest(config) if "sha256" in config else found != FORMAT
        require(whole, f"{self.config}: is not what was written (its sha256 differs); {AGAIN}")
        return config

    @property
    def _run(self) -> str:
        """Identifier of the run, repeated in its safetensors files; empty for runs of older versions."""
        return str(self.read_config().get("run", ""))

    def make_model(self) -> Transformer:
        """Return a new model of the configured kind and size."""
        config = self.read_config()
        try:
            described = dict(config["model"])
            kind = MODELS[described.pop("kind")]
            return kind(make(ModelConfig, described))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.config}: its model does not fit this mlx_rtx ({error})") from None

    def vocabulary(self) -> Vocabulary | None:
        """Return the vocabulary of a text model, None for other models."""
        config, file = self.read_config(), self.tokenizer
        files, model = config.get("files", {}), config.get("model", {})
        expected = files.get(file.name) if isinstance(files, dict) else None
        try:
            found = sha256(read_data(file, AGAIN))
        except FileNotFoundError:
            require(expected is None, f"{file}: not found; {AGAIN}")
            return None
        require(expected in (None, found), f"{file}: is not what was written (its sha256 differs); {AGAIN}")
        vocabulary = read_vocabulary(file)
        size = model.get("vocab_size") if isinstance(model, dict) else None
        words = f"{len(vocabulary)} {vocabulary.unit}s"
        require(len(vocabulary) == size, f"{file}: has {words}, its model {shown(size)}; {AGAIN}")
        return vocabulary

    def write_model(self, model: nn.Module) -> None:
        """Save the best weights."""
        write_arrays(self.model, flat(model.parameters()), {"run": self._run})

    def read_model(self, model: nn.Module) -> None:
        """Load the best weights into ``model``."""
        with self._open(self.model) as file:
            arrays = file.read(flat(model.parameters()))
        model.load_weights(list(arrays.items()))

    @property
    def weights_note(self) -> str | None:
        """Note about the weights if the run was stopped before its first validation, otherwise None."""
        if self.model.exists() or not self.training.exists():
            return None
        return "this run was stopped before its first validation; its weights are those at the stop"

    def write_training(
        self, model: nn.Module, optimizer_state: dict[str, Any], counters: Counters, carry: Carries | None
    ) -> None:
        """Save a checkpoint; ``carry`` is that of a stateful run, otherwise None."""
        arrays = _training_arrays(model, optimizer_state, carry)
        write_arrays(self.training, arrays, {"run": self._run, "counters": counters.dump()})

    def read_training(
        self, model: Transformer, optimizer_state: dict[str, Any], rows: int | None = None
    ) -> tuple[dict[str, Any], Carries | None, Counters]:
        """Load the latest weights into ``model``; return (optimizer state, carry, counters).

        Args:
            model: model with the run's configuration.
            optimizer_state: optimizer state before the first step, which gives the expected names, shapes and dtypes.
            rows: number of sequences in the carry of a stateful run, otherwise None.
        """
        shape = model.config
        blank = (Carry(*[mx.zeros((rows or 0, shape.block, shape.dim))] * 2),) * shape.layers
        with self._open(self.training) as file:
            carries = rows is not None and any(name.startswith("carry.") for name in file.arrays)
            # the arrays may contain numbers that are not finite: the trainer recovers from them
            arrays = file.read(_training_arrays(model, optimizer_state, blank if carries else None), finite=False)
            counters = _read_counters(file)
        parts: dict[str, dict[str, mx.array]] = {"model": {}, "optimizer": {}, "carry": {}}
        for name, array in arrays.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = array
        model.load_weights(list(parts["model"].items()))
        optimizer, layers = (tree_unflatten(list(parts[name].items())) for name in ("optimizer", "carry"))
        return optimizer, tuple(Carry(*layer) for layer in layers) or None, counters

    def read_latest(self, model: nn.Module) -> None:
        """Load the latest weights into ``model``, if no validation has chosen weights yet."""
        with self._open(self.training) as file:
            chosen = _read_counters(file).chosen
            require(not chosen, f"{self.model}: not found, though this run chose weights; {AGAIN}")
            arrays = file.read(flat(model.parameters()), part="model.")
        model.load_weights(list(arrays.items()))

    @contextlib.contextmanager
    def _open(self, path: Path) -> Iterator[ArrayFile]:
        """Open an array file, and check that it belongs to this run."""
        with open_arrays(path) as file:
            require(
                file.metadata.get("run", "") == self._run,
                f"{path}: belongs to another run than config.json; restore this run's own file",
            )
            yield file


def _read_counters(file: ArrayFile) -> Counters:
    try:
        return Counters.parse(file.metadata["counters"])
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{file.path}: its counters cannot be read ({error}); {AGAIN}") from None


def _training_arrays(model: nn.Module, optimizer_state: dict[str, Any], carry: Carries | None) -> dict[str, mx.array]:
    """Return the arrays of ``training.safetensors`` by name, possibly not evaluated yet."""
    parts = {"model": model.parameters(), "optimizer": optimizer_state, "carry": carry or ()}
    return {f"{part}.{name}": array for part, tree in parts.items() for name, array in flat(tree).items()}


def _digest(config: dict) -> str:
    """Return the sha256 of a configuration, computed without its ``sha256`` entry."""
    return sha256(json.dumps({**config, "sha256": None}, sort_keys=True).encode())


def load(path: str | os.PathLike) -> tuple[Transformer, ModelConfig]:
    """Load the best weights of a run, or the latest ones if it was stopped before its first validation.

    Args:
        path: run folder, e.g. ``"runs/copy"``.

    Returns:
        (`RecurrentTransformer` or `RegularTransformer` in evaluation mode, its configuration).

    Raises:
        UserError: the folder or one of its files is missing, truncated, modified, or not written by this package.
    """
    folder = RunFolder(path)
    model = folder.make_model()
    if folder.weights_note:
        folder.read_latest(model)
    else:
        found = os.path.lexists(folder.model)
        require(found, f"{folder.model}: not found, so the run has no weights yet; continue it with --resume")
        folder.read_model(model)
    model.eval()
    return model, model.config


def load_vocabulary(path: str | os.PathLike) -> Vocabulary:
    """Load the vocabulary (characters or subwords) of a run's text model.

    Raises:
        UserError: the folder does not contain a text model.
    """
    vocabulary = RunFolder(path).vocabulary()
    if vocabulary is None:
        raise UserError(f"{path}: has no tokenizer.json, so it is not a text model; train one: mlx_rtx.train text")
    return vocabulary
