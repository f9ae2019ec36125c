"""Characters as tokens, kept as a standard JSON file of the ``tokenizers`` library."""

from pathlib import Path

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import read_json, write_json

import numpy as np


class Characters:
    """A vocabulary of single characters, numbered in the order of their code points.

    Args:
        characters: the characters; what is there twice counts once.

    Example:
        >>> vocabulary = Characters("hello")
        >>> vocabulary.encode("hole").tolist(), vocabulary.decode([1, 0, 2, 2, 3])
        ([1, 3, 2, 0], 'hello')
    """

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        self._points = np.array([ord(c) for c in self.characters], np.uint32)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Token of each character, int32 (n,).

        Raises:
            UserError: ``text``, called ``name`` there, has characters that the vocabulary lacks.
        """
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        tokens = np.searchsorted(self._points, points)
        known = self._points[np.minimum(tokens, len(self) - 1)] == points
        if not known.all():
            unknown = sorted({chr(point) for point in points[~known]})
            shown = ", ".join(repr(c) for c in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise UserError(f"{name}: {shown} is not among the {len(self)} characters the model knows; leave it out")
        return tokens.astype(np.int32)

    def decode(self, tokens) -> str:
        """The characters of tokens (n,)."""
        return "".join(self.characters[token] for token in tokens)

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``: byte-pair encoding without merges, whose units are characters."""
        vocabulary = {character: token for token, character in enumerate(self.characters)}
        model: dict = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocabulary, "merges": [],
        }  # fmt: skip
        described: dict = {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model,
        }  # fmt: skip
        write_json(path, described)

    @classmethod
    def load(cls, path: Path) -> "Characters":
        """Read what `save` wrote.

        Raises:
            UserError: the file is missing or no such vocabulary.
        """
        again = "restore it, or train again"
        try:
            found = read_json(path, again)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; {again}") from None
        try:
            vocabulary = found["model"]["vocab"]
            loaded = cls("".join(vocabulary))
            loaded.characters.encode()  # half a character is none
            if not vocabulary or dict(zip(loaded.characters, range(len(loaded)), strict=True)) != vocabulary:
                raise ValueError("its tokens are not characters in order")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no vocabulary of this project ({error}); {again}") from None
        return loaded
