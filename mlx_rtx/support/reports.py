"""Writes reports, with a record of the environment, and pictures into a folder."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlx_rtx.support import backend
from mlx_rtx.support.errors import NotInstalled, UserError
from mlx_rtx.support.files import write_whole


def make_folder(path: Path) -> Path:
    """Return the folder ``path``, created if missing.

    Raises:
        UserError: if it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RecursionError) as error:  # RecursionError: a path with a thousand parts
        reason = error.strerror if isinstance(error, OSError) else "its path is too long"
        raise UserError(f"--out {path}: cannot create this folder ({reason}); choose another") from None
    return path


def write_report(folder: Path, name: str, report: dict) -> Path:
    """Write ``name``.json, which starts with the environment (versions, device, revision); return its path."""
    text = json.dumps({"environment": backend.environment(), **report}, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return folder / f"{name}.json"


def write_picture(folder: Path, name: str, figure: Any, kind: str = "png") -> Path:
    """Write a figure as ``name``.``kind``; return its path."""
    write_whole(folder / f"{name}.{kind}", partial(figure.savefig, dpi=150))
    return folder / f"{name}.{kind}"


def add_picture(folder: Path, name: str, draw: Callable[[], Any]) -> None:
    """Draw a picture, write it next to a report and print its path, or print a note if the library is missing."""
    try:
        print(write_picture(folder, name, draw()))
    except NotInstalled as error:
        print(f"picture {name} skipped ({error})", file=sys.stderr)
