"""What tokens stand for: characters, or whatever a subclass says, kept as a JSON file of the ``tokenizers`` library."""

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
    """A text as tokens."""

    tokens: np.ndarray  # (n,)
    sizes: np.ndarray  # (n,), bytes of the text in UTF-8 that each token stands for; together all there are


def check_text(text: str, name: str) -> None:
    """Refuse what is no text."""
    require(isinstance(text, str), f"{name}: is a {type(text).__name__}; give text")


class Vocabulary(ABC):
    """Tokens 0 … V-1 and the text that they stand for."""

    unit: ClassVar[str]
    """What people call a token."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of tokens V."""

    @abstractmethod
    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Tokens of a text, int32 (n,).

        Raises:
            UserError: ``text``, called ``name`` there, is none that this vocabulary has tokens for.
        """

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens (n,).

        Raises:
            UserError: a token that stands for nothing.
        """

    def known(self, tokens: Iterable[int]) -> list[int]:
        """Tokens (n,), all of which are of this vocabulary.

        Raises:
            UserError: one is not.
        """
        try:
            numbers = list(map(operator.index, tokens))
        except TypeError:
            raise UserError(f"tokens: are {type(tokens).__name__}; give whole numbers (n,)") from None
        outside = next((number for number in numbers if not 0 <= number < len(self)), None)
        require(outside is None, f"tokens: {outside} is among them; must lie in 0 … {len(self) - 1}")
        return numbers

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write a ``tokenizer.json``."""

    @property
    @abstractmethod
    def opening(self) -> str:
        """Something to begin a text with."""

    @property
    @abstractmethod
    def separator(self) -> Sequence[int]:
        """Tokens between two texts that have nothing to do with each other."""

    end: int | None = None
    """The token that ends a text, where there is one."""
    end_name: str | None = None
    """What that is called."""

    @property
    @abstractmethod
    def token_bytes(self) -> Sequence[bytes] | None:
        """The bytes of each token; None where they depend on its neighbours."""

    def encode_all(self, texts: Sequence[str], name: str) -> Iterator[Encoded]:
        """Each of several texts, with the bytes that its tokens stand for."""
        sizes = np.array([len(each) for each in self.token_bytes or ()], np.uint32)
        for text in texts:
            tokens = self.encode(text, name)
            yield Encoded(tokens, sizes[tokens])

    def decoder(self, before: Sequence[int] = ()) -> Callable[[int], str]:
        """A function of one token after the other that gives what each adds to the text.

        A character of which some bytes are still to come is held back until they have come.

        Args:
            before: tokens that went before the first, of which nothing is given.
        """
        table, decoder = self.token_bytes, codecs.getincrementaldecoder("utf-8")("replace")
        assert table is not None

        def decode(token: int) -> str:
            return decoder.decode(table[token])

        for token in before:
            decode(token)
        return decode


class Characters(Vocabulary):
    """A vocabulary of single characters, numbered in the order of their code points.

    Args:
        characters: the characters; what is there twice counts once.

    Example:
        >>> vocabulary = Characters("hello")
        >>> vocabulary.encode("hole").tolist(), vocabulary.decode([1, 0, 2, 2, 3])
        ([1, 3, 2, 0], 'hello')
    """

    unit = "character"

    def __init__(self, characters: str):
        require(isinstance(characters, str), f"characters={shown(characters)}: is no text")
        require(characters != "", "characters='': there is none; give at least one")
        self.characters = "".join(sorted(set(characters)))
        self._points = np.array([ord(c) for c in self.characters], np.uint32)

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Token of each character, int32 (n,).

        Raises:
            UserError: ``text``, called ``name`` there, is no text or has characters that the vocabulary lacks.
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
        """The characters of tokens (n,)."""
        return "".join(self.characters[token] for token in self.known(tokens))

    @property
    def opening(self) -> str:
        """A line break, where it is known."""
        return "\n" if "\n" in self.characters else self.characters[0]

    @property
    def separator(self) -> Sequence[int]:
        """A line break, where it is known."""
        return [self.characters.index("\n")] if "\n" in self.characters else []

    @cached_property
    def token_bytes(self) -> Sequence[bytes]:
        """Each character in UTF-8."""
        return [character.encode("utf-8", "surrogatepass") for character in self.characters]

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
            if dict(zip(loaded.characters, range(len(loaded)), strict=True)) != vocabulary:
                raise ValueError("its tokens are not characters in order")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no vocabulary of this project ({error}); {again}") from None
        return loaded
