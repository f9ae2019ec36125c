"""Atomic writing of files, checked reading of untrusted files, and hashes."""

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.typed import shown

LARGEST = 2**26  # maximum bytes of a file that is read at once


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: ``write`` fills a temporary file, which is synced to disk and renamed to ``path``.

    If ``path`` exists and is not a regular file, such as ``/dev/stdout`` or a pipe, ``write`` writes to it directly.

    Raises:
        UserError: if the file could not be written; an existing file at ``path`` is unchanged.
    """
    require(not os.path.isdir(path), f"{path}: is a folder; name a file")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        if path.exists() and not path.is_file():
            write(path)
            return
        temporary.unlink(missing_ok=True)  # do not follow an existing link
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            _sync(path.parent)
    except (OSError, RuntimeError) as error:  # MLX raises RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); {remedy(error)}") from None


def remove_left_over(folder: Path) -> None:
    """Remove temporary files that killed calls of `write_whole` left in ``folder``; no call may be in progress."""
    for temporary in folder.glob(".*.[0-9]*.tmp.*"):
        with contextlib.suppress(OSError):
            temporary.unlink()


def remedy(error: Exception) -> str:
    """Return the remedy, for an error message, if a file cannot be written."""
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return "make this place writable or choose another"
    return "free some space or choose another place"


def as_path(name: str, given: Any, what: str) -> Path:
    """Return argument ``name`` as a path.

    Raises:
        UserError: if it cannot be a path; the message asks for ``what``.
    """
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        require(path != "" and "\0" not in path, f"{name}={shown(path)}: not a path; give {what}")
        return Path(path)
    raise UserError(f"{name}: is a {type(given).__name__}; give {what}, as text or a pathlib.Path")


def open_data(path: Path) -> BinaryIO:
    """Open an untrusted file for reading; it must be a regular file, not a link to one outside its folder.

    Raises:
        FileNotFoundError: if it does not exist.
        UserError: if it is not such a file, or cannot be read.
    """
    try:
        kind = os.stat(path).st_mode
        require(stat.S_ISREG(kind), f"{path}: not a regular file; name a file, or restore it")
        inside = os.path.dirname(os.path.realpath(path)) == os.path.realpath(path.parent)
        require(inside, f"{path}: is a link to a file outside its folder; put the file itself there")
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or restore it") from None


def read_data(path: Path, instead: str) -> bytes:
    """Return the content of a small file; see `read_json` for arguments and errors."""
    with open_data(path) as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= LARGEST, f"{path}: is larger than {LARGEST:,} bytes; {instead}")
        return file.read(size)


def read_json(path: Path, instead: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: the file.
        instead: remedy for the error message if it cannot be read.

    Raises:
        FileNotFoundError: if it does not exist.
        UserError: if it is not valid JSON in UTF-8, or too large or too deeply nested.
    """
    content = read_data(path, instead)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {instead}") from None


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; all numbers must be finite."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def sha256(*parts: Any) -> str:
    """Return the hexadecimal SHA-256 of the concatenation of buffers."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _sync(path: Path) -> None:
    """Sync a file, or a folder's directory entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
