"""Add the sha256 digests and the run name that newer run folders have to older ones: ``add_digests.py FOLDER …``.

Arrays and settings are not changed. A folder that the package cannot read is refused.
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
    """Add digests and a run name to run folders that lack them."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""


def main(arguments: list[str]) -> None:
    """Parse ``arguments`` and add digests to each folder that lacks them."""
    for path in parse(AddDigestsCommand, arguments, "python scripts/add_digests.py").runs:
        folder = RunFolder(path)
        with folder.locked():
            print(f"{path}: {'has them' if 'run' in folder.read_config() else add(folder)}")


def add(folder: RunFolder) -> str:
    """Add digests to a folder, and return a message that names the changed files."""
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
