"""Quantizes exported weights to 4 or 8 bits, and measures the increase in loss on held-out text."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from mlx_rtx.interchange.model_files.recurrent_transformer import Model
from mlx_rtx.interchange.model_folder import Exported
from mlx_rtx.support.errors import require
from mlx_rtx.tasks import Sequences
from mlx_rtx.training.evaluation import mean_and_error

import mlx.core as mx
import mlx.nn as nn
import numpy as np

GROUP_SIZES = (32, 64, 128)


class Estimate(NamedTuple):
    """A mean and the half-width of its 95 % confidence interval."""

    value: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.value:.5f} ± {self.half_width:.5f}"


class Cost(NamedTuple):
    """Loss in nats per target before and after quantization, and its increase."""

    targets: int
    before: Estimate
    after: Estimate
    added: Estimate


def quantize(exported: Exported, bits: int, group_size: int) -> Exported:
    """Quantize the weights of linear layers and embeddings, as ``mlx_lm.convert -q`` does.

    Args:
        exported: exported model, which is modified in-place.
        bits: bits per weight, 4 or 8.
        group_size: number of weights that share a scale and an offset; must divide the model's width.

    Returns:
        The exported model with the quantization in its config.

    Raises:
        UserError: if ``group_size`` does not divide the width.
    """
    D = exported.config["hidden_size"]
    fitting = [size for size in GROUP_SIZES if D % size == 0]
    remedy = f"use {' or '.join(map(str, fitting))}" if fitting else "none does; train with a --dim of 32, 64, 96, …"
    require(group_size in fitting, f"--group-size {group_size}: does not divide the model's dim={D}; {remedy}")
    takes = exported.model.quant_predicate
    nn.quantize(
        exported.model, group_size, bits, class_predicate=lambda at, m: hasattr(m, "to_quantized") and takes(at, m)
    )
    described = {"group_size": group_size, "bits": bits, "mode": "affine"}
    return replace(exported, config={**exported.config, "quantization": described})


def measure_losses(model: Model, sequences: Iterable[Sequences]) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed loss in nats and the number of targets of each sequence, processed as a stream."""
    sums, counts = [], []
    for length, read_tokens, targets, *_ in sequences:
        n = targets.shape[1]
        logits = model(read_tokens(0, length))[:, -n:].astype(mx.float32)
        sums.append(np.array(nn.losses.cross_entropy(logits, targets).sum(axis=1), np.float64))
        counts.append(np.full(len(targets), n))
    return np.concatenate(sums), np.concatenate(counts)


def estimate(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    """Return the mean per target over sequences, with its 95 % confidence interval."""
    mean, error = mean_and_error(sums, counts)
    return Estimate(mean, 1.96 * error)


def compare_losses(before: tuple[np.ndarray, np.ndarray], after: tuple[np.ndarray, np.ndarray]) -> Cost:
    """Compare losses on the same sequences, by paired differences."""
    (first, counts), (second, _) = before, after
    return Cost(int(counts.sum()), estimate(first, counts), estimate(second, counts), estimate(second - first, counts))
