"""Files that are whole or not there, and hashes of what they hold."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then put it in the place of ``path``.

    Raises:
        UserError: it could not be written; what stood at ``path`` still does.
    """
    temporary = path.with_name("." + path.stem + ".tmp" + path.suffix)
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # MLX raises the latter
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free some space or choose another place") from None


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
