"""What a validation makes of a model besides its scores. It may take long, changes nothing, and may be broken off."""

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
def put_in(model: nn.Module, weights: dict[str, Any]) -> Iterator[None]:
    """Let a model have other weights for a while."""
    own = model.trainable_parameters()
    model.update(weights)
    try:
        yield
    finally:
        model.update(own)


def score_candidates(
    model: Transformer, average: WeightAverage | None, score: Callable[[bool], Scores]
) -> list[Candidate]:
    """Score what may be kept on the same held-out sequences: the weights, then their average if there is one.

    Args:
        model: the weights.
        average: their average.
        score: scores what the model has, given whether that is an average.
    """
    own, found = model.trainable_parameters(), []
    for weights in [own, average.weights] if average else [own]:
        with put_in(model, weights):
            found.append(Candidate(score(weights is not own), weights, weights is not own))
    return found


def write_sample(
    model: Transformer, vocabulary: Vocabulary, prompt: str, count: int, seed: int, execution: Execution
) -> str:
    """``count`` tokens that a model writes after a prompt, at temperature 0.8; or why it can't."""
    model.eval()
    parts = []
    try:
        for response in stream_generate(model, vocabulary, prompt, count, make_sampler(temp=0.8), seed):
            execution.poll()
            parts.append(response.text)
    except UserError as error:  # of a model whose numbers are none: the validation says so, and training goes on
        return f"no sample: {error}"
    return "".join(parts)
