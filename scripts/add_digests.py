"""Give run folders of earlier revisions the sha256 and the name that newer ones have: ``add_digests.py FOLDER …``.

Numbers and settings stay as they are, byte for byte. A folder that is read by it is one that could be read before.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.support.command import run_command
from mlx_rtx.support.files import read_data, sha256
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.safetensors import DTYPES, open_arrays, write_arrays
from mlx_rtx.training.checkpoint import RunFolder

import mlx.core as mx
import tyro


@dataclass(frozen=True, kw_only=True)
class AddDigestsCommand:
    """Add what newer run folders have."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments``, and add to each folder what it lacks."""
    for path in parse(AddDigestsCommand, arguments, "python scripts/add_digests.py").runs:
        folder = RunFolder(path)
        with folder.alone():
            print(f"{path}: {'has them' if 'run' in folder.read_config() else add(folder)}")


def add(folder: RunFolder) -> str:
    """Add them to a folder; say to which files."""
    config, name = folder.read_config(), secrets.token_hex(8)
    arrays = [file for file in (folder.model, folder.training) if file.exists()]
    for path in arrays:
        with open_arrays(path) as file:
            blank = {each: mx.zeros(shape, DTYPES[dtype]) for each, (dtype, shape) in file.arrays.items()}
            write_arrays(path, file.read(blank), {**file.metadata, "run": name})
    vocabulary = [folder.tokenizer] if folder.vocabulary() else []
    files = {path.name: sha256(read_data(path, "restore it")) for path in vocabulary}
    folder.write_config({**config, "run": name, "files": files})
    return f"added to {', '.join(path.name for path in [folder.config, *arrays])}"


if __name__ == "__main__":
    run_command(main)
