"""Checks of the arguments of generation."""

import math
import operator
from collections.abc import Sequence

from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.inputs import check_array
from mlx_rtx.support.typed import require_whole

import mlx.core as mx


def check_writer(model: Transformer) -> None:
    """Raise `UserError` unless the model predicts its own tokens."""
    require(isinstance(model, Transformer), f"model: is a {type(model).__name__}; give the model that load returns")
    V, outputs = model.config.vocab_size, model.config.outputs
    require(outputs == V, f"model: has {outputs} outputs for a vocabulary of {V}; give a text model")


def check_prompts(model: Transformer, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the prompts as lists; raise `UserError` unless they are tokens of the model's vocabulary."""
    try:
        rows = [list(map(operator.index, prompt)) for prompt in prompts]
    except TypeError:
        raise UserError("prompts: give a list of whole numbers, its tokens, for each prompt") from None
    require(len(rows) > 0, "prompts: empty; give at least one")
    V = model.config.vocab_size
    outside = next((token for row in rows for token in row if not 0 <= token < V), None)
    require(outside is None, f"prompts: {outside} is not a token; must lie in 0 … {V - 1}, the vocabulary")
    return rows


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """Return the seeds as a list; raise `UserError` unless there is one valid seed per stream."""
    seeds = list(seeds)
    require(len(seeds) == count, f"seeds: {len(seeds)} for {count} prompts; give one for each")
    for seed in seeds:
        require_whole(least=0, seed=seed)
        require(seed < 2**32, f"seed={seed}: must lie in 0 … {2**32 - 1}")
    return seeds


def check_drawn(model: Transformer, drawn: mx.array, count: int) -> mx.array:
    """Return a sampler's result as uint32; raise `UserError` unless it is one token per stream."""
    check_array("sampler: its result", drawn, f"({count},)", mx.integer)
    require(drawn.shape == (count,), f"sampler: returned shape {drawn.shape}; must be ({count},), one token per stream")
    model.check_tokens(drawn[:, None], "sampler: its tokens")
    return drawn.astype(mx.uint32)


def check_finite(total: mx.array, position: int) -> None:
    """Raise `UserError` if the sum of logits is not finite."""
    require(
        math.isfinite(float(total)),
        f"model: its logits before token {position:,} are not finite, because its weights are not or its state has "
        "overflowed: start with a shorter prompt, or train with --state-norm",
    )
