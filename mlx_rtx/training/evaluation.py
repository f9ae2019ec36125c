"""Loss and accuracy on held-out sequences, with standard errors and confidence intervals."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from mlx_rtx.model.base import ModelWeights, Transformer
from mlx_rtx.model.segment import Carries, Segment, resolve_last
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.errors import require
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.tasks import Sequences
from mlx_rtx.training.ranks import Ranks

import mlx.core as mx
import mlx.nn as nn
import numpy as np

SEGMENT = 64  # blocks evaluated at a time


@dataclass(frozen=True)
class Scores:
    """Means over ``targets`` target tokens in ``sequences`` sequences; ``_se`` is the standard error of a mean."""

    sequences: int
    targets: int
    loss: float
    loss_se: float
    accuracy: float
    accuracy_se: float
    sequence_accuracy: float
    sequence_accuracy_se: float
    bytes: int | None = None
    """Number of UTF-8 bytes of the text that the targets encode; None if they are not text."""

    @property
    def bits_per_byte(self) -> float:
        """Loss in bits per byte of text, comparable between vocabularies; NaN if the targets are not text."""
        return self.loss * self.targets / self.bytes / math.log(2) if self.bytes else math.nan

    @property
    def bits_per_character(self) -> float:
        """Loss in bits instead of nats, if each target is a character."""
        return self.loss / math.log(2)

    def stored(self) -> dict[str, Any]:
        """Return all fields as a dict that can be written as JSON; those about bytes only if the targets are text."""
        fields = asdict(self) | {"bits_per_byte": self.bits_per_byte}
        return fields if self.bytes else {name: fields[name] for name in fields if not name.endswith(("bytes", "byte"))}

    def text(self, metrics: Iterable[str]) -> str:
        """Format some of the scores as ``name=value(error)``, followed by the number of sequences."""
        parts = []
        for name in metrics:
            value, error = getattr(self, name), getattr(self, name + "_se", math.nan)
            number, spread = ("{:.2%}", "({:.2%})") if name.endswith("accuracy") else ("{:.4g}", "({:.1g})")
            parts.append(f"{name}={number.format(value)}" + ("" if math.isnan(error) else spread.format(error)))
        return " ".join([*parts, f"sequences={self.sequences}"])


def interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a binomial proportion ``share`` of ``count`` trials; 95 % by default.

    Example:
        >>> [round(end, 4) for end in interval(1.0, 1000)]
        [0.9962, 1.0]
    """
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def evaluate(
    model: Transformer,
    sequences: Iterable[Sequences],
    execution: Execution | None = None,
    ranks: Ranks | None = None,
) -> Scores:
    """Score ``model`` in memory that hardly depends on the length of the sequences.

    Args:
        model: model to score; it runs without dropout, whatever its mode.
        sequences: batches to score, e.g. ``Data.held_out``.
        execution: how functions are compiled and run; default: `Execution()`.
        ranks: processes among which each batch is divided; default: this process alone.

    Returns:
        `Scores`: loss in nats per target token, accuracy per token, and per sequence (all its targets right).
        Standard errors are over sequences, which may differ in their number of targets; sequences without targets are
        left out. A token whose loss is not finite counts as wrong.

    Raises:
        UserError: there is nothing to score, or tokens or targets are invalid for this model.
    """
    training = model.training
    model.eval()
    rows: list[np.ndarray] = []
    size = 0
    ranks = ranks or Ranks()
    for batch in sequences:
        own = batch if ranks.size == 1 else batch.rows(ranks.rows(len(batch.targets)))
        length, read_tokens, targets, *_ = _checked(model, own) if ranks.size == 1 or len(own.targets) else own
        sums, done, n = mx.zeros((2, len(targets))), 0, targets.shape[1]
        for logits in iter_logits(model, read_tokens, length, n, execution) if len(targets) else ():
            classes = targets[:, done : done + logits.shape[1]]
            done += logits.shape[1]
            counted = classes != IGNORED
            losses = mx.where(counted, nn.losses.cross_entropy(logits, mx.maximum(classes, 0)), 0)
            right = (mx.argmax(logits, axis=-1) == classes) & mx.isfinite(losses)
            sums = sums + mx.stack([losses.sum(axis=1), right.sum(axis=1).astype(mx.float32)])
            mx.eval(sums)
        each = np.array(ranks.gather(sums, len(batch.targets)), dtype=np.float64)
        size += 0 if batch.sizes is None else int(batch.sizes.sum())
        counts = (np.array(batch.targets) != IGNORED).sum(axis=1)
        rows.append(np.stack([*each, each[1] == counts, counts])[:, counts > 0])
    model.train(training)
    loss, right, whole, counts = np.concatenate([np.zeros((4, 0)), *rows], axis=1)
    require(len(counts) > 0, "samples: there is nothing to score; ask for at least 1")
    ones = np.ones_like(counts)
    means = (*mean_and_error(loss, counts), *mean_and_error(right, counts), *mean_and_error(whole, ones))
    return Scores(len(counts), int(counts.sum()), *means, size or None)


def _checked(model: Transformer, batch: Sequences) -> Sequences:
    """Check the targets of a batch, and return the batch with tokens that are checked when they are read."""
    length, read_tokens, targets, _, masked = batch
    model.check_targets(targets, masked)
    resolve_last(length, targets.shape[1])

    def read_checked(start: int, end: int) -> mx.array:
        tokens = read_tokens(start, end)
        model.check_tokens(tokens)
        expected = len(targets), end - start
        require(tokens.shape == expected, f"tokens: {start} … {end} have shape {tokens.shape}; must be {expected}")
        return tokens

    return batch._replace(read_tokens=read_checked)


def mean_and_error(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Return Σ sums / Σ counts, and its standard error over sequences (NaN for a single one)."""
    mean, n = sums.sum() / counts.sum(), len(sums)
    if n == 1:
        return float(mean), math.nan
    return float(mean), float(math.sqrt(n / (n - 1) * np.square(sums - mean * counts).sum()) / counts.sum())


def iter_logits(
    model: Transformer,
    read_tokens: Callable[[int, int], mx.array],
    length: int,
    last: int,
    execution: Execution | None = None,
) -> Iterator[mx.array]:
    """Yield the logits of ``model(tokens, last=last)`` segment by segment; only the carry is kept between segments.

    Args:
        model: model to run.
        read_tokens: function that returns tokens (B, end - start) of positions start … end - 1.
        length: length L of the sequences.
        last: number of final positions for which logits are computed.
        execution: how functions are compiled and run; default: `Execution()`.
    """
    execution = execution or Execution()
    carry: Carries | None = None
    model.embedding.check(length)
    weights = execution(model, type(model).fold_weights, model.parameters())
    for start, end in model.spans(length, SEGMENT):
        execution.poll()
        outputs_wanted = max(end - max(start, length - last), 0)
        segment = Segment(read_tokens(start, end), mx.array(start), outputs_wanted, end == length)
        logits, carry = execution(model, _logits, weights, segment, carry)
        execution.wait(logits, carry)
        if logits is not None:
            yield logits


def _logits(
    model: Transformer, weights: ModelWeights, segment: Segment, carry: Carries | None
) -> tuple[mx.array | None, Carries | None]:
    """Return the logits of a segment's outputs, None if none are wanted, and the carry out of the segment."""
    out = model.run(weights, segment, carry)
    logits = model.embedding.readout(out.y, weights.embedding) if segment.outputs_wanted else None
    return logits, out.carry
