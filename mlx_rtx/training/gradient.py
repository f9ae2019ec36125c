"""Loss and its exact gradient in the memory of one segment of blocks.

The forward pass keeps only the carry at segment boundaries; the backward pass takes the segments
in reverse, recomputes each one and pulls the gradient of its carry back through it. While a segment
runs the next is being queued, so up to two are in memory. What a segment does is one compiled function,
traced once a shape. Dropout masks belong to blocks (see `mlx_rtx.model.dropout`), so the second pass draws the
ones of the first.
"""

from mlx_rtx.kernels.scan import knowing, recording
from mlx_rtx.model.base import Transformer
from mlx_rtx.model.embedding import wanted
from mlx_rtx.support.compiled import compiled
from mlx_rtx.support.errors import require
from mlx_rtx.support.trees import flat

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map, tree_unflatten


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
    model.embedding.check(L)
    keys, spans = model.dropout_keys(L, key), model.spans(L, segment)

    def arguments(start: int, end: int) -> tuple:
        """Of a segment: tokens, their position, dropout keys, how many positions it reads, whether it closes."""
        block_keys = None if keys is None else keys[start // K : -(-end // K) + 1]
        read = max(end - max(start, L - n), 0)
        return tokens[:, start:end], mx.array(start), block_keys, read, close and end == L

    own = flat(model.trainable_parameters())
    ready = model.ready()
    carries: list[list] = [carry or []]
    outputs: list[list] = []  # of the scans of each segment, where kernels go by them; the last one runs but once
    for start, end in spans[:-1]:
        left, known = compiled(model, _advance)(ready, carries[-1], *arguments(start, end))
        carries.append(left)
        outputs.append(known)
        mx.async_eval(left, known)
        mx.eval(carries[-2])  # one segment ahead, not more: memory is taken when work is queued
    outputs.append([])

    loss = mx.array(0.0)
    gradients: dict = {}  # of what was made ready
    pulled: list = []  # gradient of the carry that the segment leaves; empty where none comes back
    after: list = []  # the carry that the last segment leaves
    queued: list = []  # what the segment before this one gives
    for done, (start, end) in enumerate(reversed(spans)):
        if detach and done % detach == 0:
            pulled = []
        if not pulled and end <= L - n:
            break  # neither a loss here nor a gradient from behind
        classes = targets[:, max(start - (L - n), 0) : max(end - (L - n), 0)]
        loss, gradients, pulled, left = compiled(model, _pull)(
            ready, loss, gradients, carries.pop(), outputs.pop(), pulled, classes, B * n, *arguments(start, end)
        )
        after = after if done else left
        mx.async_eval(loss, gradients, pulled, after)
        mx.eval(queued)
        queued = [gradients, pulled]

    def prepare(*weights: mx.array) -> list[mx.array]:
        """What was made ready. α is clamped there: what may pass at its boundary is decided on the whole gradient."""
        model.update(tree_unflatten(list(zip(own, weights, strict=True))))
        return list(flat(model.ready()).values())

    try:
        _, found = mx.vjp(prepare, list(own.values()), list(flat(gradients).values()))
    finally:
        model.update(tree_unflatten(list(own.items())))
    return loss, tree_unflatten(list(zip(own, found, strict=True))), after


def _advance(
    model: Transformer, ready: dict, carry: list, tokens: mx.array, position: mx.array, keys, read: int, close: bool
) -> tuple[list, list]:
    """The carry that a segment leaves, and the outputs of its scans."""
    with model.using(ready), recording() as outputs:
        return model.run(tokens, position, carry, 0, close, keys)[1], outputs


def _pull(
    model: Transformer,
    ready: dict,
    loss: mx.array,
    gradients: dict,
    carry: list,
    outputs: list,
    pulled: list,
    classes: mx.array,
    count: int,
    tokens: mx.array,
    position: mx.array,
    keys: mx.array | None,
    read: int,
    close: bool,
) -> tuple[mx.array, dict, list, list]:
    """Pull the gradient back through a segment.

    Returns:
        (loss and gradients of ``ready`` with the segment's own added; gradient of the carry that it took; the carry
        it leaves).
    """

    def objective(ready: dict, carry: list) -> tuple[mx.array, tuple]:
        """A scalar whose gradient is that of the segment: its loss, and its carry times what comes back.

        (Not `mx.vjp` of the carry: it loses a cotangent where two outputs are the same array.)
        """
        with model.using(ready):
            y, left = model.run(tokens, position, carry, read, close, keys)
            own = mx.array(0.0)
            if read:
                own = nn.losses.cross_entropy(model.embedding.readout(y), classes, reduction="sum") / count
        pairs = zip(flat(left).values(), flat(pulled).values(), strict=True) if pulled else ()
        return sum(((c * p).sum() for c, p in pairs), own), (own, left)

    with knowing(outputs):
        (_, (own, left)), (found, back) = mx.value_and_grad(objective, argnums=(0, 1))(ready, carry)
    found = tree_map(mx.add, gradients, found) if gradients else found
    return loss + own, found, back, left
