"""What is asked of generation, checked before anything is drawn."""

import math
import operator
from collections.abc import Sequence

from mlx_rtx.model.base import Transformer
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.inputs import check_array
from mlx_rtx.support.typed import require_whole

import mlx.core as mx


def check_writer(model: Transformer) -> None:
    """Refuse a model that gives no tokens."""
    require(isinstance(model, Transformer), f"model: is a {type(model).__name__}; give the first of what load returns")
    V, outputs = model.config.vocab_size, model.config.outputs
    require(outputs == V, f"model: has {outputs} outputs for a vocabulary of {V}: it says no tokens; give one of text")


def check_prompts(model: Transformer, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prompts, or a refusal of what are no tokens of the model."""
    try:
        rows = [list(map(operator.index, prompt)) for prompt in prompts]
    except TypeError:
        raise UserError("prompts: give a list of whole numbers, its tokens, for each prompt") from None
    require(len(rows) > 0, "prompts: there is none; give at least one")
    V = model.config.vocab_size
    outside = next((token for row in rows for token in row if not 0 <= token < V), None)
    require(outside is None, f"prompts: {outside} is among the tokens; must lie in 0 … {V - 1}, the vocabulary")
    return rows


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """The seeds, or a refusal where they are not one for each stream."""
    seeds = list(seeds)
    require(len(seeds) == count, f"seeds: {len(seeds)} for {count} prompts; give one for each")
    for seed in seeds:
        require_whole(least=0, seed=seed)
        require(seed < 2**32, f"seed={seed}: must lie in 0 … {2**32 - 1}")
    return seeds


def check_drawn(model: Transformer, drawn: mx.array, count: int) -> mx.array:
    """What a sampler gave, or a refusal of what is not a token for each stream."""
    check_array("sampler: what it gave", drawn, f"({count},)", mx.integer)
    require(drawn.shape == (count,), f"sampler: gave shape {drawn.shape}; must be ({count},), a token for each stream")
    model.check_tokens(drawn[:, None], "sampler: its tokens")
    return drawn.astype(mx.uint32)


def check_finite(total: mx.array, position: int) -> None:
    """Refuse to go on from logits whose sum is not finite: what is drawn from them means nothing."""
    require(
        math.isfinite(float(total)),
        f"model: its logits before token {position:,} are not finite; its weights are not, or its state has outgrown "
        "all bounds: start with a shorter prompt, or train with --state-norm",
    )
