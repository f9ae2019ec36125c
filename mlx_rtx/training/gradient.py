"""Gradient checkpointing: the exact gradient of the loss, in the memory of one segment of blocks.

The forward pass keeps only the carry at segment boundaries. The backward pass visits the segments in reverse order,
recomputes each one, and backpropagates the gradient of its carry through it. The next segment is queued while one runs,
so up to two are in memory. The computation of a segment is one compiled function, traced once per shape. Dropout masks
are derived from the block's index (see `mlx_rtx.model.dropout`), so that both passes use the same masks.
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
    carry: Carries | None  # carry at the end of the sequences; None with ``close=True`` and for regular transformers


class Boundary(NamedTuple):
    """What the forward pass keeps of a segment for the backward pass."""

    carry: Carries | None = None  # carry into the segment
    saved: tuple[Saved, ...] = ()  # outputs of its fused scans; empty without fused scans and for the last segment


class Targets(NamedTuple):
    """Targets of a segment's outputs."""

    classes: mx.array  # (B, k) of its last k positions; k may be 0
    total: int | mx.array  # number of targets in all segments, the loss's divisor; an array if some are IGNORED


class Totals(NamedTuple):
    """Sums over the segments that the backward pass has processed."""

    loss: mx.array
    gradients: ModelWeights  # with respect to the folded weights


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
    """Return the mean cross-entropy of the last n positions, and its gradient.

    Args:
        model: `RecurrentTransformer` or `RegularTransformer` (which is always one segment).
        tokens: (B, L) integers.
        targets: (B, n) integers, the classes of the last n ≤ L positions.
        segment: blocks per segment: with more, memory grows and the number of kernel launches falls. None: no
            checkpointing.
        detach: truncated backpropagation: stop the gradient at every ``detach``-th segment boundary,
            counted from the end. None: exact gradient.
        close: see `RecurrentTransformer.__call__`.
        key: random key of the dropout masks; default: MLX's global random state.
        masked: whether targets may be -1 (`IGNORED`); the mean is then over the other targets.

    Returns:
        (loss, a scalar in nats; gradients, a tree like ``model.trainable_parameters()``).

    Raises:
        UserError: tokens or targets have a wrong dtype or shape, are outside the vocabulary or the classes, or are too
            long for the model. Checking their values evaluates them; values are not checked while a call is traced.

    Example:
        >>> loss, gradients = loss_and_grad(model, tokens, targets)
        >>> optimizer.update(model, gradients)
    """
    check_batch(model, tokens, targets, masked)
    check_cut(segment, detach)
    total = count_targets(targets) if masked else None
    found = carried_loss_and_grad(
        model, tokens, targets, None, segment=segment, detach=detach, close=close, key=key, total=total
    )
    return found.loss, found.gradients


def count_targets(targets: mx.array) -> mx.array:
    """Return the number of targets that are not `IGNORED`, at least 1, because the loss is divided by it."""
    return mx.maximum((targets != IGNORED).sum(), 1).astype(mx.float32)


def check_batch(model: Transformer, tokens: mx.array, targets: mx.array, masked: bool = False) -> None:
    """Raise UserError if these arguments are not a model and a valid batch for it."""
    require(isinstance(model, Transformer), f"model: is a {type(model).__name__}; must be a RecurrentTransformer")
    model.check_tokens(tokens)
    model.check_targets(targets, masked)
    (B, n), (rows, L) = targets.shape, tokens.shape
    fits = rows == B and n <= L
    require(fits, f"targets: have shape {targets.shape}, tokens {tokens.shape}; must be (B, n) and (B, L) with n ≤ L")


def check_cut(segment: int | None, detach: int | None) -> None:
    """Raise UserError unless ``segment`` and ``detach`` are positive integers or None."""
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
    """Compute `loss_and_grad` of sequences that continue from ``carry``, without checking values.

    No gradient flows into ``carry``. If some targets are `IGNORED`, ``total`` is the number by which the sum of the
    losses is divided (see `count_targets`). The returned carry is valid if L is a multiple of K and ``close=False``.
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
    carry_grad: Carries | None = None  # gradient of the carry out of the segment; None if there is none
    last_carry: Carries | None = None
    queued: tuple = ()
    end = L
    for done, current in enumerate(reversed(segments)):
        if detach and done % detach == 0:
            carry_grad = None
        if carry_grad is None and not current.outputs_wanted:
            break  # neither a loss in this segment nor a gradient from later ones
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
    """Split sequences (B, L), whose last n positions have outputs, into segments of ``segment`` blocks."""
    L, K, segments = tokens.shape[1], model.config.block, []
    for start, end in model.spans(L, segment):
        of_blocks = None if keys is None else keys[start // K : -(-end // K) + 1]
        wanted = max(end - max(start, L - n), 0)
        segments.append(Segment(tokens[:, start:end], mx.array(start), wanted, close and end == L, of_blocks))
    return segments


def _forward(
    model: Transformer, weights: ModelWeights, carry: Carries | None, segment: Segment
) -> tuple[Carries | None, tuple[Saved, ...]]:
    """Return the carry out of a segment, and the outputs of its fused scans for the backward pass."""
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
    """Recompute a segment and backpropagate through it.

    Returns:
        (totals including this segment; gradient of the carry into it, None at the start of the sequence; the carry out
        of it if ``carry_wanted``, otherwise None, so that its last product need not be computed).
    """

    def objective(weights: ModelWeights, carry: Carries | None) -> tuple[mx.array, tuple]:
        """Return a scalar with the segment's gradient: its loss plus the product of its carry and the carry's gradient.

        (`mx.vjp` cannot be used for the carry: it loses a cotangent if two outputs are the same array.)
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
    """Return the sum of losses over the targets that count.

    MLX's own cross-entropy uses a fused kernel on GPUs, with which a graph cannot be exported.
    """
    classes, weights = targets.classes, None
    if isinstance(targets.total, mx.array):
        classes, weights = mx.maximum(classes, 0), (classes != IGNORED).astype(mx.float32)
    if model.implementation != "exportable":
        return nn.losses.cross_entropy(logits, classes, weights, reduction="sum")
    scores = mx.take_along_axis(logits, classes[..., None], axis=-1).squeeze(-1)
    losses = mx.logsumexp(logits, axis=-1) - scores
    return (losses if weights is None else losses * weights).sum()


def _unfold(model: Transformer, parameters: dict[str, Any], grads: ModelWeights) -> dict[str, Any]:
    """Return the gradient of the trainable parameters, given that of the folded weights.

    Folding clamps α; the gradient through the clamp is therefore computed here, from the complete gradient.
    """
    every, trainable = flat(parameters), list(flat(model.trainable_parameters()))

    def fold(*arrays: mx.array) -> list[mx.array]:
        named = every | dict(zip(trainable, arrays, strict=True))
        return list(flat(model.fold_weights(tree_unflatten(list(named.items())))).values())

    _, found = mx.vjp(fold, [every[name] for name in trainable], list(flat(grads).values()))
    return tree_unflatten(list(zip(trainable, found, strict=True)))
