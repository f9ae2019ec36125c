"""Read or write nanoGPT's checkpoints: ``python -m mlx_rtx.convert model.safetensors runs/converted --heads 6``."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlx_rtx.interchange.nanogpt import Unnamed, from_nanogpt, read_checkpoint, to_nanogpt, write_checkpoint
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.config import ModelKind
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import sha256
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.trees import count
from mlx_rtx.tasks import TextTask, text_file
from mlx_rtx.tasks.vocabulary import Characters
from mlx_rtx.training.checkpoint import RunFolder, load
from mlx_rtx.training.recipes import RECIPES

import tyro


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Make a run folder of a checkpoint in nanoGPT's layout, which the paper's program has too, or such a checkpoint
    of a run folder: the source says which. Files are safetensors or npz, no pickles."""

    source: tyro.conf.Positional[Path]
    """Checkpoint to read, .safetensors or .npz; or a run folder."""
    target: tyro.conf.Positional[Path]
    """Run folder to make; or the checkpoint to write."""
    model: ModelKind = "recurrent"
    """What the checkpoint is of: regular transformers may hold an unused alpha, so it can't be told from it."""
    heads: int | None = None
    """Attention heads, which a checkpoint does not say."""
    block: int = 32
    """Block width K, which it does not say either; 16 in the paper's text models."""
    activation: Literal["relu", "gelu"] = "gelu"
    """Nor this: gelu in nanoGPT and the paper's text models, relu in its others."""
    history: Literal["output", "hidden"] = "output"
    """Nor this: the reading of Eq. 6, y in the paper's program."""
    task: Literal["text", "image", "copy", "selective-copy"] | None = None
    """What it was trained on, for evaluate; of text also its characters, for generate."""
    data: str | None = None
    """Text whose characters, in order, are its tokens; tiny Shakespeare if not given. For --task text."""

    def __post_init__(self):
        require(
            self.data is None or self.task == "text",
            f"--data {self.data}: goes with --task text alone; add that, or drop it",
        )


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, convert, and say what it is."""
    command = parse(ConvertCommand, arguments, "python -m mlx_rtx.convert")
    if command.source.is_dir():
        model, _ = load(command.source)
        write_checkpoint(command.target, to_nanogpt(model))
    else:
        model = read_run(command)
    alphas = "".join(f" alpha={alpha.item():.4g}" for alpha in model.alphas)
    print(f"{command.target}: {count(model.parameters()):,} parameters{alphas}")


def read_run(command: ConvertCommand) -> Transformer:
    """Make a run folder of a checkpoint."""
    folder, source = RunFolder(command.target), command.source
    require(not folder.config.exists(), f"{folder.path}: holds a run already; name another folder")
    require(
        command.heads is not None,
        "--heads: is missing, and the checkpoint does not say it; 6 in the paper's text models",
    )
    weights = read_checkpoint(source)
    unnamed = Unnamed(
        kind=command.model,
        heads=command.heads or 0,
        block=command.block,
        activation=command.activation,
        history=command.history,
    )
    model, vocabulary = from_nanogpt(weights, unnamed), None
    if command.task == "text":
        text, path = text_file.load(command.data)
        vocabulary, V = Characters(text), model.config.vocab_size
        require(
            len(vocabulary) == V,
            f"--data {path}: has {len(vocabulary)} characters, the model knows {V}; name its own text",
        )
    described = {"task": command.task, "model": {"kind": command.model, **asdict(model.config)}}
    origin = {"file": source.name, "sha256": sha256(source.read_bytes())}
    with folder.alone():
        folder.require_new()
        folder.begin({**described, **settings(command.task, model, command.model), "origin": origin}, vocabulary)
        folder.write_model(model)
    return model


def settings(task: str | None, model: Transformer, kind: ModelKind) -> dict[str, Any]:
    """What evaluate asks of a run: its task's settings by the paper's recipe, and data that is not known."""
    if task is None:
        return {}
    recipe = RECIPES[task]["paper"]
    if isinstance(recipe.task, TextTask):
        recipe = replace(recipe, task=replace(recipe.task, length=model.config.max_len))
    parts = asdict(recipe)
    del parts["architecture"], parts["model"]
    return {"settings": parts, "data": {"sha256": None}}


if __name__ == "__main__":
    run_command(main)
