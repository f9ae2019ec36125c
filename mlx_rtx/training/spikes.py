"""Steps that are not taken because their gradient is far larger than those before.

    taken_t = norm_t ≤ F mean_t,   mean ← mean + (min(norm_t, F mean_t) - mean) / min(t + 1, 100)

over all steps whose norm is finite, t of them before. A step that is not taken moves the mean as well, as far as one at
the limit would: so gradients that stay large are taken again after a while. The first ten are taken whatever they are.
"""

from mlx_rtx.support.compiled import Execution

import mlx.core as mx
import mlx.nn as nn

MEMORY = 100  # steps that the mean goes back, about
FIRST = 10  # steps that are taken whatever their norm


class SpikeGuard:
    """The running mean of gradient norms, and what it lets pass.

    Args:
        model: whose steps they are.
        above: F > 1.
        execution: how it is run.

    Example:
        >>> guard = SpikeGuard(model, above=4.0, execution=Execution())
        >>> [guard.accepts(mx.array(norm)).item() for norm in [1.0] * 10 + [5.0, 4.0]]
        [True, True, True, True, True, True, True, True, True, True, False, True]
    """

    def __init__(self, model: nn.Module, above: float, execution: Execution):
        self.model, self.above, self.execution = model, above, execution
        self.state: dict[str, mx.array] = {"mean": mx.array(0.0), "steps": mx.array(0)}
        """The mean, and the steps t that went into it."""

    def accepts(self, norm: mx.array) -> mx.array:
        """Whether a step with a gradient of this norm (a scalar) is to be taken, a scalar bool."""
        taken, self.state = self.execution(self.model, _judge, self.state, norm, self.above)
        return taken


def _judge(model: nn.Module, state: dict, norm: mx.array, above: float) -> tuple[mx.array, dict[str, mx.array]]:
    """Whether a step is taken, and the state after it."""
    mean, steps = state["mean"], state["steps"]
    limit = mx.where(steps < FIRST, mx.inf, above * mean)
    finite = mx.isfinite(norm)
    moved = mean + (mx.minimum(norm, limit) - mean) / mx.minimum(steps + 1, MEMORY)
    return finite & (norm <= limit), {"mean": mx.where(finite, moved, mean), "steps": steps + finite}
