"""How the next token is chosen: a sampler is a closure made once.

Letters: B streams, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import check_array, values_of
from mlx_rtx.support.typed import require_numbers, require_whole

import mlx.core as mx
import numpy as np

COLDEST = 1e-6  # temperature above 0 by which logits can be divided
Sampler = Callable[[mx.array, mx.array], mx.array]  # logits (B, V), a key for each stream (B, 2) → tokens (B,)


@dataclass(frozen=True)
class CheckedSampler:
    """A sampler that looks at what it is given; one of `make_sampler`."""

    unchecked: Sampler
    """The same without a look, which would wait for the device."""

    def __call__(self, logits: mx.array, keys: mx.array) -> mx.array:
        """A token for each stream."""
        _check(logits, keys)
        return self.unchecked(logits, keys)


def make_sampler(temp: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> CheckedSampler:
    """A sampler of the usual kind; what several rules leave out is left out.

    Args:
        temp: temperature; 0 takes the likeliest token. The other rules look at probabilities at temperature 1.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have probability p or just more; 1 for all.
        min_p: only tokens at least p times as probable as the likeliest one; 0 for all.

    Returns:
        ``sampler(logits, keys)``. A token of logit -inf is not drawn; NaN, or nothing finite, is refused. Where tokens
        are equally likely a rule keeps all or none of them.

    Raises:
        UserError: a value out of range.

    Example:
        >>> sampler = make_sampler(temp=1.0, top_k=1)
        >>> sampler(mx.array([[0.1, 0.7, 0.2]]), mx.array([[0, 1]], dtype=mx.uint32)).item()
        1
    """
    require_numbers(temp=temp, top_p=top_p, min_p=min_p)
    require(temp == 0 or temp >= COLDEST, f"temp={temp}: must be 0 (the likeliest), or {COLDEST} or above, e.g. 0.8")
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
        for rule in rules:  # each gives the smallest probability that it keeps
            logits = mx.where(probabilities < rule(probabilities), -mx.inf, logits)
        return mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(logits / temp, keys)

    return CheckedSampler(sample if temp else likeliest)


def _check(logits: mx.array, keys: mx.array) -> None:
    check_array("logits", logits, "(streams, vocabulary)", mx.floating)
    check_array("keys", keys, "(streams, 2)", mx.unsignedinteger)
    fits = logits.ndim == 2 and logits.size > 0 and keys.shape == (logits.shape[0], 2)
    require(fits, "logits, keys: must be (streams, vocabulary) and (streams, 2), a key for each stream")
    if (largest := values_of(logits.max(axis=-1).astype(mx.float32))) is not None:  # NaN where any is
        bad = np.flatnonzero(~np.isfinite(largest)).tolist()
        require(not bad, f"logits: stream {bad[:1]} has a NaN, or no largest one that is finite; give finite numbers")


def _kth(probabilities: mx.array, k: int) -> mx.array:
    """The k-th largest probability (B, 1)."""
    return mx.sort(probabilities, axis=-1)[:, -min(k, probabilities.shape[-1]), None]


def _nucleus(probabilities: mx.array, p: float) -> mx.array:
    """The smallest probability (B, 1) of the likeliest tokens that together reach p."""
    falling = -mx.sort(-probabilities, axis=-1)
    before = mx.cumsum(falling, axis=-1) - falling  # what is likelier than each
    return mx.where(before < p, falling, mx.inf).min(axis=-1, keepdims=True)
