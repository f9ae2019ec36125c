"""Reading of texts: tiny Shakespeare, local files, or data sets of the Hugging Face hub.

Texts are read in pieces and never loaded as a whole; None separates two documents.
"""

import codecs
import glob
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks.pieces import line_end
from mlx_rtx.tasks.sources import HUB, download, kept, locate, place
from mlx_rtx.tasks.vocabulary import check_text

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
FILE = "tinyshakespeare.txt"
CHARACTERS = 65  # number of distinct characters in it
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
INSTEAD = "give any text file in UTF-8"
LINES = ".jsonl"  # suffix of files with one document per line
BLOCK = 2**22  # bytes to read at once
BETWEEN = b"\0"  # separator of documents in the hash


class Survey(NamedTuple):
    """Size and hash of a text."""

    characters: int
    sha256: str  # of its documents in UTF-8


@dataclass(frozen=True)
class Text:
    """A text of one or more documents.

    Args:
        name: name for messages.
        read: function that returns all pieces, with None between two documents.
    """

    name: str
    read: Callable[[], Iterable[str | None]]

    @classmethod
    def of(cls, text: str, name: str) -> "Text":
        """Return a text of one document in memory."""
        check_text(text, name)
        return cls(name, lambda: [text])

    @cached_property
    def survey(self) -> Survey:
        """Size and hash of the text; reads all of it."""
        characters, digest = 0, hashlib.sha256()
        for piece in self.read():
            characters += len(piece or "")
            digest.update(BETWEEN if piece is None else piece.encode("utf-8", "surrogatepass"))
        return Survey(characters, digest.hexdigest())

    @cached_property
    def known(self) -> str:
        """Distinct characters of the text, sorted; reads all of it."""
        return "".join(sorted(set[str]().union(*filter(None, self.read()))))

    def part(self, begin: int, end: int) -> Iterator[str | None]:
        """Yield the pieces of characters ``begin`` … ``end - 1``, with None between two documents."""
        at, given, between = 0, False, False
        for piece in self.read():
            if piece is None:
                between = given
                continue
            inside = piece[max(begin - at, 0) : max(end - at, 0)]
            at += len(piece)
            if inside:
                if between:
                    yield None
                yield inside
                given, between = True, False
            if at >= end:
                return


def load(data: str | None, flag: str = "--data") -> tuple[str, Path]:
    """Return a text as one string, and the file it was read from; see `find`."""
    (path,) = _files(data, flag)[:1]
    text = "".join(_read(path))
    require(bool(text), f"{path}: is empty; give a text")
    return text, path


def find(
    data: str | None,
    column: str = "text",
    split: str = "train",
    documents: int | None = None,
    flag: str = "--data",
) -> Text:
    """Return the text that ``--data``, or another flag, names.

    Args:
        data: a file, a folder or a pattern of files; or ``hf:NAME`` or ``hf:NAME:CONFIG``, a data set of the hub or
            a folder that `datasets` can read. None for MLX_RTX_DATA or tiny Shakespeare. A file named
            ``tinyshakespeare.txt`` must be tiny Shakespeare.
        column: field of the text in ``.jsonl`` files, or column in a data set.
        split: split of a data set.
        documents: number of documents to read; default: all.
        flag: flag with which ``data`` was given, for error messages.

    Raises:
        UserError: the text is missing, not UTF-8, or has an unexpected hash.
    """
    if data is not None and data.startswith(HUB):
        path = _keep_documents(data, column, split, documents, flag)
        return Text(data, lambda: _pieces([path], "text", documents))
    files = _files(data, flag)
    name = files[0].name if len(files) == 1 else str(data)
    return Text(name, lambda: _pieces(files, column, documents))


def _files(data: str | None, flag: str) -> list[Path]:
    """Return the files that a flag or MLX_RTX_DATA names, in order."""
    if data and glob.has_magic(data) and not Path(data).exists():
        found = sorted(path for path in map(Path, glob.glob(data, recursive=True)) if path.is_file())
        require(bool(found), f"{flag} {data}: matches no file; name files, or a folder")
        return found
    first = locate(data, FILE, "**/*.txt", f"**/*{LINES}", flag=flag)
    if first is None:
        return [kept(FILE, partial(_download, flag=flag))]
    folder = place(data)
    if folder.is_file() or first.name == FILE:
        return [first]
    return sorted(path for path in folder.rglob("*") if path.suffix in (".txt", LINES) and path.is_file())


def _pieces(files: Iterable[Path], column: str, count: int | None) -> Iterator[str | None]:
    for i, document in enumerate(islice(_documents(files, column), count)):
        if i:
            yield None
        yield from document


def _documents(files: Iterable[Path], column: str) -> Iterator[Iterable[str]]:
    """Yield documents as iterables of pieces: each line of a ``.jsonl`` file, and each other file as a whole."""
    for path in files:
        if path.suffix != LINES:
            yield _read(path)
            continue
        for number, line in enumerate(_lines(path), 1):
            try:
                text = json.loads(line)[column]
                text.encode()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise UserError(f'{path}: line {number} is not like {{"{column}": "…"}}; see --column') from None
            yield [text]


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file that are not blank."""
    left = ""
    for piece in _read(path):
        *whole, left = (left + piece).split("\n")
        yield from filter(str.strip, whole)
    if left.strip():
        yield left


def _read(path: Path) -> Iterator[str]:
    """Yield a file in pieces that end with a line break, if it has any."""
    if path.name == FILE:
        _check(path)
    decoder, left, done = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                waiting = len(decoder.getstate()[0])
                left += decoder.decode(block)
                done += len(block)
                if place := line_end(left, 0, len(left)):
                    yield left[:place]
                    left = left[place:]
        block, waiting = b"", len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {INSTEAD}") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.object[error.start]:#04x} at {done - waiting + error.start}"
        raise UserError(f"{path}: is not UTF-8 ({where}); convert it, for example with iconv -t UTF-8") from None
    if left:
        yield left


def _keep_documents(name: str, column: str, split: str, count: int | None, flag: str) -> Path:
    """Stream a data set's documents into a ``.jsonl`` file in the cache, unless it exists; return its path."""
    what, _, config = name.removeprefix(HUB).partition(":")
    require(what != "", f"{flag} {name}: names no data set; write {HUB}NAME or {HUB}NAME:CONFIG")
    found = sorted(Path(what).rglob("*")) if Path(what).is_dir() else []  # the files of a local data set may change
    state = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in found]
    key = sha256(json.dumps([name, column, split, count, state]).encode())[:16]

    def fetch(path: Path) -> None:
        rows = download(name, f"{INSTEAD} as {flag}", what, config or None, split=split, streaming=True)
        with path.open("w", encoding="utf-8") as file:
            for row in islice(_whole(rows, name), count):
                text = row.get(column)
                known = ", ".join(row)
                require(isinstance(text, str), f"--column {column}: is not text in {name}, which has {known}")
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")

    return kept(f"{Path(what).name}-{split}-{key}{LINES}", fetch)


def _whole(rows: Iterable[dict], name: str) -> Iterator[dict]:
    """Yield all rows of a data set; raise UserError if the download fails."""
    try:
        yield from rows
    except OSError:
        raise  # its message is clear enough
    except Exception as error:  # any error of the library, the network or the server
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: failed ({type(error).__name__}: {reason}); call again, or {INSTEAD}") from None


def _download(path: Path, flag: str) -> None:
    rows = download(URL, f"{INSTEAD} as {flag}", "text", data_files=URL, split="train", sample_by="document")
    content = rows[0]["text"].encode("utf-8")
    _check_hash(sha256(content), URL)
    path.write_bytes(content)


def _check(path: Path) -> None:
    with path.open("rb") as file:
        _check_hash(hashlib.file_digest(file, "sha256").hexdigest(), str(path))


def _check_hash(found: str, name: str) -> None:
    require(
        found == SHA256,
        f"{name}: is not tiny Shakespeare (sha256 {found[:8]}…, not {SHA256[:8]}…): truncated or modified; "
        "download it again, or rename it to train on it anyway",
    )
