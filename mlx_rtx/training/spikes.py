"""Skipping of steps whose gradient is far larger than the preceding ones.

    taken_t = norm_t ≤ F mean_t,   mean ← mean + (min(norm_t, F mean_t) - mean) / min(t + 1, 100)

over all steps whose norm is finite; t is the number of earlier such steps. A skipped step updates the mean like a step
at the limit, so that gradients that stay large are accepted after a while. The first ten steps are always taken.
"""

from mlx_rtx.support.compiled import Execution

import mlx.core as mx
import mlx.nn as nn

MEMORY = 100  # approximate number of steps in the running mean
FIRST = 10  # number of steps at the start that are always taken


class SpikeGuard:
    """Running mean of gradient norms, which decides whether a step is taken.

    Args:
        model: model whose gradients are judged.
        above: F > 1.
        execution: how functions are compiled and run.

    Example:
        >>> guard = SpikeGuard(model, above=4.0, execution=Execution())
        >>> [guard.accepts(mx.array(norm)).item() for norm in [1.0] * 10 + [5.0, 4.0]]
        [True, True, True, True, True, True, True, True, True, True, False, True]
    """

    def __init__(self, model: nn.Module, above: float, execution: Execution):
        self.model, self.above, self.execution = model, above, execution
        self.state: dict[str, mx.array] = {"mean": mx.array(0.0), "steps": mx.array(0)}
        """The mean, and the number of steps t in it."""

    def accepts(self, norm: mx.array) -> mx.array:
        """Update the mean with a gradient norm (a scalar); return whether to take the step (a scalar bool)."""
        taken, self.state = self.execution(self.model, _judge, self.state, norm, self.above)
        return taken


def _judge(model: nn.Module, state: dict, norm: mx.array, above: float) -> tuple[mx.array, dict[str, mx.array]]:
    """Return whether a step is taken, and the new state."""
    mean, steps = state["mean"], state["steps"]
    limit = mx.where(steps < FIRST, mx.inf, above * mean)
    finite = mx.isfinite(norm)
    moved = mean + (mx.minimum(norm, limit) - mean) / mx.minimum(steps + 1, MEMORY)
    return finite & (norm <= limit), {"mean": mx.where(finite, moved, mean), "steps": steps + finite}
