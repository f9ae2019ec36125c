"""Subword vocabularies: tokenizers of the ``tokenizers`` library from a file, from the hub, or trained on the text."""

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
ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|eot_id|>", "<|im_end|>", "[SEP]")  # names of the end-of-text token
LEAST = 257  # minimum vocabulary size for training: each byte, and the end of text
PIECE = 2**18  # characters per piece to encode


class Subwords(Vocabulary):
    """Vocabulary of a ``tokenizers.Tokenizer``.

    Args:
        tokenizer: the tokenizer; its truncation and padding are switched off.

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
        """Return the tokens of a text, int32 (n,); long texts are encoded in pieces."""
        check_text(text, name)
        if lone := re.search("[\ud800-\udfff]", text):  # lone surrogates, which stand for bytes that are not UTF-8
            raise UserError(f"{name}: {lone[0]!r} is not a character; leave it out")
        parts = [encoding.ids for encoding in self._encode(list(cut(text, PIECE)))]
        return np.array(list(chain(*parts)), np.int32)

    def encode_all(self, texts: Sequence[str], name: str) -> Iterator[Encoded]:
        """Yield the tokens of each text, with the number of bytes that each token stands for."""
        table = self.token_bytes
        known = None if table is None else np.array([len(each) for each in table], np.uint32)
        for text, encoding in zip(texts, self._encode(texts), strict=True):
            tokens = np.array(encoding.ids, np.int32)
            sizes = np.zeros(0, np.uint32) if known is None else known[tokens]
            if int(sizes.sum()) != len(text.encode()):  # the tokenizer normalizes text
                sizes = _sizes_by_place(text, encoding.offsets)
            yield Encoded(tokens, sizes)

    def _encode(self, texts: Sequence[str]) -> list[Any]:
        return self.tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens (n,); bytes that are not UTF-8 become replacement characters."""
        return self.tokenizer.decode(self.known(tokens), skip_special_tokens=False)

    @property
    def opening(self) -> str:
        """Prompt for samples: a line break if it can be encoded, else the text of the first token that can."""
        candidates = ("\n", *(self.decode([token]) for token in range(len(self))))
        return next(text for text in candidates if len(self.encode(text)))

    @property
    def separator(self) -> Sequence[int]:
        """Tokens between documents: the end of text if the tokenizer has one, else an empty line."""
        return self.encode("\n\n").tolist() if self.end is None else [self.end]

    @cached_property
    def token_bytes(self) -> Sequence[bytes] | None:
        """Bytes of each token of a byte-level tokenizer (GPT-2, Llama 3, …); None for other tokenizers."""
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
        """See `Vocabulary.decoder`; without `token_bytes`, text that ends in a replacement character is held back."""
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
        """Write the tokenizer in its library's format."""
        write_text(path, self.tokenizer.to_str(pretty=True))


def find_tokenizer(name: str) -> Subwords:
    """Return the tokenizer in a file, or that of a model on the Hugging Face hub.

    Args:
        name: a ``tokenizer.json``, a folder that contains one, or a model such as ``openai-community/gpt2``.

    Raises:
        UserError: there is no such tokenizer, or the library is missing.
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
    except BaseException as error:  # the library raises plain Exception, and Rust panics are not an Exception
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--tokenizer {name}: is not a tokenizer ({reason}); name a tokenizer.json or a model of the "
            "Hugging Face hub"
        ) from None
    require(len(found.get_vocab()) > 0, f"--tokenizer {name}: has no tokens; name another")
    return Subwords(found)


def train_tokenizer(texts: Iterable[str], size: int) -> Subwords:
    """Train a byte-level byte-pair encoding (BPE) on texts, with the end of text as token 0.

    Args:
        texts: pieces of text.
        size: vocabulary size V, at least `LEAST`; short texts give a smaller vocabulary.
    """
    require(size >= LEAST, f"vocab_size={size}: must be at least {LEAST} (each byte, and the end of text), e.g. 4096")
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
    """Read the vocabulary from a ``tokenizer.json`` that `Vocabulary.save` wrote.

    Raises:
        UserError: the file is missing or invalid.
    """
    try:
        found = read_json(path, "restore it, or train again")
        subwords = bool(found["model"].get("merges") or found["pre_tokenizer"] or found["model"]["type"] != "BPE")
    except (OSError, KeyError, TypeError, AttributeError):
        subwords = False
    return find_tokenizer(str(path)) if subwords else Characters.load(path)


def _library(what: str) -> Any:
    try:
        import tokenizers  # imported late: not needed for characters
    except ImportError:
        raise UserError(f"{what}: needs the package tokenizers (pip install 'mlx-rtx[tokenizers]')") from None
    return tokenizers


def _has_byte_level(decoder: dict[str, Any] | None) -> bool:
    """Return whether a decoder, given as parsed JSON, is the byte-level decoder alone."""
    if decoder is None:
        return False
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return [part["type"] for part in parts] == ["ByteLevel"]


def _bytes_by_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary represents.

    Printable characters represent themselves; the other bytes are numbered from U+0100 (Radford et al. 2019, GPT-2).
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _sizes_by_place(text: str, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the bytes of ``text`` from the end of the previous token to that of each token; the last has the rest."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(np.array([end for _, end in spans], np.int64))
    if len(ends):
        ends[-1] = len(text)
    return np.diff(bytes_before[ends], prepend=0).astype(np.uint32)
