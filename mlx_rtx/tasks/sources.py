"""Where data comes from: a file somebody has, or a download that is kept."""

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
HUB = "hf:"  # what begins the name of a data set of the Hugging Face hub


def absolute(named: str) -> str:
    """What names files, a folder or one's own data set, by its absolute path; all else as it is.

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
    """Where files or a folder of that name lie: here, or else in the folder of MLX_RTX_DATA, which None stands for."""
    folder = Path(os.environ.get(VARIABLE, ""))
    if not data:
        return folder
    return folder / data if not os.path.exists(data) and (folder / data).exists() else Path(data)


def locate(data: str | None, *names: str, flag: str = "--data") -> Path | None:
    """The file or folder that ``--data`` or MLX_RTX_DATA names, or what a folder holds of ``names``.

    Args:
        data: what ``--data`` says, if anything; it goes before the variable, which may name the folder it lies in.
        names: patterns of what is looked for in a folder, the first that is there counts.
        flag: what ``data`` was given with, for the message.

    Returns:
        The path; None if neither is given, and the data is to be downloaded.

    Raises:
        UserError: there is no such thing.
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
    raise UserError(f"{given}: this folder holds no {' and no '.join(names)}; name the file itself, or another folder")


def kept(name: str, make: Callable[[Path], object]) -> Path:
    """A file of the cache in XDG_CACHE_HOME (~/.cache), made by ``make`` when it is not there yet."""
    path = cache_folder() / name
    if not path.exists():
        write_whole(path, make)
    return path


def quiet_hub() -> None:
    """Have the hub's client say nothing by itself of what goes wrong."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # where it is yet to be imported
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)


def download(what: str, instead: str, *arguments: Any, **settings: Any) -> Any:
    """``datasets.load_dataset`` with what can go wrong said in one line.

    Args:
        what: name or address of what is downloaded, for the message.
        instead: how to do without, for the message.
    """
    try:
        import datasets  # late: heavy, and not needed where the data lies in a file
    except ImportError:
        raise UserError(f"{what}: needs the package datasets (pip install 'mlx-rtx[data]'); or {instead}") from None
    quiet_hub()
    print(f"reading {what}; it is kept, so this happens once", file=sys.stderr)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*arguments, **settings)
    except Exception as error:  # whatever lies between here and the server
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what}: could not be loaded ({type(error).__name__}: {reason}); {instead}") from None
