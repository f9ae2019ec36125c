"""One training step: the gradient of a batch, by segments, applied to the weights."""

from typing import Any, NamedTuple

from mlx_rtx.model.base import Transformer
from mlx_rtx.model.segment import Carries
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.errors import require
from mlx_rtx.support.trees import arrays, flat
from mlx_rtx.support.typed import require_numbers
from mlx_rtx.training.averaging import WeightAverage
from mlx_rtx.training.gradient import Gradient, asked, carried_loss_and_grad, check_batch, check_cut
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer
from mlx_rtx.training.ranks import Ranks
from mlx_rtx.training.spikes import SpikeGuard

import mlx.core as mx
from mlx.utils import tree_map


class StepResult(NamedTuple):
    """What a step came to; nothing of it need be computed yet."""

    loss: mx.array  # scalar, nats
    taken: mx.array  # scalar bool: whether the step was finite and not too large, else the weights are as before
    norm: mx.array  # scalar, of the gradient before clipping; NaN where the weights would not have been finite
    carry: Carries | None  # that the sequences leave; zeros where the loss was not finite


class TrainingStep:
    """A model with its optimizer.

    Steps are queued, one ahead of the device: a step waits for the one before the last to be done.

    Args:
        model: the weights to train.
        config: the optimizer's settings.
        segment: blocks to a segment of the gradient; None for the whole sequence.
        detach: see `loss_and_grad`.
        execution: how it is run; `Execution` if not given.
        accumulate: parts, of equally many sequences, in which a gradient is taken; their mean is that of the whole.
        masked: see `loss_and_grad`.
        ranks: who takes the same step on other sequences of the batch; nobody if not given.

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
        """Forget all moments and norms; the average, if there is one, starts anew from the present weights."""
        self.optimizer = make_optimizer(self.config, self.model)
        self.guard: SpikeGuard | None = None
        if self.config.skip_above:
            self.guard = SpikeGuard(self.model, self.config.skip_above, self.execution)
        self.average: WeightAverage | None = None
        if self.config.average:
            self.average = WeightAverage(self.model, self.config.average, self.execution)

    @property
    def state(self) -> dict[str, Any]:
        """All that steps go by besides the weights: a tree of arrays."""
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
        require(other is None, f"state: {other} does not fit; it is of another model, or of another optimizer")
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
            carry: what the sequences, of several ranks this one's, go on from, in whole blocks; None where they start.

        Raises:
            UserError: see `loss_and_grad`; and a learning rate or a carry that can be none.
        """
        check_batch(self.model, tokens, targets, self.masked)
        N = self.accumulate * self.ranks.size
        require(len(tokens) % N == 0, f"tokens: {len(tokens)} sequences; must be a multiple of accumulate={N}")
        require_numbers(lr=lr)
        require(lr >= 0, f"lr={lr}: must be 0 or above")
        if carry is not None:
            B, L, K = len(tokens) // self.ranks.size, tokens.shape[1], self.model.config.block
            found = [array.shape for array in arrays(carry)]
            require(found == self.model.carry_shapes(B), f"carry: is of another model, or not of {B} sequences")
            require(L % K == 0, f"tokens: {L} to go on from a carry; must be whole blocks, a multiple of block={K}")
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
        """The step itself, of what is known to be right: it checks nothing, and so need not wait for the batch."""
        self.model.train()
        found = self.ranks.average(self._gradient(tokens, targets, carry, close, key))
        self.optimizer.learning_rate = lr
        taken, norm = apply_gradients(self.model, self.optimizer, found.gradients, self.config, self.guard)
        if self.average:
            self.average.update(taken)
        self.execution.queue(self.model.parameters(), self.state, found.loss, taken)
        self.execution.wait(self._in_flight)
        self.ranks.heed()
        self._in_flight = found.loss
        usable = mx.isfinite(found.loss)  # else the sequences start anew: what is not finite would stay so for ever
        carry = found.carry and tree_map(lambda part: mx.where(usable, part, 0), found.carry)
        return StepResult(found.loss, taken, norm, carry)

    def _gradient(
        self, tokens: mx.array, targets: mx.array, carry: Carries | None, close: bool, key: mx.array | None
    ) -> Gradient:
        """The gradient of all sequences: the mean over parts, of which one is in memory while the next is queued."""
        settings: dict[str, Any] = {"segment": self.segment, "detach": self.detach, "close": close}
        settings["execution"] = self.execution
        N = self.accumulate
        if self.masked:
            settings["total"] = asked(targets) / (N * self.ranks.size)  # parts may ask unequally much
        tokens, targets = self.ranks.share((tokens, targets))
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
