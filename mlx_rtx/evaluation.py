"""Loss and accuracy over fresh samples, with their standard errors."""

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_rtx.errors import require
from mlx_rtx.tasks import Task

PIECE = 64  # blocks evaluated at a time


@dataclass(frozen=True)
class Scores:
    """Means over ``sequences`` sequences; ``_se`` is the standard error of a mean."""

    sequences: int
    loss: float
    loss_se: float
    token_accuracy: float
    token_accuracy_se: float
    sequence_accuracy: float
    sequence_accuracy_se: float

    def __str__(self) -> str:
        return (
            f"loss={self.loss:.4g}({self.loss_se:.1g}) "
            f"token_accuracy={self.token_accuracy:.2%}({self.token_accuracy_se:.2%}) "
            f"sequence_accuracy={self.sequence_accuracy:.2%}({self.sequence_accuracy_se:.2%}) "
            f"sequences={self.sequences}"
        )


def evaluate(model: nn.Module, task: Task, samples: int, batch: int, key: mx.array) -> Scores:
    """Score ``model`` on ``samples`` sequences that ``key`` fixes, in memory that length hardly moves.

    Args:
        model: run without dropout, whatever its mode.
        task: where the sequences come from.
        samples: how many sequences, at least 1.
        batch: sequences at a time; a different one gives other sequences.
        key: random key of the sequences.

    Returns:
        `Scores`: loss in nats per target token, accuracy per token, and per sequence (all its
        targets right). Standard errors are over sequences.
    """
    require(samples >= 1, f"samples={samples}: must be at least 1")
    require(batch >= 1, f"batch={batch}: must be at least 1")
    training = model.training
    model.eval()
    parts = []
    for start, part_key in zip(range(0, samples, batch), mx.random.split(key, -(-samples // batch)), strict=True):
        tokens, targets = task.batch(part_key, min(batch, samples - start))
        logits = piecewise_logits(model, tokens, targets.shape[1])
        loss = nn.losses.cross_entropy(logits, targets).mean(axis=1)
        right = mx.argmax(logits, axis=-1) == targets
        parts.append(mx.stack([loss, right.mean(axis=1), right.all(axis=1).astype(mx.float32)]))
        mx.eval(parts[-1])
    model.train(training)
    each = mx.concatenate(parts, axis=1)  # (3, samples)
    errors = each.std(axis=1, ddof=1) / math.sqrt(samples) if samples > 1 else mx.full((3,), math.nan)
    numbers = mx.stack([each.mean(axis=1), errors], axis=1)  # each mean beside its error
    return Scores(samples, *(float(number) for number in numbers.flatten()))


def piecewise_logits(model: nn.Module, tokens: mx.array, last: int) -> mx.array:
    """``model(tokens, last=last)``, evaluated piece by piece: only the carry outlives a piece."""
    L, outputs, carry = tokens.shape[1], [], None
    for start, end in model.spans(L, PIECE):
        read = max(end - max(start, L - last), 0)
        y, carry = model.run(tokens[:, start:end], start, carry, read, close=end == L)
        mx.eval(y, carry)
        outputs.append(y)
    return model.embedding.readout(mx.concatenate(outputs, axis=1))
