"""Text as tokens: small ones in memory, large ones in a file of the cache that is mapped into memory."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_rtx.support.cache import cache_folder
from mlx_rtx.support.files import sha256, write_whole
from mlx_rtx.tasks.pieces import cut
from mlx_rtx.tasks.text_file import Text
from mlx_rtx.tasks.vocabulary import Encoded, Vocabulary

import numpy as np

IN_MEMORY = 2**21  # characters of a text that is encoded anew each time
PIECE, BATCH = 2**18, 2**22  # characters of a piece, and of those that are encoded side by side


def encode_part(text: Text, begin: int, end: int, vocabulary: Vocabulary) -> Encoded:
    """Tokens of a text between two places in characters, which lie in it.

    Those of more than `IN_MEMORY` characters are kept in the cache, by the hashes of text and vocabulary. Processes
    that make the same files at once do it each for themselves, and what comes last stays.

    Raises:
        UserError: the vocabulary lacks characters of the text, or a file cannot be written.
    """
    kinds = {"sizes": np.dtype(np.uint32), "tokens": np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.uint32)}
    if end - begin <= IN_MEMORY:
        parts = list(_encode(text.part(begin, end), text.name, vocabulary))
        found = {name: [getattr(part, name) for part in parts] for name in kinds}
        return Encoded(**{name: np.concatenate(found[name] or [np.zeros(0, kind)]) for name, kind in kinds.items()})
    key = sha256(f"{text.survey.sha256} {begin} {end} {fingerprint(vocabulary)}".encode())[:32]
    paths = {name: cache_folder("tokens") / f"{key}.{name}" for name in kinds}

    def write(sizes_path: Path, tokens_path: Path) -> None:
        print(f"encoding {text.name}; it is kept, so this happens once", file=sys.stderr)
        with sizes_path.open("wb") as sizes, tokens_path.open("wb") as tokens:
            for part in _encode(text.part(begin, end), text.name, vocabulary):
                part.sizes.astype(kinds["sizes"]).tofile(sizes)
                part.tokens.astype(kinds["tokens"]).tofile(tokens)

    if not paths["tokens"].exists():  # it is put in its place after the other
        write_whole(
            paths["tokens"],
            lambda tokens_path: write_whole(paths["sizes"], lambda sizes_path: write(sizes_path, tokens_path)),
        )
    return Encoded(**{name: np.memmap(paths[name], kind, "r") for name, kind in kinds.items()})


def fingerprint(vocabulary: Vocabulary) -> str:
    """sha256 of a vocabulary as it is saved."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        vocabulary.save(path)
        return sha256(path.read_bytes())


def _encode(pieces: Iterable[str | None], name: str, vocabulary: Vocabulary) -> Iterator[Encoded]:
    """Pieces of text, and what separates documents, which counts no bytes."""
    between = np.array(vocabulary.separator, np.int32)
    separator = Encoded(between, np.zeros(len(between), np.uint32))
    for texts in _batches(pieces):
        found = vocabulary.encode_all([text for text in texts if text is not None], name)
        for text in texts:
            yield separator if text is None else next(found)


def _batches(pieces: Iterable[str | None]) -> Iterator[list[str | None]]:
    """The pieces, cut, in lists of about so many characters."""
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
