"""Files of lines of JSON that are only added to: a crash, or a bad byte, costs no more than a line."""

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
    """Add a line; nothing that stands there is changed, and a last line that was cut off is ended first.

    Raises:
        UserError: it could not be written.
    """
    with _opened(path, os.O_CREAT) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        left = memoryview(f"{text}\n".encode())
        while left:
            left = left[file.write(left) :]


def require_appendable(path: Path) -> None:
    """Refuse a file that is there and cannot be added to."""
    if os.path.lexists(path):
        with _opened(path):
            pass


@contextmanager
def _opened(path: Path, more: int = 0) -> Iterator[BinaryIO]:
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | more  # a link would lead to another file
    try:
        with os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy(error)}") from None


def read_json_lines(path: Path, parse: Callable[[bytes], T | None], nothing: str | None = None) -> list[T]:
    """What the lines of a file tell; nothing if it is missing.

    Lines of which ``parse`` makes nothing, such as a last one cut off by a crash, are left out, which is said on
    standard error.

    Args:
        path: the file.
        parse: what a line tells; None of one that is damaged.
        nothing: what is wrong with a file of damaged lines alone, if that is refused.

    Raises:
        UserError: it is no file, cannot be read, or tells ``nothing``.
    """
    found, damaged = [], []
    try:
        with open_data(path) as file:
            for number, text in enumerate(file, 1):
                if (said := parse(text)) is None:
                    damaged.append(number)
                else:
                    found.append(said)
    except FileNotFoundError:
        return []
    if damaged:
        require(bool(found) or nothing is None, nothing or "")
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines from {damaged[0]} on are"
        print(f"note: {path}: {which} damaged and left out", file=sys.stderr)
    return found


def parse_table(text: bytes) -> dict[str, Any] | None:
    """A line that is a JSON object in UTF-8; None of any other."""
    try:
        said = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
