"""Text to train on: tiny Shakespeare, or any file in UTF-8."""

from pathlib import Path

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks.sources import download, kept, locate

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
FILE = "tinyshakespeare.txt"
CHARACTERS = 65  # different ones in it
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
INSTEAD = "give any text file in UTF-8 with --data"


def load(data: str | None) -> tuple[str, Path]:
    """The text, and the file that it came from.

    Args:
        data: a text file, or a folder that holds ``tinyshakespeare.txt``; None for MLX_RTX_DATA or the
            download. What goes by that name must be tiny Shakespeare.

    Raises:
        UserError: it is missing, not UTF-8, or not what it should be.
    """
    path = locate(data, FILE) or kept(FILE, _download)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {INSTEAD}") from None
    if path.name == FILE:
        _check(content, str(path))
    try:
        return content.decode("utf-8"), path
    except UnicodeDecodeError as error:
        where = f"byte {content[error.start]:#04x} at {error.start}"
        raise UserError(f"{path}: is not UTF-8 ({where}); convert it, for example with iconv -t UTF-8") from None


def _download(path: Path) -> None:
    rows = download(URL, INSTEAD, "text", data_files=URL, split="train", sample_by="document")
    content = rows[0]["text"].encode("utf-8")
    _check(content, URL)
    path.write_bytes(content)


def _check(content: bytes, name: str) -> None:
    found = sha256(content)
    require(
        found == SHA256,
        f"{name}: is not tiny Shakespeare (sha256 {found[:8]}…, not {SHA256[:8]}…): cut off or changed; "
        "get it again, or rename it to train on it as it is",
    )
