"""Append-only files of JSON lines: a crash or a damaged byte loses at most one line."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import open_data, remedy

T = TypeVar("T")


def append_line(path: Path, text: str) -> None:
    """Append a line; if the last line is incomplete, terminate it first.

    Raises:
        UserError: if the file could not be written.
    """
    with _opened(path, os.O_CREAT) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        left = memoryview(f"{text}\n".encode())
        while left:
            left = left[file.write(left) :]


def require_appendable(path: Path) -> None:
    """Raise `UserError` if the file exists but cannot be appended to."""
    if os.path.lexists(path):
        with _opened(path):
            pass


@contextmanager
def _opened(path: Path, more: int = 0) -> Iterator[BinaryIO]:
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | more  # do not follow links
    try:
        with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None


def read_json_lines(path: Path, parse: Callable[[bytes], T | None], nothing: str | None = None) -> list[T]:
    """Return the parsed lines of a file, or an empty list if it is missing.

    Damaged lines, such as a last one truncated by a crash, are skipped with a note on standard error.

    Args:
        path: the file.
        parse: parses a line; returns None if it is damaged.
        nothing: error message for a file in which all lines are damaged; by default that is no error.

    Raises:
        UserError: if it is not a file, cannot be read, or has only damaged lines and ``nothing`` is given.
    """
    found, damaged = [], []
    try:
        with open_data(path) as file:
            for number, text in enumerate(file, 1):
                if (record := parse(text)) is None:
                    damaged.append(number)
                else:
                    found.append(record)
    except FileNotFoundError:
        return []
    if damaged:
        require(bool(found) or nothing is None, nothing or "")
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines from {damaged[0]} on are"
        print(f"note: {path}: {which} damaged and skipped", file=sys.stderr)
    return found


def parse_table(text: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, or None if the line is not a JSON object in UTF-8."""
    try:
        record = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
