"""Reads and writes arrays in safetensors files, with checks against damage.

A file consists of the length of the header, the header in JSON, and the array data. The header's metadata contain our
format name and the SHA-256 of metadata, names, dtypes, shapes and data. The header is checked against the file's size
and the expected arrays before any data is read, and the SHA-256 before any is used.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import open_data, sha256, write_whole
from mlx_rtx.support.typed import fits, make, shown

import mlx.core as mx
import numpy as np

FORMAT = "mlx_rtx-2"  # of all files that are written
FORMATS = ("mlx_rtx-1", FORMAT)  # that can be read; the first has no SHA-256
LARGEST_HEADER = 2**24  # bytes
LARGEST_RANK = 8
DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64, "I8": mx.int8,
    "I16": mx.int16, "I32": mx.int32, "I64": mx.int64, "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Described(NamedTuple):
    """Dtype (in safetensors' notation) and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: mx.array) -> "Described":
        """Describe an array, which need not have been computed."""
        return cls(NAMES[array.dtype], array.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].size

    def __str__(self) -> str:
        return f"{self.shape} of {self.dtype}"


class ArrayFile(NamedTuple):
    """An open file with a valid header; array data has not been read yet."""

    path: Path
    file: BinaryIO
    metadata: dict[str, str]
    arrays: dict[str, Described]
    starts: dict[str, int]  # offsets in the file

    def read(self, expected: dict[str, mx.array], finite: bool = True, part: str = "") -> dict[str, mx.array]:
        """Read and check arrays.

        Args:
            expected: arrays with the expected names, dtypes and shapes; they need not have been computed.
            finite: whether to reject values that are not finite; always done for files without a SHA-256.
            part: prefix of the names in the file of the arrays to read; it is removed.

        Raises:
            UserError: if the arrays differ from those expected or those written, or are not finite.
        """
        here = {name.removeprefix(part): array for name, array in self.arrays.items() if name.startswith(part)}
        there = {name: Described.of(array) for name, array in expected.items()}
        for name in sorted(here.keys() | there.keys()):
            require(
                here.get(name) == there.get(name),
                f"{self.path}: {shown(name)} has shape {here.get(name)}, the configuration says {there.get(name)}; "
                "the file belongs to another run",
            )
        chunks = {name: self._read(name) for name in sorted(self.arrays)}
        digest = self.metadata.get("sha256")
        whole = digest == _digest(self.metadata, self.arrays, chunks) if digest else self.metadata["format"] != FORMAT
        require(whole, f"{self.path}: is not what was written (its sha256 differs); restore it or train again")
        arrays = {
            name: mx.array(np.frombuffer(chunks[part + name], np.uint8)).view(DTYPES[dtype]).reshape(shape)
            for name, (dtype, shape) in here.items()
        }
        if finite or digest is None:
            bad = next((name for name, array in arrays.items() if not mx.isfinite(array).all()), None)
            require(
                bad is None,
                f"{self.path}: {bad} holds numbers that are not finite; restore the file, or begin again without it",
            )
        return arrays

    def _read(self, name: str) -> bytes:
        self.file.seek(self.starts[name])
        chunk = self.file.read(self.arrays[name].size)
        require(len(chunk) == self.arrays[name].size, f"{self.path}: was truncated while being read; try again")
        return chunk


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Context manager: open a safetensors file that `write_arrays` wrote.

    Raises:
        UserError: if it is missing, truncated, or was not written by this package.
    """
    try:
        file = open_data(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; name an existing file, or restore it") from None
    with file:
        try:
            found = _read_header(path, file)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: truncated or not a safetensors file ({error}); restore it or train again"
            ) from None
        require(
            found.metadata.get("format") in FORMATS, f"{path}: not written by this mlx_rtx; name a folder that it wrote"
        )
        yield found


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Header entry of an array."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]

    def __post_init__(self):
        require(self.dtype in DTYPES, f"dtype={shown(self.dtype)}: unknown")
        require(len(self.shape) <= LARGEST_RANK and all(0 <= n < 2**31 for n in self.shape), "shape: invalid")


def _read_header(path: Path, file: BinaryIO) -> ArrayFile:
    """Read the header and check it against the file's size; raise ``ValueError`` if it is invalid."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    require(begin <= size and length <= LARGEST_HEADER, f"header of {length:,} bytes in a file of {size:,}")
    header = json.loads(file.read(length).decode())
    require(isinstance(header, dict), "its header must be a table")
    metadata = header.pop("__metadata__", None) or {}
    require(fits(metadata, dict[str, str]), "its metadata must be text")
    entries = {name: make(_Entry, entry) for name, entry in header.items()}
    at, starts, arrays = 0, {}, {}
    for name, entry in sorted(entries.items(), key=lambda one: one[1].data_offsets):
        arrays[name], starts[name] = Described(entry.dtype, tuple(entry.shape)), begin + at
        end = at + arrays[name].size
        require(entry.data_offsets == [at, end], f"{shown(name)} is not at {at:,} … {end:,}")
        at = end
    require(begin + at == size, f"it has {size:,} bytes, but {begin + at:,} according to its header")
    return ArrayFile(path, file, metadata, arrays, starts)


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write arrays as a safetensors file whose metadata contain our format name and the SHA-256."""
    # copy scalars: MLX's CUDA backend may return a wrong value for a scalar that is a view of a larger array
    arrays = {name: arrays[name] if arrays[name].ndim else arrays[name] + 0 for name in sorted(arrays)}
    described = {name: Described.of(array) for name, array in arrays.items()}
    chunks: dict[str, Any] = {name: np.asarray(array.reshape(-1).view(mx.uint8)) for name, array in arrays.items()}
    metadata = {**metadata, "format": FORMAT}
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": _digest(metadata, described, chunks)}}
    at = 0
    for name, (dtype, shape) in described.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + described[name].size]}
        at += described[name].size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for part in (len(text).to_bytes(8, "little"), text, *chunks.values()):
                file.write(part)

    write_whole(path, write)


def _digest(metadata: dict[str, str], arrays: dict[str, Described], chunks: dict[str, Any]) -> str:
    """Return the SHA-256 of metadata (without itself), of the arrays' names, dtypes and shapes, and of their data."""
    about = {name: value for name, value in metadata.items() if name != "sha256"}
    header = json.dumps([about, arrays], sort_keys=True).encode()
    return sha256(header, *(chunks[name] for name in sorted(chunks)))
