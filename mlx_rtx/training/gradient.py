"""Gradient checkpointing (rematerialisation): the exact gradient of the loss in the memory of one segment of blocks.

The forward pass keeps only the carry at segment boundaries; the backward pass takes the segments
in reverse, recomputes each one and pulls the gradient of its carry back through it. While a segment
runs the next is being queued, so up to two are in memory. What a segment does is one compiled function,
traced once a shape. Dropout masks belong to blocks (see `mlx_rtx.model.dropout`), so the second pass draws the
ones of the first.
"""

from typing import Any, NamedTuple

from mlx_rtx.model.base import ModelWeights, Transformer
from mlx_rtx.model.segment import Carries, Saved, Segment, resolve_last
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.support.trees import flat
from mlx_rtx.support.typed import require_whole

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten


class Gradient(NamedTuple):
    """What `carried_loss_and_grad` returns."""

    loss: mx.array  # scalar, nats
    gradients: dict[str, Any]  # a tree like ``model.trainable_parameters()``
    carry: Carries | None  # that the sequences leave; None where they close, and of a regular transformer


class Boundary(NamedTuple):
    """What the forward pass keeps of a segment for the backward pass."""

    carry: Carries | None = None  # into it
    saved: tuple[Saved, ...] = ()  # outputs of its fused scans; none where there were none, and of the last segment


class Targets(NamedTuple):
    """What a segment's outputs are held against."""

    classes: mx.array  # (B, k) of its last k positions; k may be 0
    total: int | mx.array  # number of targets of all segments: the loss is their mean; an array if some are IGNORED


class Totals(NamedTuple):
    """Sums over the segments that the backward pass has been through."""

    loss: mx.array
    gradients: ModelWeights  # of the folded weights


def loss_and_grad(
    model: Transformer,
    tokens: mx.array,
    targets: mx.array,
    segment: int | None = 16,
    *,
    detach: int | None = None,
    close: bool = True,
    key: mx.array | None = None,
    masked: bool = False,
) -> tuple[mx.array, dict[str, Any]]:
    """Mean cross-entropy of the last n positions and its gradient.

    Args:
        model: `RecurrentTransformer` or `RegularTransformer` (which is always one segment).
        tokens: (B, L) integers.
        targets: (B, n) integers, the classes of the last n ≤ L positions.
        segment: blocks to a segment: memory grows with it, launches shrink. None for the plain
            unrolled gradient.
        detach: truncated backpropagation: cut the gradient at every ``detach``-th segment boundary,
            counted from the end. None for the exact gradient.
        close: see `RecurrentTransformer.__call__`.
        key: random key of the dropout masks; from MLX's global state if not given.
        masked: some targets are -1 (`IGNORED`): nothing is asked there, and the mean is over the others.

    Returns:
        (loss, a scalar in nats; gradients, a tree like ``model.trainable_parameters()``).

    Raises:
        UserError: tokens or targets of another kind or shape, beyond the vocabulary or the classes, or more than there
            are positions for. Their values are looked at, which waits for them, unless the call is being traced.

    Example:
        >>> loss, gradients = loss_and_grad(model, tokens, targets)
        >>> optimizer.update(model, gradients)
    """
    check_batch(model, tokens, targets, masked)
    check_cut(segment, detach)
    total = asked(targets) if masked else None
    found = carried_loss_and_grad(
        model, tokens, targets, None, segment=segment, detach=detach, close=close, key=key, total=total
    )
    return found.loss, found.gradients


def asked(targets: mx.array) -> mx.array:
    """Number of targets that are not `IGNORED`; 1 if there are none, for it is what their sum is divided by."""
    return mx.maximum((targets != IGNORED).sum(), 1).astype(mx.float32)


def check_batch(model: Transformer, tokens: mx.array, targets: mx.array, masked: bool = False) -> None:
    """Refuse what is no batch for this model."""
    require(isinstance(model, Transformer), f"model: is a {type(model).__name__}; give a RecurrentTransformer")
    model.check_tokens(tokens)
    model.check_targets(targets, masked)
    (B, n), (rows, L) = targets.shape, tokens.shape
    fits = rows == B and n <= L
    require(
        fits, f"targets: have shape {targets.shape}, tokens {tokens.shape}; give those of the last n tokens of each"
    )


def check_cut(segment: int | None, detach: int | None) -> None:
    """Refuse what is no number of blocks to a segment, or of segments to a cut of the gradient; None is for none."""
    require_whole(**{name: n for name, n in {"segment": segment, "detach": detach}.items() if n is not None})


def carried_loss_and_grad(
    model: Transformer,
    tokens: mx.array,
    targets: mx.array,
    carry: Carries | None,
    *,
    segment: int | None,
    detach: int | None = None,
    close: bool = True,
    key: mx.array | None = None,
    execution: Execution | None = None,
    total: mx.array | None = None,
) -> Gradient:
    """`loss_and_grad` of sequences that go on from ``carry``, through which no gradient passes; it checks no values.

    Where some targets are `IGNORED`, ``total`` is what the sum of the others' losses is divided by (see `asked`).

    The carry that it returns is for sequences of whole blocks, with ``close=False``.
    """
    execution = execution or Execution()
    (B, L), n = tokens.shape, resolve_last(tokens.shape[1], targets.shape[1])
    of = B * n if total is None else total
    model.embedding.check(L)
    segments = _cut(model, tokens, n, segment, close, model.dropout_keys(L, key))
    parameters = model.parameters()
    weights = execution(model, type(model).fold_weights, parameters)

    boundaries = [Boundary(carry)]
    for current in segments[:-1]:
        execution.poll()
        carry_out, saved = execution(model, _forward, weights, boundaries[-1].carry, current)
        boundaries[-1] = boundaries[-1]._replace(saved=saved)
        boundaries.append(Boundary(carry_out))
        execution.queue(carry_out, saved)
        execution.wait(boundaries[-2].carry)  # one segment ahead, not more

    totals: Totals | None = None
    carry_grad: Carries | None = None  # of the carry that the segment leaves; None where none comes back
    last_carry: Carries | None = None
    queued: tuple = ()
    end = L
    for done, current in enumerate(reversed(segments)):
        if detach and done % detach == 0:
            carry_grad = None
        if carry_grad is None and not current.outputs_wanted:
            break  # neither a loss here nor a gradient from behind
        execution.poll()
        classes = targets[:, n - (L - end) - current.outputs_wanted : n - (L - end)]
        totals, carry_grad, carry_out = execution(
            model, _backward, weights, boundaries.pop(), current, Targets(classes, of), carry_grad, totals, done == 0
        )
        last_carry = last_carry or carry_out
        execution.queue(totals, carry_grad, last_carry)
        execution.wait(queued)
        queued, end = (totals.gradients, carry_grad), end - current.tokens.shape[1]
    assert totals is not None
    gradients = execution(model, _unfold, parameters, totals.gradients)
    return Gradient(totals.loss, gradients, last_carry)


def _cut(
    model: Transformer, tokens: mx.array, n: int, segment: int | None, close: bool, keys: mx.array | None
) -> list[Segment]:
    """Sequences (B, L), whose last n positions are read, in segments of so many blocks."""
    L, K, segments = tokens.shape[1], model.config.block, []
    for start, end in model.spans(L, segment):
        of_blocks = None if keys is None else keys[start // K : -(-end // K) + 1]
        wanted = max(end - max(start, L - n), 0)
        segments.append(Segment(tokens[:, start:end], mx.array(start), wanted, close and end == L, of_blocks))
    return segments


def _forward(
    model: Transformer, weights: ModelWeights, carry: Carries | None, segment: Segment
) -> tuple[Carries | None, tuple[Saved, ...]]:
    """The carry that a segment leaves, and what its backward pass can go by."""
    out = model.run(weights, segment._replace(outputs_wanted=0), carry)
    return out.carry, out.saved


def _backward(
    model: Transformer,
    weights: ModelWeights,
    boundary: Boundary,
    segment: Segment,
    targets: Targets,
    carry_grad: Carries | None,
    totals: Totals | None,
    carry_wanted: bool,
) -> tuple[Totals, Carries | None, Carries | None]:
    """Recompute a segment and pull the gradient back through it.

    Returns:
        (totals with the segment's own; gradient of the carry into it, None where the sequence starts; the carry that
        it leaves if that is wanted, since else its last product need not be computed).
    """

    def objective(weights: ModelWeights, carry: Carries | None) -> tuple[mx.array, tuple]:
        """A scalar whose gradient is that of the segment: its loss, and its carry times what comes back.

        (Not `mx.vjp` of the carry: it loses a cotangent where two outputs are the same array.)
        """
        out = model.run(weights, segment, carry, boundary.saved, differentiated=True)
        loss = mx.array(0.0)
        if segment.outputs_wanted:
            logits = model.embedding.readout(out.y, weights.embedding)
            loss = _cross_entropy(model, logits, targets) / targets.total
        pairs = zip(flat(out.carry).values(), flat(carry_grad).values(), strict=True) if carry_grad else ()
        return sum(((c * grad).sum() for c, grad in pairs), loss), (loss, out.carry)

    if boundary.carry is None:
        (_, (loss, carry_out)), grads = mx.value_and_grad(objective)(weights, None)
        carry_in_grad = None
    else:
        (_, (loss, carry_out)), (grads, carry_in_grad) = mx.value_and_grad(objective, argnums=(0, 1))(
            weights, boundary.carry
        )
    if totals is None:
        totals = Totals(loss, grads)
    else:
        totals = Totals(totals.loss + loss, tree_map(mx.add, totals.gradients, grads))
    return totals, carry_in_grad, carry_out if carry_wanted else None


def _cross_entropy(model: Transformer, logits: mx.array, targets: Targets) -> mx.array:
    """Sum over all targets that are asked. MLX's own has a fused kernel on GPUs, whose graph cannot be exported."""
    classes, weights = targets.classes, None
    if isinstance(targets.total, mx.array):
        classes, weights = mx.maximum(classes, 0), (classes != IGNORED).astype(mx.float32)
    if model.implementation != "exportable":
        return nn.losses.cross_entropy(logits, classes, weights, reduction="sum")
    scores = mx.take_along_axis(logits, classes[..., None], axis=-1).squeeze(-1)
    losses = mx.logsumexp(logits, axis=-1) - scores
    return (losses if weights is None else losses * weights).sum()


def _unfold(model: Transformer, parameters: dict[str, Any], grads: ModelWeights) -> dict[str, Any]:
    """The gradient of the trainable parameters from that of the folded weights.

    α is clamped when weights are folded: what may pass at its boundary is decided on the whole gradient, here.
    """
    every, trainable = flat(parameters), list(flat(model.trainable_parameters()))

    def fold(*arrays: mx.array) -> list[mx.array]:
        named = every | dict(zip(trainable, arrays, strict=True))
        return list(flat(model.fold_weights(tree_unflatten(list(named.items())))).values())

    _, found = mx.vjp(fold, [every[name] for name in trainable], list(flat(grads).values()))
    return tree_unflatten(list(zip(trainable, found, strict=True)))
