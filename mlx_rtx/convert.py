"""Convert nanoGPT's checkpoints: ``python -m mlx_rtx.convert model.safetensors runs/converted --heads 6``."""

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
    """Convert a checkpoint in nanoGPT's layout, which the paper's program uses too, to a run folder, or a run folder to
    such a checkpoint, depending on the source. Files are safetensors or npz, not pickles."""

    source: tyro.conf.Positional[Path]
    """Checkpoint to read (.safetensors or .npz), or run folder."""
    target: tyro.conf.Positional[Path]
    """Run folder to create, or checkpoint to write."""
    model: ModelKind = "recurrent"
    """Kind of model. A checkpoint does not determine it: regular transformers may contain an unused alpha."""
    heads: int | None = None
    """Number of attention heads, which a checkpoint does not contain."""
    block: int = 32
    """Block width K, not in the checkpoint either; 16 in the paper's text models."""
    activation: Literal["relu", "gelu"] = "gelu"
    """Activation function, not in the checkpoint either.
    gelu: nanoGPT and the paper's text models; relu: the paper's other models."""
    history: Literal["output", "hidden"] = "output"
    """Reading of Eq. 6, not in the checkpoint either; output (y) in the paper's program."""
    task: Literal["text", "image", "copy", "selective-copy"] | None = None
    """Task on which the model was trained; needed by evaluate, and by generate for a text model's characters."""
    data: str | None = None
    """Text whose sorted characters are the model's tokens, with --task text; tiny Shakespeare by default."""

    def __post_init__(self):
        require(
            self.data is None or self.task == "text",
            f"--data {self.data}: requires --task text; add it, or omit --data",
        )


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, convert, and print a summary."""
    command = parse(ConvertCommand, arguments, "python -m mlx_rtx.convert")
    if command.source.is_dir():
        model, _ = load(command.source)
        write_checkpoint(command.target, to_nanogpt(model))
    else:
        model = read_run(command)
    alphas = "".join(f" alpha={alpha.item():.4g}" for alpha in model.alphas)
    print(f"{command.target}: {count(model.parameters()):,} parameters{alphas}")


def read_run(command: ConvertCommand) -> Transformer:
    """Convert a checkpoint to a run folder, and return the model."""
    folder, source = RunFolder(command.target), command.source
    require(not folder.config.exists(), f"{folder.path}: already contains a run; name another folder")
    require(
        command.heads is not None,
        "--heads: is missing, and not in the checkpoint; 6 in the paper's text models",
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
            f"--data {path}: has {len(vocabulary)} characters, the model {V}; name the text it was trained on",
        )
    described = {"task": command.task, "model": {"kind": command.model, **asdict(model.config)}}
    origin = {"file": source.name, "sha256": sha256(source.read_bytes())}
    with folder.locked():
        folder.require_new()
        folder.begin({**described, **settings(command.task, model, command.model), "origin": origin}, vocabulary)
        folder.write_model(model)
    return model


def settings(task: str | None, model: Transformer, kind: ModelKind) -> dict[str, Any]:
    """Return the settings that evaluate needs: those of the paper's recipe for the task, with unknown data."""
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
