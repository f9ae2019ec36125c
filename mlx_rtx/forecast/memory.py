"""Prediction of the peak memory of a training step or a forward pass from the configuration.

Letters: B batch, L length, K block width, D width, H heads, P parameters, S blocks per segment.

A training step keeps, in float32: weights, gradients and the optimizer's moments; the carry at every segment boundary;
the arrays that the backward pass of one segment needs from its forward pass; and temporary arrays. At the end the
optimizer allocates new weights and moments in addition to the old ones, which is the peak if the model is large and the
batch small.

On a GPU the host queues work ahead, so that arrays are freed later than they could be. Their number depends on how far
the host gets ahead, which is more with a faster host or a busier GPU: there the prediction is a range.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlx_rtx import kernels
from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.operations import Calls, layer_calls, segment_sizes
from mlx_rtx.model.config import ModelConfig, ModelKind
from mlx_rtx.model.registry import parameter_count
from mlx_rtx.model.segment import resolve_last
from mlx_rtx.training.evaluation import SEGMENT as EVALUATION_SEGMENT

FLOAT = 4  # bytes
WITHIN = 0.15  # tolerated relative error of a prediction
PRODUCTS = {"float32": 1.0, "bfloat16": 0.5}  # size of an element of a product, in floats
# The following constants are fitted to measured peaks on a CPU (Linux) and an NVIDIA H200.
# Copies of the weights: with one segment; with several, whose gradients are summed; per block, for its own gradient.
ONE_SEGMENT, SUMMING, OF_A_BLOCK = 4.0, 5.0, 0.3
# Copies of the weights while the optimizer creates the new ones.
UPDATING = 12.5
# Factors on the number of floats counted: saved; temporary scores; embedded, in a forward pass and in training.
SAVED, SCORES, EMBEDDED, EMBEDDED_TRAINING = 1.03, 2.2, 2.0, 20.0
# Number of launches whose arrays are not freed yet on a GPU: minimum; maximum in training and in a forward pass;
# increase per megabyte per launch above a threshold, as the host then gets further ahead; upper limit; as a fraction of
# a step.
QUEUED_LEAST, QUEUED, QUEUED_FORWARD, PER_MEGABYTE, FREE_MEGABYTES, MOST_QUEUED = 75, 150, 200, 30, 5, 400
PART, PART_FORWARD, PART_REGULAR = 1 / 8, 1 / 4, 1 / 12
# Factors on what a segment's windows keep with fused kernels, minimum and maximum: one segment; several; several, wide.
HELD_ONE, HELD_SEVERAL, HELD_WIDE = (1.2, 3.0), (2.0, 3.2), (2.8, 5.0)


@dataclass(frozen=True)
class Memory:
    """Bytes of a step's arrays at its peak, by purpose."""

    weights: int
    """Weights, gradients and, in training, the optimizer's moments."""
    carries: int
    """Tokens, and the carry at every segment boundary."""
    segment: int
    """Arrays of one segment: those that its backward pass needs, or the temporary arrays of a forward pass."""
    optimizer: int
    """Total during the optimizer's update, when the arrays of the gradient are freed."""
    queued: int = 0
    """On a GPU: maximum of arrays that are no longer needed but not freed yet, and of fused kernels' arrays."""
    queued_least: int = 0
    """Minimum of the same arrays."""

    @property
    def peak(self) -> int:
        """Predicted peak (its maximum), the larger of gradient and update."""
        return max(self.weights + self.carries + self.segment + self.queued, self.optimizer)

    @property
    def least(self) -> int:
        """Minimum of the predicted peak; equal to `peak` on a CPU."""
        return max(self.weights + self.carries + self.segment + self.queued_least, self.optimizer)

    def ratio(self, measured: float) -> float:
        """Return `ratio_to_range` of a measured peak and the predicted one."""
        return ratio_to_range(measured, self.least, self.peak)

    def on_gpu(
        self, work: Work, training: bool, segment: int | None, model: ModelKind = "recurrent", dtype: str = "float32"
    ) -> "Memory":
        """Return the prediction for a GPU, given the ``work`` of a step with ``segment`` blocks per segment."""
        each = work.bytes / work.launches
        # largest at 8 blocks: two long segments are rarely in memory, and short ones finish quickly
        share = (min(segment, 8) / max(segment, 8)) ** 0.75 if training and segment else 1.0
        least, most = QUEUED_LEAST * share * PRODUCTS[dtype], (QUEUED if training else QUEUED_FORWARD) * share
        most = min(most + PER_MEGABYTE * max(each / 1e6 - FREE_MEGABYTES, 0), MOST_QUEUED)
        part = PART_REGULAR if model == "regular" else PART if training else PART_FORWARD
        held = [round(each * min(launches, part * work.launches)) for launches in (least, most)]
        return replace(self, queued_least=held[0], queued=held[1])


def ratio_to_range(measured: float, least: float, most: float) -> float:
    """Return a measured peak divided by the nearer end of a predicted range; 1 inside the range."""
    return measured / min(max(measured, least), most)


def training_memory(
    config: ModelConfig,
    length: int,
    batch: int,
    targets: int,
    segment: int | None = 8,
    model: ModelKind = "recurrent",
) -> Memory:
    """Predict the memory of `loss_and_grad` and the optimizer's update.

    Args:
        config: configuration of the model.
        length: length L of a sequence in tokens.
        batch: number of sequences B.
        targets: number of final positions with a target.
        segment: blocks per segment of the gradient checkpointing; None for the whole sequence.
        model: kind of the model.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> training_memory(config, 4128, 64, 16, segment=8).peak < 0.5e9
        True
    """
    n, D, drops = resolve_last(length, targets), config.dim, config.dropout > 0
    weights = FLOAT * parameter_count(config, model)
    copies, best, carry = ONE_SEGMENT, 0.0, 0
    for tokens, read, calls in _run(config, length, n, segment, model):
        saved = sum(call.times * _saved(config, call) for call in calls) + tokens * D * (2 + drops)
        readout = _readout(config, min(read, n))
        at_work = max(linear + scores for linear, scores in _at_work(config, calls))
        best = max(best, SAVED * (saved + readout) + at_work, EMBEDDED_TRAINING * tokens * D)
    if model == "recurrent":
        run = segment_sizes(config, length, n, segment)
        copies = SUMMING + OF_A_BLOCK * max(size.blocks for size in run)
        boundaries = sum(size.times for size in run) - 1
        carry = boundaries * 2 * config.block * D * config.layers
    return Memory(
        weights=round(copies * weights),
        carries=FLOAT * batch * (carry + length),
        segment=round(FLOAT * batch * best),
        optimizer=round(UPDATING * weights),
    )


def kernel_memory(config: ModelConfig, length: int, batch: int, targets: int, segment: int | None = 8) -> Memory:
    """Predict the memory of `loss_and_grad` of a recurrent transformer with fused kernels (`mlx_rtx.kernels`).

    The kernels keep the outputs of all windows of a sequence, and the arrays of a whole segment until it is finished,
    while the next one is running. Fitted to about twenty peaks on NVIDIA H200s, all without attention dropout; its
    random bits and masks are computed from their sizes, not measured. Arguments as for `training_memory`.
    """
    plain, run = (
        training_memory(config, length, batch, targets, segment),
        segment_sizes(config, length, targets, segment),
    )
    K, n = config.block, config.block if config.history == "hidden" else 2 * config.block
    window = config.dim * (20 * K + (19 + 6 * (config.dropout > 0)) * n) * config.layers
    window += (config.attention_dropout > 0) * round((1 + 1 / 4 + 1) * config.heads * n * 2 * K) * config.layers
    blocks, several = max(size.blocks for size in run), len(run) > 1
    outputs = several * sum(size.times * size.blocks for size in run) * n * config.dim * config.layers
    held = round(FLOAT * batch * blocks * window)
    least, most = HELD_ONE if not several else HELD_SEVERAL if kernels.form(config.dim).narrow else HELD_WIDE
    return replace(
        plain,
        carries=plain.carries + FLOAT * batch * outputs,
        segment=0,
        queued_least=round(least * held),
        queued=round(most * held),
    )


def forward_memory(
    config: ModelConfig, length: int, batch: int, last: int | None = None, model: ModelKind = "recurrent"
) -> Memory:
    """Predict the memory of a forward pass by segments (`mlx_rtx.training.evaluation.iter_logits`).

    Arguments as for `training_memory`; logits are computed for the ``last`` positions, all if None.
    """
    n = resolve_last(length, last)
    best = max(
        EMBEDDED * tokens * config.dim + _readout(config, min(read, n)) + max(linear, scores + linear / 2)
        for tokens, read, calls in _run(config, length, n, EVALUATION_SEGMENT, model)
        for linear, scores in _at_work(config, calls)
    )
    return Memory(
        weights=FLOAT * parameter_count(config, model),
        carries=FLOAT * batch * (length + n * config.outputs),
        segment=round(FLOAT * batch * best),
        optimizer=0,
    )


def _run(
    config: ModelConfig, length: int, n: int, segment: int | None, model: ModelKind
) -> Iterator[tuple[int, int, list[Calls]]]:
    """Yield tokens, positions with outputs and applications of τ for each kind of segment of a sequence."""
    if model == "regular":
        below = Calls(config.layers - 1, length, length)
        yield length, n, [below, Calls(1, n, length)]
        return
    for size in segment_sizes(config, length, n, segment):
        tops = [layer == config.layers - 1 for layer in range(config.layers)]
        calls = [call for top in tops for call in layer_calls(config, size, top)]
        yield size.blocks * config.block, size.blocks_wanted * config.block, calls


def _readout(config: ModelConfig, n: int) -> int:
    """Return the number of floats of ``n`` outputs, their norms, logits, and the loss's temporary arrays."""
    return n * (2 * config.dim + 3 * config.outputs)


def _saved(config: ModelConfig, call: Calls) -> int:
    """Return the number of floats per sequence that the backward pass of one application of τ needs."""
    _, rows, window = call
    # in the dtype of products: normalized input, query, attention output, normalized residual; then the MLP
    inner = 4 + (8 if config.activation == "relu" else 13)
    scores = rows * window * config.heads
    outer = 2 + 2 * (config.dropout > 0)  # residual, output, two dropout masks
    outer += rows < window  # concatenation of rows and their context
    drops = config.attention_dropout > 0  # masks of the attention weights, and masked attention weights
    halves = rows * config.dim * inner + 3 * window * config.dim + (1 + drops) * scores
    return rows * config.dim * outer + window * config.dim + drops * scores + round(PRODUCTS[config.dtype] * halves)


def _at_work(config: ModelConfig, calls: list[Calls]) -> Iterator[tuple[float, float]]:
    """Yield temporary floats per sequence in applications of τ: those of rows, and those of attention scores."""
    for times, rows, window in calls:
        # outputs of all blocks are computed in one call, the windows of the recurrence one after the other
        together = times if config.history == "hidden" and rows == window == config.block else min(times, 1)
        context = 4 if rows == window else 8  # copies of the window
        linear = rows * config.dim * (8 if config.activation == "relu" else 20) + context * window * config.dim
        yield together * linear, together * SCORES * rows * window * config.heads
