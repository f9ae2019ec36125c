"""Training step: compute the gradient of a batch with gradient checkpointing, and update the weights."""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.segment import Carries
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.errors import require
from mlx_rtx.support.trees import arrays, flat
from mlx_rtx.support.typed import require_numbers
from mlx_rtx.training.averaging import WeightAverage
from mlx_rtx.training.gradient import Gradient, carried_loss_and_grad, check_batch, check_cut, count_targets
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from mlx_rtx.training.ranks import Ranks
from mlx_rtx.training.spikes import SpikeGuard

import mlx.core as mx
from mlx.utils import tree_map


class StepResult(NamedTuple):
    """Result of a step; its arrays may not be evaluated yet."""

    loss: mx.array  # scalar, nats
    taken: mx.array  # scalar bool: whether the step was finite and not too large; otherwise the weights are unchanged
    norm: mx.array  # scalar, norm of the gradient before clipping; NaN if the new weights would not have been finite
    carry: Carries | None  # carry at the end of the sequences; zeros if the loss was not finite


class TrainingStep:
    """A model with its optimizer.

    Execution is asynchronous: a call queues its step and waits only until the previous step is done.

    Args:
        model: model to train.
        config: optimizer settings.
        segment: blocks per segment of the gradient checkpointing; None for the whole sequence.
        detach: see `loss_and_grad`.
        execution: how functions are compiled and run; default: `Execution()`.
        accumulate: number of equal parts into which a batch is split; their gradients are averaged.
        masked: see `loss_and_grad`.
        ranks: processes that take the same step on other sequences of the batch; default: this process alone.

    Example:
        >>> step = TrainingStep(model, OptimizerConfig(lr=1e-3), segment=8)
        >>> step(tokens, targets, lr=1e-3).loss.item()
    """

    def __init__(
        self,
        model: Transformer,
        config: OptimizerConfig,
        segment: int | None,
        detach: int | None = None,
        execution: Execution | None = None,
        accumulate: int = 1,
        masked: bool = False,
        ranks: Ranks | None = None,
    ):
        check_cut(segment, detach)
        self.model, self.config = model, config
        self.segment, self.detach, self.accumulate, self.masked = segment, detach, accumulate, masked
        self.execution, self.ranks = execution or Execution(), ranks or Ranks()
        self._in_flight: mx.array | None = None
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Reset moments and norms; the average of the weights, if any, restarts from the current weights."""
        self.optimizer = make_optimizer(self.config, self.model)
        self.guard: SpikeGuard | None = None
        if self.config.skip_above:
            self.guard = SpikeGuard(self.model, self.config.skip_above, self.execution)
        self.average: WeightAverage | None = None
        if self.config.average:
            self.average = WeightAverage(self.model, self.config.average, self.execution)

    @property
    def state(self) -> dict[str, Any]:
        """State of the step apart from the weights (moments, average, norms), a tree of arrays."""
        state = dict(self.optimizer.state)
        if self.average:
            state["average"] = self.average.state
        if self.guard:
            state["norms"] = self.guard.state
        return state

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        here, given = ({name: array.shape for name, array in flat(tree).items()} for tree in (self.state, state))
        other = next((name for name in sorted(here.keys() | given.keys()) if here.get(name) != given.get(name)), None)
        require(other is None, f"state: {other} does not fit; it belongs to another model or another optimizer")
        state = dict(state)
        if self.average:
            self.average.state = state.pop("average")
        if self.guard:
            self.guard.state = state.pop("norms")
        self.optimizer.state = state

    def __call__(
        self,
        tokens: mx.array,
        targets: mx.array,
        lr: float,
        key: mx.array | None = None,
        carry: Carries | None = None,
        close: bool = True,
    ) -> StepResult:
        """Take a step on tokens (B, L) and the classes (B, n) of their last n positions.

        Args:
            tokens, targets, key, close: see `loss_and_grad`.
            lr: learning rate.
            carry: carry from which the sequences continue (with several ranks: this rank's sequences); L must then be a
                multiple of K. None at the start of sequences.

        Raises:
            UserError: see `loss_and_grad`; also an invalid learning rate or carry.
        """
        check_batch(self.model, tokens, targets, self.masked)
        N = self.accumulate * self.ranks.size
        require(len(tokens) % N == 0, f"tokens: {len(tokens)} sequences; must be a multiple of accumulate={N}")
        require_numbers(lr=lr)
        require(lr >= 0, f"lr={lr}: must be 0 or above")
        if carry is not None:
            B, L, K = len(tokens) // self.ranks.size, tokens.shape[1], self.model.config.block
            found = [array.shape for array in arrays(carry)]
            require(found == self.model.carry_shapes(B), f"carry: is not that of {B} sequences of this model")
            require(L % K == 0, f"tokens: length {L}; to continue from a carry it must be a multiple of block={K}")
        return self.take(tokens, targets, lr=lr, key=key, carry=carry, close=close)

    def take(
        self,
        tokens: mx.array,
        targets: mx.array,
        lr: float,
        key: mx.array | None = None,
        carry: Carries | None = None,
        close: bool = True,
    ) -> StepResult:
        """Take a step without checking the arguments, which would have to wait for the batch to be evaluated."""
        self.model.train()
        found = self.ranks.average(self._gradient(tokens, targets, carry, close, key))
        self.optimizer.learning_rate = lr
        taken, norm = apply_gradients(self.model, self.optimizer, found.gradients, self.config, self.guard)
        if self.average:
            self.average.update(taken)
        self.execution.queue(self.model.parameters(), self.state, found.loss, taken)
        self.execution.wait(self._in_flight)
        self.ranks.read_votes()
        self._in_flight = found.loss
        usable = mx.isfinite(found.loss)  # else the sequences restart: a carry that is not finite would remain so
        carry = found.carry and tree_map(lambda part: mx.where(usable, part, 0), found.carry)
        return StepResult(found.loss, taken, norm, carry)

    def _gradient(
        self, tokens: mx.array, targets: mx.array, carry: Carries | None, close: bool, key: mx.array | None
    ) -> Gradient:
        """Return the mean gradient over all parts; at most two parts are in memory, one running and one queued."""
        settings: dict[str, Any] = {"segment": self.segment, "detach": self.detach, "close": close}
        settings["execution"] = self.execution
        N = self.accumulate
        if self.masked:
            settings["total"] = count_targets(targets) / (N * self.ranks.size)  # parts may have unequal numbers of them
        tokens, targets = self.ranks.own_rows((tokens, targets))
        B = len(tokens) // N
        keys = self.ranks.part_keys(key, N)
        if N == 1:
            return carried_loss_and_grad(self.model, tokens, targets, carry, key=keys[0], **settings)
        total: Any = None
        losses, carries = [], []
        for i in range(N):
            rows = slice(i * B, (i + 1) * B)
            into = carry and tree_map(lambda array, rows=rows: array[rows], carry)
            part = carried_loss_and_grad(self.model, tokens[rows], targets[rows], into, key=keys[i], **settings)
            before, total = total, part.gradients if total is None else tree_map(mx.add, total, part.gradients)
            self.execution.queue(total, part.loss)
            self.execution.wait(before or ())
            losses.append(part.loss)
            carries.append(part.carry)
        joined = carries[0] and tree_map(lambda *arrays: mx.concatenate(list(arrays)), *carries)
        return Gradient(mx.stack(losses).mean(), tree_map(lambda array: array / N, total), joined)
