"""Damage to files, for tests that a damaged file either reads the same or is refused with a one-line message."""

import json
from collections.abc import Iterator
from pathlib import Path

from mlx_rtx import UserError
from mlx_rtx.support.safetensors import DTYPES, open_arrays, write_arrays
from mlx_rtx.training import checkpoint
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st


def damages(size: int) -> st.SearchStrategy:
    """Generate functions that damage a file of ``size`` bytes: change one byte, truncate the file or append to it."""

    def flip(at, mask):
        return lambda content: content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]

    flips = st.builds(flip, st.integers(0, size - 1), st.integers(1, 255))
    heads = st.builds(flip, st.integers(0, min(size, 600) - 1), st.integers(1, 255))  # headers are at the beginning
    cuts = st.builds(lambda end: lambda content: content[:end], st.integers(0, size - 1))
    more = st.builds(lambda extra: lambda content: content + extra, st.binary(min_size=1, max_size=20))
    return st.one_of(flips, heads, cuts, more)


def refused_or_same(path: Path, read, expected, *others: str) -> bool:
    """Return whether ``read`` refuses a file in a line that names it or one of ``others``; else compare the result."""
    refusal = None
    try:
        found = read()
    except UserError as error:
        refusal = str(error)
    if refusal is None:
        assert found == expected
    else:
        assert "\n" not in refusal
        assert any(name in refusal for name in (path.name, *others)), refusal
    return refusal is not None


def lines_kept(path: Path, before: list[dict]) -> int:
    """Count the lines of a log that still read as before; the others must be left out, not changed.

    A line whose checksum field lost its name looks like an older line with an additional field, which is ignored.
    """
    waiting, told = iter(before), 0
    for line in read_lines(path):
        assert any(json.dumps({**line, **old}) == json.dumps(line) for old in waiting), line
        told += 1
    return told


def numbers(arrays) -> dict:
    """Return arrays as plain values that can be compared."""
    return {name: (str(array.dtype), array.shape, np.array(array).tobytes()) for name, array in arrays.items()}


def rewrite(path: Path, change) -> None:
    """Change the header (as JSON) and the data of a safetensors file, without updating its sha256."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = change(json.loads(content[8 : 8 + length]), content[8 + length :])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


ODD = [..., None, True, -1, 2**70, 1.5, float("nan"), 10**400, "x", "\ud800", [], {}, [[]], {"a": 1}]  # ... is missing


def places(tree: dict, before: tuple = ()) -> Iterator[tuple]:
    """Yield the paths of all values in a nested dictionary."""
    for name, value in tree.items():
        yield (*before, name)
        if isinstance(value, dict):
            yield from places(value, (*before, name))


def change_at(tree: dict, place: tuple, value) -> dict:
    """Return a copy of a nested dictionary with the value at a path replaced, or removed if it is ``...``."""
    name, *rest = place
    if rest:
        return {**tree, name: change_at(tree[name], tuple(rest), value)}
    return {key: old for key, old in tree.items() if key != name} | ({} if value is ... else {name: value})


def forge(folder: RunFolder, part: str, stored: dict) -> None:
    """Replace a run's settings or counters, with the correct sha256."""
    if part == "config":
        folder.config.write_text(json.dumps({**stored, "sha256": checkpoint._digest(stored)}))
        return
    with open_arrays(folder.training) as file:
        arrays = file.read({name: mx.zeros(shape, DTYPES[dtype]) for name, (dtype, shape) in file.arrays.items()})
        write_arrays(folder.training, arrays, {**file.metadata, "counters": json.dumps(stored)})
