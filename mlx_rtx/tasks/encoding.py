"""Encoding of texts: small ones in memory, large ones in memory-mapped files of the cache."""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_rtx.support.cache import cache_folder
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import sha256, write_whole
from mlx_rtx.tasks.pieces import cut
from mlx_rtx.tasks.text_file import Text
from mlx_rtx.tasks.vocabulary import Encoded, Vocabulary

import numpy as np

IN_MEMORY = 2**21  # characters up to which a text is not cached but encoded in memory each time
PIECE, BATCH = 2**18, 2**22  # characters per piece, and per batch of pieces that are encoded in parallel


def encode_part(text: Text, begin: int, end: int, vocabulary: Vocabulary, sized: bool = True) -> Encoded:
    """Encode characters ``begin`` … ``end - 1`` of a text.

    The tokens of more than `IN_MEMORY` characters are cached under the hashes of text and vocabulary. Processes that
    create the same file at the same time each write their own; the last rename wins.

    Args:
        text: the text.
        begin, end: positions in characters, counted over all documents.
        vocabulary: vocabulary to encode with.
        sized: whether to return the number of bytes of each token; otherwise `Encoded.sizes` may be empty.

    Raises:
        UserError: the vocabulary lacks characters of the text, or a cache file cannot be written or was modified.
    """
    kinds = {"tokens": np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.uint32), "sizes": np.dtype(np.uint32)}
    if end - begin <= IN_MEMORY:
        found = list(zip(*_encode(text.part(begin, end), text.name, vocabulary), strict=True)) or [(), ()]
        return Encoded(*(np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32) for arrays in found))
    key = sha256(f"{text.survey.sha256} {begin} {end} {fingerprint(vocabulary)}".encode())[:32]
    paths = {name: cache_folder("tokens") / f"{key}.{name}" for name in kinds}

    def write(name: str, path: Path) -> None:
        print(f"encoding {text.name}; the result is cached", file=sys.stderr)
        with path.open("wb") as file:
            for part in _encode(text.part(begin, end), text.name, vocabulary):
                getattr(part, name).astype(kinds[name]).tofile(file)

    for name in ("tokens", "sizes") if sized else ("tokens",):
        if not paths[name].exists():
            write_whole(paths[name], partial(write, name))
    tokens = np.memmap(paths["tokens"], kinds["tokens"], "r")
    known = int(tokens.max(initial=0)) < len(vocabulary)
    require(known, f"{paths['tokens']}: holds tokens outside the vocabulary; delete it, and it is created again")
    return Encoded(tokens, np.memmap(paths["sizes"], kinds["sizes"], "r") if sized else np.zeros(0, kinds["sizes"]))


def fingerprint(vocabulary: Vocabulary) -> str:
    """Return the sha256 of a vocabulary's ``tokenizer.json``."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        vocabulary.save(path)
        return sha256(path.read_bytes())


def _encode(pieces: Iterable[str | None], name: str, vocabulary: Vocabulary) -> Iterator[Encoded]:
    """Encode pieces of text; None between documents becomes the vocabulary's separator, which counts as 0 bytes."""
    between = np.array(vocabulary.separator, np.int32)
    separator = Encoded(between, np.zeros(len(between), np.uint32))
    for texts in _batches(pieces):
        found = vocabulary.encode_all([text for text in texts if text is not None], name)
        for text in texts:
            yield separator if text is None else next(found)


def _batches(pieces: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Cut the pieces to at most about `PIECE` characters, and group them into lists of about `BATCH` characters."""
    batch: list[str | None] = []
    total = 0
    for piece in pieces:
        for each in [None] if piece is None else cut(piece, PIECE):
            batch.append(each)
            total += len(each or "")
            if total >= BATCH:
                yield batch
                batch, total = [], 0
    if batch:
        yield batch
