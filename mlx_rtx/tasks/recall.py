"""In-context recall, also noisy and fuzzy: keys recur with the same value, which the model must predict.

After Poli et al., *MAD* ([arXiv 2403.17844](https://arxiv.org/abs/2403.17844)) and its program. A sequence consists of
keys, each followed by its value; the mapping from keys to values is drawn for each sequence. If a key has occurred
before, the tokens of its value are targets.

- In-context recall: key and value are one token each.
- Noisy (``noise_share``): some pairs consist of noise symbols instead, and have no targets.
- Fuzzy (``key_tokens``, ``value_tokens``): keys and values are words of one up to that many tokens, with equal
  probability.

Vocabulary: keys 0 … A/2-1, values A/2 … A-1, then noise symbols. Differences to the original: only the targets above
contribute to the loss, each batch is newly generated, words may repeat a symbol, and sequences are cut off after L
tokens instead of ending with a separately chosen pair.
"""

import math
from dataclasses import dataclass

from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks.synthetic import SyntheticTask

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class RecallTask(SyntheticTask):
    """Recall the values of keys that occurred before.

    Example:
        >>> tokens, targets = RecallTask(length=8, alphabet=4).draw(mx.random.key(1), 1)
        >>> tokens.tolist(), targets.tolist()
        ([[1, 2, 1, 2, 1, 2, 0, 2]], [[-1, -1, 2, -1, 2, -1, -1, -1]])
    """

    length: int = 128
    """Length L of a sequence in tokens."""
    alphabet: int = 16
    """Number of symbols A, half for keys and half for values."""
    noise_share: float = 0.0
    """Fraction of pairs that are noise."""
    noise_symbols: int = 16
    """Number of noise symbols, if there is noise."""
    key_tokens: int = 1
    """Maximum length of a key in tokens."""
    value_tokens: int = 1
    """Maximum length of a value in tokens."""

    summary = "Recall the value that a key had earlier in the sequence (in-context recall)."
    masked = True

    def __post_init__(self):
        require_types(self)
        require_positive(self, "length", "key_tokens", "value_tokens", "noise_symbols")
        require_at_most(self, length=2**12, alphabet=2**12, noise_symbols=2**12, key_tokens=4, value_tokens=64)
        A = self.alphabet
        require(A % 2 == 0 and A >= 4, f"alphabet={A}: must be even, and at least 4 (two keys, two values)")
        names = (A // 2 + 1) ** self.key_tokens
        require(names < 2**31, f"alphabet={A}: too many for keys of key_tokens={self.key_tokens}; use fewer of either")
        share = self.noise_share
        require(0 <= share < 1, f"noise_share={share}: must be 0 (off) or below 1, e.g. 0.2")
        word = self.key_tokens + self.value_tokens
        require(self.length >= 2 * word, f"length={self.length}: must be at least {2 * word}, two pairs")

    @property
    def vocab_size(self) -> int:
        """Vocabulary size: keys, values, noise."""
        return self.alphabet + (self.noise_symbols if self.noise_share else 0)

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the values' symbols, ln(A/2) nats."""
        return math.log(self.alphabet / 2)

    def make(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) and targets (size, L), int32."""
        P, half = self.length // 2 + 1, self.alphabet // 2  # enough pairs for L + 1 tokens
        of_keys, of_values, of_noise, of_sizes = mx.random.split(key, 4)
        key_sizes, value_sizes = (
            mx.random.randint(1, most + 1, (size, P), key=own)
            for most, own in zip((self.key_tokens, self.value_tokens), mx.random.split(of_sizes), strict=True)
        )
        keys = mx.random.randint(0, half, (size, P, self.key_tokens), key=of_keys)
        values = mx.random.randint(half, 2 * half, (size, P, self.value_tokens), key=of_values)

        # name of a key: a number with its symbols as digits; a pair takes the value of the first pair with its name
        digits = mx.where(mx.arange(self.key_tokens) < key_sizes[..., None], keys + 1, 0)
        names = (digits * mx.array([(half + 1) ** i for i in range(self.key_tokens)])).sum(axis=2)  # (size, P)
        words = mx.concatenate([keys, values], axis=2)  # (size, P, tokens of a pair at most)
        noisy = mx.zeros((size, P), dtype=mx.bool_)
        if self.noise_share:
            whether, which = mx.random.split(of_noise)
            noisy = mx.random.uniform(shape=(size, P), key=whether) < self.noise_share
            names = mx.where(noisy, -1 - mx.arange(P), names)  # unique names
            noise = mx.random.randint(self.alphabet, self.vocab_size, words.shape, key=which)
            words = mx.where(noisy[..., None], noise, words)
        first = mx.where(names[:, :, None] == names[:, None, :], mx.arange(P), P).min(axis=2)
        again = first < mx.arange(P)
        own_values = mx.take_along_axis(words[..., self.key_tokens :], first[..., None], axis=1)
        words = mx.concatenate([words[..., : self.key_tokens], own_values], axis=2)
        value_sizes = mx.take_along_axis(value_sizes, first, axis=1)

        # for each token of the sequence: its pair, and its position in the pair
        sizes = key_sizes + value_sizes
        ends = mx.cumsum(sizes, axis=1)
        at = mx.arange(self.length + 1)
        begun = mx.zeros((size, self.length + 2), dtype=mx.int32)  # the last column: ends beyond L
        begun = mx.put_along_axis(begun, mx.minimum(ends, self.length + 1), mx.array(1), axis=1)[:, :-1]
        pair = mx.cumsum(begun, axis=1)  # (size, L + 1)
        place = at - mx.take_along_axis(ends - sizes, pair, axis=1)
        key_size = mx.take_along_axis(key_sizes, pair, axis=1)
        in_value = place >= key_size
        place = mx.where(in_value, place - key_size + self.key_tokens, place)
        tokens = mx.take_along_axis(words.reshape(size, -1), pair * words.shape[2] + place, axis=1)
        is_target = in_value & mx.take_along_axis(again, pair, axis=1)
        return tokens[:, :-1], mx.where(is_target, tokens, IGNORED)[:, 1:]
