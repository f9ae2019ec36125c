"""Vocabularies, which map text to tokens and back; saved as ``tokenizer.json`` of the ``tokenizers`` library."""

import codecs
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import read_json, write_json
from mlx_rtx.support.typed import shown

import numpy as np


class Encoded(NamedTuple):
    """An encoded text."""

    tokens: np.ndarray  # (n,)
    sizes: np.ndarray  # (n,), number of UTF-8 bytes that each token stands for; their sum is the size of the text


def check_text(text: str, name: str) -> None:
    """Raise UserError unless ``text`` is a string."""
    require(isinstance(text, str), f"{name}: is a {type(text).__name__}; give text")


class Vocabulary(ABC):
    """Tokens 0 … V-1, and the text that each stands for."""

    unit: ClassVar[str]
    """Word for a token in messages, such as "character"."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of tokens V."""

    @abstractmethod
    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Return the tokens of a text, int32 (n,).

        Raises:
            UserError: ``text`` cannot be encoded; the message calls it ``name``.
        """

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens (n,).

        Raises:
            UserError: a token is outside the vocabulary.
        """

    def known(self, tokens: Iterable[int]) -> list[int]:
        """Return tokens (n,) as a list of integers, after checking that they are in the vocabulary.

        Raises:
            UserError: a token is not an integer in 0 … V-1.
        """
        try:
            numbers = list(map(operator.index, tokens))
        except TypeError:
            raise UserError(f"tokens: are {type(tokens).__name__}; give whole numbers (n,)") from None
        outside = next((number for number in numbers if not 0 <= number < len(self)), None)
        require(outside is None, f"tokens: contain {outside}; must lie in 0 … {len(self) - 1}")
        return numbers

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``."""

    @property
    @abstractmethod
    def opening(self) -> str:
        """Prompt for samples."""

    @property
    @abstractmethod
    def separator(self) -> Sequence[int]:
        """Tokens between two documents."""

    end: int | None = None
    """End-of-text token, None if absent."""
    end_name: str | None = None
    """Name of the end-of-text token, None if absent."""

    @property
    @abstractmethod
    def token_bytes(self) -> Sequence[bytes] | None:
        """Bytes of each token; None if they depend on neighbouring tokens."""

    def encode_all(self, texts: Sequence[str], name: str) -> Iterator[Encoded]:
        """Yield the tokens of each text, with the number of bytes that each token stands for."""
        sizes = np.array([len(each) for each in self.token_bytes or ()], np.uint32)
        for text in texts:
            tokens = self.encode(text, name)
            yield Encoded(tokens, sizes[tokens])

    def decoder(self, before: Sequence[int] = ()) -> Callable[[int], str]:
        """Return a function for incremental decoding: it takes one token at a time, and returns the text it adds.

        Incomplete UTF-8 characters are held back until their last byte.

        Args:
            before: tokens before the first one, whose text is not returned.
        """
        table, decoder = self.token_bytes, codecs.getincrementaldecoder("utf-8")("replace")
        assert table is not None

        def decode(token: int) -> str:
            return decoder.decode(table[token])

        for token in before:
            decode(token)
        return decode


class Characters(Vocabulary):
    """Vocabulary of single characters, numbered in the order of their code points.

    Args:
        characters: the characters; duplicates are ignored.

    Example:
        >>> vocabulary = Characters("hello")
        >>> vocabulary.encode("hole").tolist(), vocabulary.decode([1, 0, 2, 2, 3])
        ([1, 3, 2, 0], 'hello')
    """

    unit = "character"

    def __init__(self, characters: str):
        require(isinstance(characters, str), f"characters={shown(characters)}: must be a string")
        require(characters != "", "characters='': must have at least one character")
        self.characters = "".join(sorted(set(characters)))
        self._points = np.array([ord(c) for c in self.characters], np.uint32)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Return the token of each character, int32 (n,).

        Raises:
            UserError: ``text``, called ``name`` in the message, is not a string or has unknown characters.
        """
        check_text(text, name)
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        tokens = np.searchsorted(self._points, points)
        known = np.append(self._points, 2**32 - 1)[tokens] == points
        if not known.all():
            unknown = sorted({chr(point) for point in points[~known]})
            shown = ", ".join(repr(c) for c in unknown[:5]) + (", …" if len(unknown) > 5 else "")
            raise UserError(f"{name}: {shown} is not among the {len(self)} characters the model knows; leave it out")
        return tokens.astype(np.int32)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the characters of tokens (n,)."""
        return "".join(self.characters[token] for token in self.known(tokens))

    @property
    def opening(self) -> str:
        """Prompt for samples: a line break, or the first character if the vocabulary has no line break."""
        return "\n" if "\n" in self.characters else self.characters[0]

    @property
    def separator(self) -> Sequence[int]:
        """Token between documents: a line break, or nothing if the vocabulary has none."""
        return [self.characters.index("\n")] if "\n" in self.characters else []

    @cached_property
    def token_bytes(self) -> Sequence[bytes]:
        """UTF-8 bytes of each character."""
        return [character.encode("utf-8", "surrogatepass") for character in self.characters]

    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``: a byte-pair encoding of characters without merges."""
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
        """Read a file that `save` wrote.

        Raises:
            UserError: the file is missing or invalid.
        """
        again = "restore it, or train again"
        try:
            found = read_json(path, again)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; {again}") from None
        try:
            vocabulary = found["model"]["vocab"]
            loaded = cls("".join(vocabulary))
            loaded.characters.encode()  # fails on lone surrogates
            if dict(zip(loaded.characters, range(len(loaded)), strict=True)) != vocabulary:
                raise ValueError("its tokens are not characters in order")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is not a vocabulary of this project ({error}); {again}") from None
        return loaded
