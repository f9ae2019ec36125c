"""Arrays in safetensors files that are marked as this project's."""

from pathlib import Path
from typing import cast

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import write_whole

import mlx.core as mx

FORMAT = "mlx_rtx-1"  # of all files that the project writes and reads back


def read_arrays(path: Path) -> tuple[dict[str, mx.array], dict[str, str]]:
    """Arrays and metadata of a safetensors file that `write_arrays` wrote.

    Raises:
        UserError: it is missing, cut off, or not ours.
    """
    require(path.is_file(), f"{path}: not found; name a file that is there, or train again without --resume")
    try:
        arrays, metadata = cast(tuple[dict, dict], mx.load(str(path), "safetensors", return_metadata=True))
        mx.eval(arrays)
    except RuntimeError as error:
        raise UserError(f"{path}: cut off or no safetensors file ({error}); restore it or train again") from None
    require(metadata.get("format") == FORMAT, f"{path}: not written by this mlx_rtx; name a folder that it wrote")
    return arrays, metadata


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write arrays as a safetensors file that is marked as ours."""
    # MLX's CUDA backend may write another number for a scalar that is a view of a larger array
    arrays = {name: array if array.ndim else array + 0 for name, array in arrays.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # a name would get a suffix added
            mx.save_safetensors(file, arrays, {"format": FORMAT, **metadata})

    write_whole(path, write)
