"""Files that are whole or not there, files of others that are only data, and hashes of what they hold."""

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

LARGEST = 2**26  # bytes of a file that is read in one piece


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then put it in the place of ``path``, on the disk before anything later is.

    What is no file, as ``/dev/stdout`` or a pipe, is written to as it stands.

    Raises:
        UserError: it could not be written; what stood at ``path`` still does.
    """
    require(not os.path.isdir(path), f"{path}: is a folder; name a file")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        if path.exists() and not path.is_file():
            write(path)
            return
        temporary.unlink(missing_ok=True)  # a link that lies there would lead to another file
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot do it to a folder
            _sync(path.parent)
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); {remedy(error)}") from None


def remove_left_over(folder: Path) -> None:
    """Remove what `write_whole` left of files of ``folder`` when it was killed; nothing may be writing there."""
    for temporary in folder.glob(".*.[0-9]*.tmp.*"):
        with contextlib.suppress(OSError):
            temporary.unlink()


def remedy(error: Exception) -> str:
    """What to do about a file that cannot be written."""
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return "make this place writable or choose another"
    return "free some space or choose another place"


def as_path(name: str, given: Any, what: str) -> Path:
    """A path, or a refusal of what names no file or folder; ``what`` it should name, for the message."""
    if isinstance(given, str | os.PathLike) and isinstance(path := os.fspath(given), str):
        require(path != "" and "\0" not in path, f"{name}={shown(path)}: names nothing; give {what}")
        return Path(path)
    raise UserError(f"{name}: is a {type(given).__name__}; give {what}, as text or a pathlib.Path")


def open_data(path: Path) -> BinaryIO:
    """Open a file that may be anybody's: a regular one, in its own folder.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is no such file, or cannot be read.
    """
    try:
        kind = os.stat(path).st_mode
        require(stat.S_ISREG(kind), f"{path}: is no file; name a file, or restore it")
        inside = os.path.dirname(os.path.realpath(path)) == os.path.realpath(path.parent)
        require(inside, f"{path}: is a link that leads out of its folder; put the file itself there")
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable, or restore it") from None


def read_data(path: Path, instead: str) -> bytes:
    """All of a small file; see `read_json`."""
    with open_data(path) as file:
        size = os.fstat(file.fileno()).st_size
        require(size <= LARGEST, f"{path}: is larger than {LARGEST:,} bytes; {instead}")
        return file.read(size)


def read_json(path: Path, instead: str) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        instead: what to do where it cannot be read, for the message.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is no JSON in UTF-8, or larger or deeper than any of ours.
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
    """Write ``content`` as JSON; what a number that is not finite means is for the caller to say, JSON has none."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def sha256(*parts: Any) -> str:
    """Hash of buffers, one after the other, in hexadecimal."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
