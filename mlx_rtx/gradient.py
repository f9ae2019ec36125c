"""Loss and its exact gradient in the memory of one segment of blocks.

The forward pass keeps only the carry at segment boundaries; the backward pass takes the segments
in reverse, recomputes each one and pulls the gradient of its carry back through it. While a segment
runs the next is being queued, so up to two are in memory. Dropout masks belong to blocks (see
`mlx_rtx.dropout`), so the second pass draws the ones of the first.
"""

from mlx_rtx.embedding import wanted
from mlx_rtx.errors import require
from mlx_rtx.recurrence import clamp
from mlx_rtx.transformer import Transformer
from mlx_rtx.trees import flat

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten


def loss_and_grad(
    model: Transformer,
    tokens: mx.array,
    targets: mx.array,
    segment: int | None = 16,
    *,
    detach: int | None = None,
    close: bool = True,
    key: mx.array | None = None,
) -> tuple[mx.array, dict]:
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

    Returns:
        (loss, a scalar in nats; gradients, a tree like ``model.trainable_parameters()``).

    Example:
        >>> loss, gradients = loss_and_grad(model, tokens, targets)
        >>> optimizer.update(model, gradients)
    """
    require(segment is None or segment >= 1, f"segment={segment}: must be at least 1 block, or None for the whole")
    require(detach is None or detach >= 1, f"detach={detach}: must be at least 1 segment, or None")
    loss, gradients, _ = carried_loss_and_grad(model, tokens, targets, None, segment, detach, close, key)
    return loss, gradients


def carried_loss_and_grad(
    model: Transformer,
    tokens: mx.array,
    targets: mx.array,
    carry: list | None,
    segment: int | None,
    detach: int | None,
    close: bool,
    key: mx.array | None,
) -> tuple[mx.array, dict, list]:
    """`loss_and_grad` of sequences that go on from ``carry``, through which no gradient passes.

    Returns:
        (loss, gradients, the carry that the sequences leave; it is for sequences of whole blocks,
        with ``close=False``).
    """
    (B, L), n, K = tokens.shape, wanted(tokens.shape[1], targets.shape[1]), model.config.block
    keys, spans = model.dropout_keys(L, key), model.spans(L, segment)
    before = model.trainable_parameters()
    names, weights = list(flat(before)), list(flat(before).values())
    # α is clamped once, here: what may pass at its boundary is decided on the whole gradient
    alphas = [i for i, name in enumerate(names) if name.endswith("alpha")]
    for i in alphas:
        weights[i] = clamp(weights[i])

    def run(weights: list, carry: list, start: int, end: int) -> tuple[list, mx.array]:
        """The carry a segment leaves, and its share of the loss."""
        model.update(tree_unflatten(list(zip(names, weights, strict=True))))
        block_keys = None if keys is None else keys[start // K : -(-end // K)]
        first = max(start, L - n)  # of the positions with a target
        last = max(end - first, 0)
        y, carry = model.run(tokens[:, start:end], start, carry, last, close and end == L, block_keys)
        if not last:
            return carry, mx.array(0.0)
        classes = targets[:, first - (L - n) : end - (L - n)]
        return carry, nn.losses.cross_entropy(model.embedding.readout(y), classes, reduction="sum") / (B * n)

    def pull(weights: list, carry: list, pulled: list, start: int, end: int) -> tuple[mx.array, tuple]:
        """A scalar whose gradient is that of the segment: its loss, and its carry times what comes back.

        Beside it the loss alone, and the carry.

        (Not `mx.vjp` of the carry: it loses a cotangent where two outputs are the same array.)
        """
        carry, loss = run(weights, carry, start, end)
        pairs = zip(flat(carry).values(), flat(pulled).values(), strict=True) if pulled else ()
        return sum(((c * p).sum() for c, p in pairs), loss), (loss, carry)

    try:
        carries: list[list] = [carry or []]
        for start, end in spans[:-1]:
            carries.append(run(weights, carries[-1], start, end)[0])
            mx.async_eval(carries[-1])
            mx.eval(carries[-2])  # one segment ahead, not more: memory is taken when work is queued

        total, gradients = mx.array(0.0), weights
        pulled: list = []  # gradient of the carry that the segment leaves; empty where none comes back
        after: list = []  # the carry that the last segment leaves
        queued: list = []  # what the segment before this one gives
        for done, (start, end) in enumerate(reversed(spans)):
            if detach and done % detach == 0:
                pulled = []
            if not pulled and end <= L - n:
                break  # neither a loss here nor a gradient from behind
            (_, (loss, left)), (own, pulled) = mx.value_and_grad(pull, argnums=(0, 1))(
                weights, carries.pop(), pulled, start, end
            )
            total = total + loss
            gradients = [a + b for a, b in zip(gradients, own, strict=True)] if done else own
            after = after if done else left
            mx.async_eval(total, gradients, pulled, after)
            mx.eval(queued)
            queued = [gradients, pulled]
    finally:
        model.update(before)
    for i in alphas:
        _, (gradients[i],) = mx.vjp(clamp, [flat(before)[names[i]]], [gradients[i]])
    return total, tree_unflatten(list(zip(names, gradients, strict=True))), after
