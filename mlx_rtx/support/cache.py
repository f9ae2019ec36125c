"""The user's cache: what can be had again, at a price."""

import os
from pathlib import Path

from mlx_rtx.support.errors import UserError


def cache_folder(*parts: str) -> Path:
    """A folder below XDG_CACHE_HOME (~/.cache), made where it is missing.

    Raises:
        UserError: it cannot be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("mlx_rtx", *parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror}); set XDG_CACHE_HOME") from None
    return folder
