"""Export a model to a folder for other programs: ``python -m mlx_rtx.export runs/text exported``."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mlx_rtx.interchange import hub
from mlx_rtx.interchange.card import Facts, write_card
from mlx_rtx.interchange.model_folder import check_empty, make_exported, write_folder, write_for_transformers
from mlx_rtx.interchange.quantization import compare_losses, measure_losses, quantize
from mlx_rtx.interchange.step_function import write_step
from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.files import write_text
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.reports import make_folder
from mlx_rtx.support.trees import count
from mlx_rtx.tasks import Sequences, StoredTask
from mlx_rtx.training.checkpoint import RunFolder, load, load_vocabulary
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.stored_settings import from_stored

import mlx.core as mx
import tyro

WRITERS = {"mlx-lm": write_folder, "transformers": write_for_transformers, "mlxfn": write_step}
BATCH = 32  # sequences measured at a time


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export a text model to a folder that mlx-lm can run without this package, with a model card."""

    run: tyro.conf.Positional[Path]
    """Run folder of a text model."""
    folder: tyro.conf.Positional[Path]
    """Folder to create."""
    format: Literal["mlx-lm", "transformers", "mlxfn"] = "mlx-lm"
    """mlx-lm; transformers, which mlx-lm can run too; or mlxfn, one step as a graph for C++, Swift and Python."""
    bits: Literal[4, 8] | None = None
    """Quantize weights to this many bits, and measure the increase in loss on held-out text. For mlx-lm only."""
    group_size: Literal[32, 64, 128] = 32
    """Number of weights that share a scale when quantized; must divide the model's width."""
    samples: int | None = None
    """Number of held-out sequences for that measurement; all by default."""
    data: str | None = None
    """Current path of the training text, if it was moved since training."""
    upload: str | None = None
    """Repository USER/NAME on the Hugging Face hub to upload the folder to; created if missing."""
    private: bool = False
    """Make a new repository private."""

    def __post_init__(self):
        require(
            self.bits is None or self.format == "mlx-lm",
            f"--bits {self.bits}: quantized weights are for mlx-lm only; omit it, or --format {self.format}",
        )
        require(self.samples is None or self.samples >= 1, f"samples={self.samples}: must be at least 1")
        require_at_most(self, samples=2**26)


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, write the folder, and list its files."""
    command = parse(ExportCommand, arguments, "python -m mlx_rtx.export")
    run, folder = RunFolder(command.run), command.folder
    vocabulary = load_vocabulary(command.run)
    model, config = load(command.run)
    check_empty(folder)
    if run.weights_note:
        print(f"note: {run.weights_note}")
    exported, cost = make_exported(model), None
    if command.bits:
        before = measure_losses(exported.model, held_out(command))
        exported = quantize(exported, command.bits, command.group_size)
        cost = compare_losses(before, measure_losses(exported.model, held_out(command)))
    make_folder(folder)
    WRITERS[command.format](folder, exported, vocabulary)
    facts = Facts(
        name=command.upload.rpartition("/")[2] if command.upload else folder.resolve().name,
        format=command.format,
        kind=exported.config["kind"],
        model=config,
        alphas=model.alphas,
        parameters=count(model.parameters()),
        vocabulary=vocabulary,
        stored=run.read_config(),
        scores=scores(read_lines(run.metrics)),
        cost=cost,
        bits=command.bits,
    )
    write_text(folder / "README.md", write_card(facts))
    if cost:
        print(f"loss: {cost.before} with 32 bits, {cost.after} with {command.bits}: an increase of {cost.added} (95 %)")
    for path in sorted(folder.iterdir()):
        print(f"{path} {path.stat().st_size:,} bytes")
    if command.upload:
        print(hub.upload(folder, command.upload, command.private))


def held_out(command: ExportCommand) -> Iterator[Sequences]:
    """Return the sequences of text that the run held out for validation."""
    folder = RunFolder(command.run)
    _, settings = from_stored(folder.read_config())
    task = settings.task
    if command.data is not None and isinstance(task, StoredTask):
        task = replace(task, data=command.data)
    return task.load(folder.vocabulary()).held_out("validation", command.samples, BATCH, mx.random.key(0))


def scores(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the scores of the best weights in ``metrics.jsonl``, or None if there are none."""
    final = [event for event in events if event["kind"] == "final"]
    validations = [event for event in events if event["kind"] == "validation"]
    return final[-1] if final else min(validations, key=lambda event: event["loss"], default=None)


if __name__ == "__main__":
    run_command(main)
