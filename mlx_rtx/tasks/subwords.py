"""Subwords as tokens: any tokenizer of the ``tokenizers`` library, from a file, by name, or trained on the text."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.files import read_json, write_text
from mlx_rtx.tasks.pieces import cut
from mlx_rtx.tasks.sources import quiet_hub
from mlx_rtx.tasks.vocabulary import Characters, Encoded, Vocabulary, check_text

import numpy as np

END = "<|endoftext|>"
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")  # as tokenizers call it
LEAST = 257  # tokens of one that is trained: each byte, and the end of text
PIECE = 2**18  # characters that are encoded at once


class Subwords(Vocabulary):
    """A vocabulary of a ``tokenizers.Tokenizer``.

    Args:
        tokenizer: what encodes and decodes; it is told to add nothing to a text and to cut nothing off.

    Example:
        >>> vocabulary = train_tokenizer(["low lower lowest"], 260)
        >>> vocabulary.decode(vocabulary.encode("slow"))
        'slow'
    """

    unit = "token"

    def __init__(self, tokenizer: Any):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._names: dict[int, str] = {token: name for name, token in tokenizer.get_vocab().items()}
        self.end_name = next((name for name in ENDS if tokenizer.token_to_id(name) is not None), None)
        self.end = None if self.end_name is None else tokenizer.token_to_id(self.end_name)

    def __len__(self) -> int:
        return max(self._names, default=-1) + 1

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Tokens of a text, int32 (n,), encoded in pieces if it is long."""
        check_text(text, name)
        if lone := re.search("[\ud800-\udfff]", text):  # of bytes that are no UTF-8
            raise UserError(f"{name}: {lone[0]!r} is no character; leave it out")
        parts = [encoding.ids for encoding in self._encode(list(cut(text, PIECE)))]
        return np.array(list(chain(*parts)), np.int32)

    def encode_all(self, texts: Sequence[str], name: str) -> Iterator[Encoded]:
        """Each of several texts, with the bytes that its tokens stand for."""
        table = self.token_bytes
        known = None if table is None else np.array([len(each) for each in table], np.uint32)
        for text, encoding in zip(texts, self._encode(texts), strict=True):
            tokens = np.array(encoding.ids, np.int32)
            sizes = np.zeros(0, np.uint32) if known is None else known[tokens]
            if int(sizes.sum()) != len(text.encode()):  # text was changed before it was cut, or its pieces were
                sizes = _sizes_by_place(text, encoding.offsets)
            yield Encoded(tokens, sizes)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens (n,); bytes that are no UTF-8 become replacement characters."""
        return self.tokenizer.decode(self.known(tokens), skip_special_tokens=False)

    @property
    def opening(self) -> str:
        """A line break, where there is a token of it, else the text of some token."""
        candidates = ("\n", *(self.decode([token]) for token in range(len(self))))
        return next(text for text in candidates if len(self.encode(text)))

    @property
    def separator(self) -> Sequence[int]:
        """The end of text, or else an empty line."""
        return self.encode("\n\n").tolist() if self.end is None else [self.end]

    @cached_property
    def token_bytes(self) -> Sequence[bytes] | None:
        """The bytes of each token of a tokenizer of bytes (GPT-2, Llama 3, …); None of any other."""
        if not _has_byte_level(json.loads(self.tokenizer.to_str())["decoder"]):
            return None
        added, byte = self.tokenizer.get_added_tokens_decoder(), _bytes_by_character()
        table = [b""] * len(self)
        for token, name in self._names.items():
            if token in added:
                table[token] = name.encode()
            elif byte.keys() >= set(name):
                table[token] = bytes(byte[character] for character in name)
            else:
                return None
        return table

    def decoder(self, before: Sequence[int] = ()) -> Callable[[int], str]:
        """See `Vocabulary.decoder`; without a table of bytes, what ends in a replacement character is held back."""
        if self.token_bytes:
            return super().decoder(before)
        known, fresh = list(before)[-8:], []

        def decode(token: int) -> str:
            nonlocal known, fresh
            fresh.append(token)
            shown, text = self.decode(known), self.decode(known + fresh)
            if text.endswith("\ufffd") or len(text) <= len(shown):
                return ""
            known, fresh = fresh, []
            return text[len(shown) :]

        return decode

    def save(self, path: Path) -> None:
        """Write the tokenizer as its library does."""
        write_text(path, self.tokenizer.to_str(pretty=True))


def find_tokenizer(name: str) -> Subwords:
    """The tokenizer in a file, or that of a model on the Hugging Face hub.

    Args:
        name: a ``tokenizer.json``, a folder that holds one, or a model such as ``openai-community/gpt2``.

    Raises:
        UserError: there is none, or the library is missing.
    """
    library = _library(f"--tokenizer {name}")
    quiet_hub()
    path = Path(name)
    if path.is_dir():
        path = path / "tokenizer.json"
    try:
        found = library.Tokenizer.from_file(str(path)) if path.exists() else library.Tokenizer.from_pretrained(name)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception alone, or panics in Rust, which is none
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--tokenizer {name}: is no tokenizer ({reason}); name a tokenizer.json, or a model of the Hugging Face hub"
        ) from None
    require(len(found.get_vocab()) > 0, f"--tokenizer {name}: has no tokens; name another")
    return Subwords(found)


def train_tokenizer(texts: Iterable[str], size: int) -> Subwords:
    """Byte-level byte-pair encoding (BPE) that is trained on texts, with an end of text as token 0.

    Args:
        texts: pieces of text.
        size: tokens V, at least `LEAST`; fewer come of a short text.
    """
    require(size >= LEAST, f"vocab_size={size}: must be at least {LEAST}, each byte and the end of text, e.g. 4096")
    library = _library(f"--vocab-size {size}")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Subwords(tokenizer)


def read_vocabulary(path: Path) -> Vocabulary:
    """The characters or subwords in a ``tokenizer.json`` that `Vocabulary.save` wrote.

    Raises:
        UserError: it is none.
    """
    try:
        found = read_json(path, "restore it, or train again")
        subwords = bool(found["model"].get("merges") or found["pre_tokenizer"] or found["model"]["type"] != "BPE")
    except (OSError, KeyError, TypeError, AttributeError):
        subwords = False
    return find_tokenizer(str(path)) if subwords else Characters.load(path)


def _library(what: str) -> Any:
    try:
        import tokenizers  # late: characters need none of it
    except ImportError:
        raise UserError(f"{what}: needs the package tokenizers (pip install 'mlx-rtx[tokenizers]')") from None
    return tokenizers


def _has_byte_level(decoder: dict[str, Any] | None) -> bool:
    """Whether a decoder, as JSON has it, is the one of bytes and no other."""
    if decoder is None:
        return False
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [part["type"] for part in parts] == ["ByteLevel"]


def _bytes_by_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: those that can be printed, themselves.

    The others are counted up from U+0100 (Radford et al. 2019, GPT-2).
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _sizes_by_place(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Bytes of ``text`` up to the end of each token since that of the token before it; the last one has the rest."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(np.array([end for _, end in spans], np.int64))
    if len(ends):
        ends[-1] = len(text)
    return np.diff(bytes_before[ends], prepend=0).astype(np.uint32)
