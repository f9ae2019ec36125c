"""Exponential moving average of the weights, which often scores better than the weights themselves.

    decay_t = min(β, (1 + t) / (10 + t)),   average ← average + (1 - decay_t) (weights - average)

after each step that is taken; t is the number of earlier such steps. The average starts as a copy of the weights, and
the decay rises to β, so that the initial weights soon have little influence.
"""

from typing import Any

from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.trees import flat, part

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten


class WeightAverage:
    """Moving average of a model's trainable parameters, kept as one vector so that a step launches few kernels.

    Args:
        model: model whose weights are averaged; the average starts as a copy of them.
        decay: β in (0, 1).
        execution: how functions are compiled and run.

    Example:
        >>> average = WeightAverage(model, decay=0.999, execution=Execution())
        >>> average.update(taken=mx.array(True))
        >>> model.update(average.weights)
    """

    def __init__(self, model: nn.Module, decay: float, execution: Execution):
        self.model, self.decay, self.execution = model, decay, execution
        self.state: dict[str, mx.array] = {"weights": _join(model.trainable_parameters()), "steps": mx.array(0)}
        """The average as a vector, and the number of steps t in it."""

    def update(self, taken: mx.array) -> None:
        """Add the model's weights to the average, if the last step was taken (a scalar bool)."""
        self.state = self.execution(
            self.model, _moved, self.state, self.model.trainable_parameters(), taken, self.decay
        )

    @property
    def weights(self) -> dict[str, Any]:
        """Average as a tree like ``model.trainable_parameters()``."""
        named, start = [], 0
        for name, own in flat(self.model.trainable_parameters()).items():
            named.append((name, part(self.state["weights"], start, own.shape)))
            start += own.size
        return tree_unflatten(named)


def _moved(model: nn.Module, state: dict, weights: dict, taken: mx.array, decay: float) -> dict[str, mx.array]:
    """Return the state after a step that produced ``weights``."""
    average, steps = state["weights"], state["steps"]
    share = 1 - mx.minimum(decay, (1 + steps) / (10 + steps))
    moved = average + share * (_join(weights) - average)
    return {"weights": mx.where(taken, moved, average), "steps": steps + taken}


def _join(tree: dict) -> mx.array:
    """Concatenate the arrays of a tree into one vector."""
    return mx.concatenate([array.reshape(-1) for array in flat(tree).values()])
