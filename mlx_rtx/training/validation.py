"""Scoring of candidate weights, and sample text; this may take long, changes no state and can be interrupted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mlx_rtx.generation.decoding import stream_generate
from mlx_rtx.generation.sampling import make_sampler
from mlx_rtx.model.base import Transformer
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.errors import UserError
from mlx_rtx.tasks.vocabulary import Vocabulary
from mlx_rtx.training.averaging import WeightAverage
from mlx_rtx.training.evaluation import Scores

import mlx.nn as nn


class Candidate(NamedTuple):
    """Weights that may be kept."""

    scores: Scores
    weights: dict[str, Any]  # a tree like ``model.trainable_parameters()``
    averaged: bool


@contextmanager
def using_weights(model: nn.Module, weights: dict[str, Any]) -> Iterator[None]:
    """Return a context in which ``model`` has other weights."""
    own = model.trainable_parameters()
    model.update(weights)
    try:
        yield
    finally:
        model.update(own)


def score_candidates(
    model: Transformer, average: WeightAverage | None, score: Callable[[bool], Scores]
) -> list[Candidate]:
    """Score the model's weights, and then their moving average if there is one, on the same held-out sequences.

    Args:
        model: model with the trained weights.
        average: their moving average.
        score: function that scores the model's current weights; its argument tells whether they are the average.
    """
    own, found = model.trainable_parameters(), []
    for weights in [own, average.weights] if average else [own]:
        with using_weights(model, weights):
            found.append(Candidate(score(weights is not own), weights, weights is not own))
    return found


def write_sample(
    model: Transformer, vocabulary: Vocabulary, prompt: str, count: int, seed: int, execution: Execution
) -> str:
    """Return ``count`` tokens that a model generates after a prompt at temperature 0.8, or the reason why it cannot."""
    model.eval()
    parts = []
    try:
        for response in stream_generate(model, vocabulary, prompt, count, make_sampler(temp=0.8), seed):
            execution.poll()
            parts.append(response.text)
    except UserError as error:  # e.g. logits that are not finite; the trainer recovers from them after the validation
        return f"no sample: {error}"
    return "".join(parts)
