"""Reports and pictures in a folder: what was found, and what it was made with."""

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
    """The folder ``path``, made where it is missing.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RecursionError) as error:  # the latter of paths with a thousand parts
        reason = error.strerror if isinstance(error, OSError) else "its path is too long"
        raise UserError(f"--out {path}: cannot make this folder ({reason}); choose another") from None
    return path


def write_report(folder: Path, name: str, report: dict) -> Path:
    """Write ``name``.json: versions, device and revision first."""
    text = json.dumps({"environment": backend.environment(), **report}, indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))
    return folder / f"{name}.json"


def write_picture(folder: Path, name: str, figure: Any, kind: str = "png") -> Path:
    """Write ``name``.png, or another kind of picture."""
    write_whole(folder / f"{name}.{kind}", partial(figure.savefig, dpi=150))
    return folder / f"{name}.{kind}"


def add_picture(folder: Path, name: str, draw: Callable[[], Any]) -> None:
    """Draw and write a picture beside a report, and name it; where there is nothing to draw with, say so."""
    try:
        print(write_picture(folder, name, draw()))
    except NotInstalled as error:
        print(f"the picture {name} is left out ({error})", file=sys.stderr)
