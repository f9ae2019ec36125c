"""One causal transformer layer, the τ of the recurrence.

Letters: B batch, N rows of a window, n rows whose output is computed, D width, H heads, d = D/H.

The recurrence runs this layer hundreds of times per step and is host-bound, so the layer uses as few operations as
possible: the rows of all sequences form one matrix (B·N, D), queries, keys and values come from one product, and
weights are stored as (inputs, outputs), so that products need no transpose.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_rtx.model.config import NORM_EPS, Architecture
from mlx_rtx.model.dropout import DropoutScales
from mlx_rtx.model.norms import layer_norm, rms_norm
from mlx_rtx.support.trees import each

import mlx.core as mx
import mlx.nn as nn


def relu(x: mx.array) -> mx.array:
    """Compute max(x, 0). `nn.relu` is compiled, so that MLX would trace it again at every call under a gradient."""
    return mx.maximum(x, 0.0)


def gelu(x: mx.array) -> mx.array:
    """Compute the exact GELU x Φ(x), not compiled for the same reason as `relu`."""
    return x * (0.5 * mx.erf(x * math.sqrt(0.5)) + 0.5)


ACTIVATIONS = {"relu": relu, "gelu": gelu}
QK_SHARPNESS = 9.0  # factor on the scores of normalised queries and keys, in addition to 1/√d


def causal_mask(rows: int) -> mx.array:
    """Return the additive causal mask (rows, rows): 0 on and below the diagonal, -inf above."""
    above = mx.arange(rows)[:, None] < mx.arange(rows)
    return mx.where(above, -mx.inf, 0.0)


def normal(inputs: int, outputs: int, std: float = 0.02) -> mx.array:
    """Return a weight (inputs, outputs) for ``x @ weight``, drawn from a normal distribution of deviation ``std``."""
    return mx.random.normal((inputs, outputs), scale=std)


class FoldedWeights(NamedTuple):
    """A layer's weights in the form that its matrix products take, each (inputs, outputs).

    Each norm's gain g is folded in, ``(x ⊙ g) W = x (diag(g) W)``, and so is the attention scale, unless queries are
    normalised. Folding pays off if many calls use the same weights: each launches fewer kernels and saves fewer arrays
    for the backward pass.
    """

    qkv: mx.array  # (D, 3D)
    attention_out: mx.array  # (D, D)
    mlp_in: mx.array  # (D, 4D)
    mlp_out: mx.array  # (4D, D)


class TransformerLayer(nn.Module):
    """Pre-norm causal layer without biases: ``x + Attn(LN x)``, then ``x + MLP(LN x)``.

    Weights are initialised from a normal distribution with standard deviation 0.02, or 0.02/√(2r) for those that write
    to the residual stream of r stacked layers.
    """

    def __init__(self, config: Architecture):
        super().__init__()
        D, residual_std = config.dim, 0.02 / math.sqrt(2 * config.layers)
        self.heads = config.heads
        self.qk_norm = config.qk_norm
        self.scale = (QK_SHARPNESS if config.qk_norm else 1) / math.sqrt(D // config.heads)  # of attention scores
        self.dtype = getattr(mx, config.dtype)  # of matrix products
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = nn.LayerNorm(D, eps=NORM_EPS, bias=False)
        self.qkv = mx.concatenate([normal(D, D), normal(D, 2 * D)], axis=1)  # two draws: a seed keeps its weights
        self.attention_out = normal(D, D, residual_std)
        self.mlp_norm = nn.LayerNorm(D, eps=NORM_EPS, bias=False)
        self.mlp_in = normal(D, 4 * D)
        self.mlp_out = normal(4 * D, D, residual_std)

    def fold_weights(self, parameters: dict[str, Any]) -> FoldedWeights:
        """Return the float32 weights that `__call__` takes, computed from a tree like ``self.parameters()``."""
        D = parameters["qkv"].shape[0]
        qkv = parameters["qkv"] * parameters["attention_norm"]["weight"][:, None]
        if not self.qk_norm:
            qkv = qkv * mx.where(mx.arange(3 * D) < D, self.scale, 1.0)  # queries, keys, values
        return FoldedWeights(
            qkv=qkv,
            attention_out=parameters["attention_out"],
            mlp_in=parameters["mlp_in"] * parameters["mlp_norm"]["weight"][:, None],
            mlp_out=parameters["mlp_out"],
        )

    def cast(self, weights: FoldedWeights) -> FoldedWeights:
        """Return the weights in the dtype of the matrix products."""
        return FoldedWeights(*(weight.astype(self.dtype) for weight in weights))

    def __call__(
        self,
        x: mx.array,
        weights: FoldedWeights,
        rows: int | None = None,
        mask: mx.array | str = "causal",
        dropout: DropoutScales | None = None,
    ) -> mx.array:
        """Compute the outputs of the last n rows of windows of N rows; all rows serve as keys and values.

        Args:
            x: (B, N, D), float32.
            weights: folded and cast weights; their dtype is that of the matrix products.
            rows: n; all N by default.
            mask: additive mask (n, N) in the dtype of the matrix products, or ``"causal"``.
            dropout: dropout scales of the attention and MLP outputs and of the attention weights.

        Returns:
            (B, n, D), float32.
        """
        (B, N, D), w = x.shape, weights
        n = N if rows is None else rows
        normed = layer_norm(x).astype(w.qkv.dtype)
        if 2 * n < N:  # few rows need queries: compute only theirs
            q = normed[:, N - n :].reshape(B * n, D) @ w.qkv[:, :D]
            k, v = mx.split(normed.reshape(B * N, D) @ w.qkv[:, D:], 2, axis=1)
        else:
            q, k, v = mx.split(normed.reshape(B * N, D) @ w.qkv, 3, axis=1)
        q, k, v = (part.reshape(B, -1, self.heads, D // self.heads).swapaxes(1, 2) for part in (q, k, v))
        q, scale = q[:, :, q.shape[2] - n :], 1.0
        if self.qk_norm:
            q, k, scale = rms_norm(q), rms_norm(k), self.scale
        attended = _attend(q, k.swapaxes(2, 3), v, mask, scale, dropout and dropout.weights)  # (B·n, D)
        x = x[:, N - n :].reshape(B * n, D)
        x = _add_product(x, attended, w.attention_out, dropout and dropout.attention)
        hidden = self.activation(layer_norm(x).astype(w.mlp_in.dtype) @ w.mlp_in)  # (B·n, 4D)
        return _add_product(x, hidden, w.mlp_out, dropout and dropout.mlp).reshape(B, n, D)

    def step(
        self,
        x: mx.array,
        parameters: dict[str, Any],
        mask: mx.array,
        cache: mx.array,
        write: Callable[[mx.array, mx.array], mx.array],
    ) -> tuple[mx.array, mx.array]:
        """Compute the outputs of new rows, given the cached keys and values of the rows before them; in float32.

        Args:
            x: new rows (B, n, D).
            parameters: a tree like ``self.parameters()``; not folded, which would cost more than a single use saves.
            mask: additive mask (n, N) over all N rows of the window.
            cache: keys and values (2, B, H, N, d) of the window.
            write: function of (cache, keys and values (2, B, H, n, d) of the new rows) that returns the updated cache.

        Returns:
            (outputs (B, n, D), updated cache).
        """
        (B, n, D), p, H = x.shape, parameters, self.heads
        x = x.reshape(B * n, D)
        qkv = (layer_norm(x, p["attention_norm"]["weight"]) @ p["qkv"]).reshape(B, n, 3, H, D // H)
        qkv = qkv.transpose(2, 0, 3, 1, 4)  # (3, B, H, n, d)
        if self.qk_norm:
            qkv = mx.concatenate([rms_norm(qkv[:2]), qkv[2:]])
        cache = write(cache, qkv[1:])
        k, v = each(cache)
        attended = _attend(qkv[:1].squeeze(0), k.swapaxes(2, 3), v, mask, self.scale)  # (B·n, D)
        x = _add_product(x, attended, p["attention_out"], None)
        hidden = self.activation(layer_norm(x, p["mlp_norm"]["weight"]) @ p["mlp_in"])  # (B·n, 4D)
        return _add_product(x, hidden, p["mlp_out"], None).reshape(B, n, D), cache


def _add_product(x: mx.array, rows: mx.array, weight: mx.array, scales: mx.array | None) -> mx.array:
    """Compute ``x + scales ⊙ (rows @ weight)`` in the dtype of x."""
    if scales is None:
        return mx.addmm(x, rows, weight) if weight.dtype == x.dtype else x + rows @ weight
    return x + scales * (rows @ weight)


def _attend(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str, scale: float, dropout: mx.array | None = None
) -> mx.array:
    """Compute attention of queries (B, H, n, d), keys (B, H, d, N) and values (B, H, N, d), with heads concatenated.

    ``dropout`` (B, H, n, N) scales the attention weights after the softmax, which MLX's fused attention does not
    support.

    Returns:
        (B·n, D).
    """
    B, H, n, d = q.shape
    if isinstance(mask, str) and dropout is not None:
        mask = causal_mask(k.shape[3])[-n:].astype(q.dtype)
    if isinstance(mask, str):
        out = mx.fast.scaled_dot_product_attention(q, k.swapaxes(2, 3), v, scale=scale, mask=mask)
    else:  # three kernels; no MLX backend has a fused kernel for heads this narrow
        scores = mx.addmm(mask, q, k, alpha=scale)  # (B, H, n, N)
        weights = mx.softmax(scores, axis=-1, precise=True)
        if dropout is not None:
            weights = (weights * dropout).astype(v.dtype)
        out = weights @ v  # (B, H, n, d)
    return out.swapaxes(1, 2).reshape(B * n, H * d)
