"""The user's cache, for files that can be recreated."""

import os
from pathlib import Path

from mlx_rtx.support.errors import UserError


def cache_folder(*parts: str) -> Path:
    """Return a subfolder of ``$XDG_CACHE_HOME/mlx_rtx`` (default ``~/.cache/mlx_rtx``), created if missing.

    Raises:
        UserError: if it cannot be created.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("mlx_rtx", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot create this folder ({error.strerror}); set XDG_CACHE_HOME") from None
    return folder
