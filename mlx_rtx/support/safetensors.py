"""Arrays in safetensors files of this project, which are trusted no further than they prove to be whole.

Such a file is data and nothing else: the length of a header, the header in JSON, and the numbers. The header's metadata
say that it is ours, and the sha256 of what it holds: metadata, names, types, shapes and numbers. A header is held to
the file's size and to what is expected before any number is read, and the sha256 before any is used.
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

FORMAT = "mlx_rtx-2"  # of all files that the project writes and reads back
FORMATS = ("mlx_rtx-1", FORMAT)  # the first has no sha256
LARGEST_HEADER = 2**24  # bytes
LARGEST_RANK = 8
DTYPES = {
    "BOOL": mx.bool_, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64, "I8": mx.int8,
    "I16": mx.int16, "I32": mx.int32, "I64": mx.int64, "F16": mx.float16, "BF16": mx.bfloat16, "F32": mx.float32,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Described(NamedTuple):
    """Type and shape of an array, as safetensors has them."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: mx.array) -> "Described":
        """Those of an array, which need not be computed."""
        return cls(NAMES[array.dtype], array.shape)

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].size

    def __str__(self) -> str:
        return f"{self.shape} of {self.dtype}"


class ArrayFile(NamedTuple):
    """An open file whose header was found to be in order; nothing else of it is read yet."""

    path: Path
    file: BinaryIO
    metadata: dict[str, str]
    arrays: dict[str, Described]
    starts: dict[str, int]  # in the file

    def read(self, expected: dict[str, mx.array], finite: bool = True, part: str = "") -> dict[str, mx.array]:
        """The arrays, after a check that they are what was written.

        Args:
            expected: arrays of the names, types and shapes that they must have; these need not be computed.
            finite: refuse numbers that are not finite. Those of a file without a sha256 always are.
            part: what the names of those that are wanted begin with in the file; all are if not given.

        Raises:
            UserError: they are not these, not what was written, or not finite.
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
        said = self.metadata.get("sha256")
        whole = said == _digest(self.metadata, self.arrays, chunks) if said else self.metadata["format"] != FORMAT
        require(whole, f"{self.path}: is not what was written (its sha256 differs); restore it or train again")
        arrays = {
            name: mx.array(np.frombuffer(chunks[part + name], np.uint8)).view(DTYPES[dtype]).reshape(shape)
            for name, (dtype, shape) in here.items()
        }
        if finite or said is None:
            bad = next((name for name, array in arrays.items() if not mx.isfinite(array).all()), None)
            require(
                bad is None,
                f"{self.path}: {bad} holds numbers that are not finite; restore the file, or begin again without it",
            )
        return arrays

    def _read(self, name: str) -> bytes:
        self.file.seek(self.starts[name])
        chunk = self.file.read(self.arrays[name].size)
        require(len(chunk) == self.arrays[name].size, f"{self.path}: was cut off while it was read; try again")
        return chunk


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open a safetensors file that `write_arrays` wrote.

    Raises:
        UserError: it is missing, cut off, or not ours.
    """
    try:
        file = open_data(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; name a file that is there, or restore it") from None
    with file:
        try:
            found = _read_header(path, file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: cut off or no safetensors file ({error}); restore it or train again") from None
        require(
            found.metadata.get("format") in FORMATS, f"{path}: not written by this mlx_rtx; name a folder that it wrote"
        )
        yield found


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """An array as a header has it."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]

    def __post_init__(self):
        require(self.dtype in DTYPES, f"dtype={shown(self.dtype)}: is unknown here")
        require(len(self.shape) <= LARGEST_RANK and all(0 <= n < 2**31 for n in self.shape), "shape: is impossible")


def _read_header(path: Path, file: BinaryIO) -> ArrayFile:
    """What a file says that it holds, held to its size; a ``ValueError`` says what is wrong with it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    begin = 8 + length
    require(begin <= size and length <= LARGEST_HEADER, f"its header would have {length:,} bytes of {size:,}")
    header = json.loads(file.read(length).decode())
    require(isinstance(header, dict), "its header is no table")
    metadata = header.pop("__metadata__", None) or {}
    require(fits(metadata, dict[str, str]), "its metadata is no text")
    entries = {name: make(_Entry, entry) for name, entry in header.items()}
    at, starts, arrays = 0, {}, {}
    for name, entry in sorted(entries.items(), key=lambda one: one[1].data_offsets):
        arrays[name], starts[name] = Described(entry.dtype, tuple(entry.shape)), begin + at
        end = at + arrays[name].size
        require(entry.data_offsets == [at, end], f"{shown(name)} does not lie at {at:,} … {end:,}")
        at = end
    require(begin + at == size, f"it has {size:,} bytes where its header says {begin + at:,}")
    return ArrayFile(path, file, metadata, arrays, starts)


def write_arrays(path: Path, arrays: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """Write arrays as a safetensors file that is marked as ours and says its sha256."""
    # MLX's CUDA backend may give another number for a scalar that is a view of a larger array
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
    """sha256 of metadata but for its own, of the arrays' names, types and shapes, and of their numbers."""
    about = {name: value for name, value in metadata.items() if name != "sha256"}
    header = json.dumps([about, arrays], sort_keys=True).encode()
    return sha256(header, *(chunks[name] for name in sorted(chunks)))
