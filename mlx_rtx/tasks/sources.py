"""Sources of data: local files and cached downloads."""

import glob
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_rtx.support.cache import cache_folder
from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import write_whole

VARIABLE = "MLX_RTX_DATA"
HUB = "hf:"  # prefix of names of data sets on the Hugging Face hub


def absolute(named: str) -> str:
    """Make a path absolute if it names existing files, a folder or a local data set; return other names unchanged.

    Example:
        >>> absolute("hf:roneneldan/TinyStories"), absolute("/data/../text.txt")
        ('hf:roneneldan/TinyStories', '/text.txt')
    """
    hub = HUB if named.startswith(HUB) else ""
    path, colon, configuration = named.removeprefix(hub).partition(":") if hub else (named, "", "")
    if not os.path.exists(path) and not glob.glob(path, recursive=True):
        return named
    return f"{hub}{os.path.abspath(path)}{colon}{configuration}"


def place(data: str | None) -> Path:
    """Return the path of ``data``: in the working directory, else in the folder MLX_RTX_DATA; that folder for None."""
    folder = Path(os.environ.get(VARIABLE, ""))
    if not data:
        return folder
    return folder / data if not os.path.exists(data) and (folder / data).exists() else Path(data)


def locate(data: str | None, *names: str, flag: str = "--data") -> Path | None:
    """Return the file that ``--data`` or MLX_RTX_DATA names, or a matching file in the folder they name.

    Args:
        data: value of ``--data``, if given; it takes precedence over MLX_RTX_DATA, and may be relative to that folder.
        names: patterns of files to look for in a folder; the first with a match is used.
        flag: flag with which ``data`` was given, for error messages.

    Returns:
        The path; None if neither is given, so that the data is to be downloaded.

    Raises:
        UserError: there is no such file.
    """
    given = f"{flag} {data}" if data else f"{VARIABLE}={os.environ.get(VARIABLE, '')}"
    path = place(data)
    if not data and not os.environ.get(VARIABLE):
        return None
    if not path.exists():
        raise UserError(f"{given}: not found; name an existing file or folder, or none to download the data")
    if path.is_file():
        return path
    for name in names:
        if found := sorted(path.glob(name)):
            return found[0]
    raise UserError(f"{given}: this folder has no {' and no '.join(names)}; name the file itself, or another folder")


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """Return the path of a file in the cache (XDG_CACHE_HOME or ~/.cache), created by ``make`` if it is missing."""
    path = cache_folder() / name
    if not path.exists():
        write_whole(path, make)
    return path


def quiet_hub() -> None:
    """Silence the hub client's own messages about errors."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # takes effect if the client is not imported yet
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def download(what: str, instead: str, *arguments: Any, **settings: Any) -> Any:
    """Call ``datasets.load_dataset``, and convert its errors to one-line messages.

    Args:
        what: name or address of the download, for messages.
        instead: alternative to the download, for messages.

    Raises:
        UserError: the package is missing, or the download failed.
    """
    try:
        import datasets  # imported late: heavy, and not needed for local files
    except ImportError:
        raise UserError(f"{what}: needs the package datasets (pip install 'mlx-rtx[data]'); or {instead}") from None
    quiet_hub()
    print(f"reading {what}; the result is cached", file=sys.stderr)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, **settings)
    except Exception as error:  # any error of the library, the network or the server
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: could not be loaded ({type(error).__name__}: {reason}); {instead}") from None
