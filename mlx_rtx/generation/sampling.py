"""Samplers, which choose the next token of each stream.

Letters: B streams, V vocabulary size.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import check_array, values_of
from mlx_rtx.support.typed import require_numbers, require_whole

import mlx.core as mx
import numpy as np

COLDEST = 1e-6  # lowest temperature above 0, so that dividing logits by it does not overflow
Sampler = Callable[[mx.array, mx.array], mx.array]  # logits (B, V), one key per stream (B, 2) → tokens (B,)


@dataclass(frozen=True)
class CheckedSampler:
    """A sampler that checks its arguments, as `make_sampler` returns it."""

    unchecked: Sampler
    """The same sampler without checks, which would wait for the device."""

    def __call__(self, logits: mx.array, keys: mx.array) -> mx.array:
        """Draw one token per stream."""
        _check(logits, keys)
        return self.unchecked(logits, keys)


def make_sampler(temp: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> CheckedSampler:
    """Return a sampler with temperature, top-k, top-p and min-p; a token must pass all rules.

    Args:
        temp: temperature; 0 picks the most likely token. The other rules use probabilities at temperature 1.
        top_k: sample only from the k most likely tokens; 0 for all.
        top_p: sample only from the most likely tokens whose total probability just reaches p; 1 for all.
        min_p: sample only from tokens at least p times as probable as the most likely one; 0 for all.

    Returns:
        ``sampler(logits, keys)``. Tokens of logit -inf are not drawn; NaN, or no finite logit, raises `UserError`. Of
        equally likely tokens a rule keeps all or none.

    Raises:
        UserError: if a value is out of range.

    Example:
        >>> sampler = make_sampler(temp=1.0, top_k=1)
        >>> sampler(mx.array([[0.1, 0.7, 0.2]]), mx.array([[0, 1]], dtype=mx.uint32)).item()
        1
    """
    require_numbers(temp=temp, top_p=top_p, min_p=min_p)
    require(temp == 0 or temp >= COLDEST, f"temp={temp}: must be 0 (most likely), or {COLDEST} or above, e.g. 0.8")
    require_whole(least=0, top_k=top_k)
    require(0 < top_p <= 1, f"top_p={top_p}: must be above 0 and at most 1 (off)")
    require(0 <= min_p <= 1, f"min_p={min_p}: must lie between 0 (off) and 1")

    def likeliest(logits: mx.array, keys: mx.array) -> mx.array:
        return mx.argmax(logits, axis=-1)

    rules: list[Callable[[mx.array], mx.array]] = []
    if top_k:
        rules.append(lambda probabilities: _kth(probabilities, top_k))
    if top_p < 1:
        rules.append(lambda probabilities: _nucleus(probabilities, top_p))
    if min_p:
        rules.append(lambda probabilities: min_p * probabilities.max(axis=-1, keepdims=True))

    def sample(logits: mx.array, keys: mx.array) -> mx.array:
        probabilities = mx.softmax(logits, axis=-1, precise=True)
        for rule in rules:  # each returns the smallest probability to keep
            logits = mx.where(probabilities < rule(probabilities), -mx.inf, logits)
        return mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(logits / temp, keys)

    return CheckedSampler(sample if temp else likeliest)


def _check(logits: mx.array, keys: mx.array) -> None:
    check_array("logits", logits, "(streams, vocabulary)", mx.floating)
    check_array("keys", keys, "(streams, 2)", mx.unsignedinteger)
    fits = logits.ndim == 2 and logits.size > 0 and keys.shape == (logits.shape[0], 2)
    require(fits, "logits, keys: must be (streams, vocabulary) and (streams, 2), a key for each stream")
    if (largest := values_of(logits.max(axis=-1).astype(mx.float32))) is not None:  # NaN if any is
        bad = np.flatnonzero(~np.isfinite(largest)).tolist()
        require(not bad, f"logits: stream {bad[:1]} has a NaN, or no finite maximum; give finite numbers")


def _kth(probabilities: mx.array, k: int) -> mx.array:
    """Return the k-th largest probability (B, 1)."""
    return mx.sort(probabilities, axis=-1)[:, -min(k, probabilities.shape[-1]), None]


def _nucleus(probabilities: mx.array, p: float) -> mx.array:
    """Return the smallest probability (B, 1) among the most likely tokens that together reach p."""
    falling = -mx.sort(-probabilities, axis=-1)
    before = mx.cumsum(falling, axis=-1) - falling  # total probability of the more likely tokens
    return mx.where(before < p, falling, mx.inf).min(axis=-1, keepdims=True)
