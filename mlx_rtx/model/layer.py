"""One causal transformer layer, the τ of the recurrence.

Letters: B batch, N rows of a window, n rows whose output is wanted, D width, H heads, d = D/H.

The recurrence runs this hundreds of times a step, and the host that launches the work sets the
pace. So it is written in few operations: the rows of all sequences stand in one matrix (B·N, D),
queries, keys and values come from one product, and weights are kept as (inputs, outputs), which
spares every product a transpose.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_rtx.model.config import NORM_EPS, Architecture
from mlx_rtx.model.dropout import DropoutScales
from mlx_rtx.support.trees import each

import mlx.core as mx
import mlx.nn as nn


def relu(x: mx.array) -> mx.array:
    """max(x, 0). Not `nn.relu`, which is compiled: under a gradient it would be traced at every call."""
    return mx.maximum(x, 0.0)


def gelu(x: mx.array) -> mx.array:
    """x Φ(x), exact, and not compiled for the same reason."""
    return x * (0.5 * mx.erf(x * math.sqrt(0.5)) + 0.5)


ACTIVATIONS = {"relu": relu, "gelu": gelu}
QK_SHARPNESS = 9.0  # of scores of normalised queries and keys, before 1/√d


def causal_mask(rows: int) -> mx.array:
    """Additive mask (rows, rows): 0 where a row may look, -inf at rows after it."""
    above = mx.arange(rows)[:, None] < mx.arange(rows)
    return mx.where(above, -mx.inf, 0.0)


def normal(inputs: int, outputs: int, std: float = 0.02) -> mx.array:
    """A weight (inputs, outputs) drawn from N(0, std), for ``x @ weight``."""
    return mx.random.normal((inputs, outputs), scale=std)


class FoldedWeights(NamedTuple):
    """A layer's weights as its products take them, each (inputs, outputs).

    Each norm's gain g is folded in, ``(x ⊙ g) W = x (diag(g) W)``, and so is the scale of attention, unless queries are
    normalised. It pays where one set of weights serves many calls: they launch and save less, above all in the backward
    pass.
    """

    qkv: mx.array  # (D, 3D)
    attention_out: mx.array  # (D, D)
    mlp_in: mx.array  # (D, 4D)
    mlp_out: mx.array  # (4D, D)


class TransformerLayer(nn.Module):
    """Pre-norm causal layer without biases: ``x + Attn(LN x)``, then ``x + MLP(LN x)``.

    Weights start as N(0, 0.02), those that write to the residual stream as N(0, 0.02/√(2r)) for r
    stacked layers.
    """

    def __init__(self, config: Architecture):
        super().__init__()
        D, residual_std = config.dim, 0.02 / math.sqrt(2 * config.layers)
        self.heads = config.heads
        self.qk_norm = config.qk_norm
        self.scale = (QK_SHARPNESS if config.qk_norm else 1) / math.sqrt(D // config.heads)  # of attention scores
        self.dtype = getattr(mx, config.dtype)  # of products
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = nn.LayerNorm(D, eps=NORM_EPS, bias=False)
        self.qkv = mx.concatenate([normal(D, D), normal(D, 2 * D)], axis=1)  # two draws, which a seed's runs rely on
        self.attention_out = normal(D, D, residual_std)
        self.mlp_norm = nn.LayerNorm(D, eps=NORM_EPS, bias=False)
        self.mlp_in = normal(D, 4 * D)
        self.mlp_out = normal(4 * D, D, residual_std)

    def fold_weights(self, parameters: dict[str, Any]) -> FoldedWeights:
        """The weights that `__call__` takes, in float32, from a tree like ``self.parameters()``."""
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
        """The weights in the dtype of the products."""
        return FoldedWeights(*(weight.astype(self.dtype) for weight in weights))

    def __call__(
        self,
        x: mx.array,
        weights: FoldedWeights,
        rows: int | None = None,
        mask: mx.array | str = "causal",
        dropout: DropoutScales | None = None,
    ) -> mx.array:
        """Run the layer on the last n rows of windows of N; all rows serve as keys and values.

        Args:
            x: (B, N, D), float32.
            weights: folded and cast; their dtype is that of the products.
            rows: n; all N if not given.
            mask: additive (n, N) in the dtype of the products, or ``"causal"``.
            dropout: scales of the attention and MLP outputs, and of the attention weights.

        Returns:
            (B, n, D), float32.
        """
        (B, N, D), w = x.shape, weights
        n = N if rows is None else rows
        normed = _layer_norm(x, None).astype(w.qkv.dtype)
        if 2 * n < N:  # most rows need no query
            q = normed[:, N - n :].reshape(B * n, D) @ w.qkv[:, :D]
            k, v = mx.split(normed.reshape(B * N, D) @ w.qkv[:, D:], 2, axis=1)
        else:
            q, k, v = mx.split(normed.reshape(B * N, D) @ w.qkv, 3, axis=1)
        q, k, v = (part.reshape(B, -1, self.heads, D // self.heads).swapaxes(1, 2) for part in (q, k, v))
        q, scale = q[:, :, q.shape[2] - n :], 1.0
        if self.qk_norm:
            q, k, scale = _rms_norm(q), _rms_norm(k), self.scale
        attended = _attend(q, k.swapaxes(2, 3), v, mask, scale, dropout and dropout.weights)  # (B·n, D)
        x = x[:, N - n :].reshape(B * n, D)
        x = _add_product(x, attended, w.attention_out, dropout and dropout.attention)
        hidden = self.activation(_layer_norm(x, None).astype(w.mlp_in.dtype) @ w.mlp_in)  # (B·n, 4D)
        return _add_product(x, hidden, w.mlp_out, dropout and dropout.mlp).reshape(B, n, D)

    def step(
        self,
        x: mx.array,
        parameters: dict[str, Any],
        mask: mx.array,
        cache: mx.array,
        write: Callable[[mx.array, mx.array], mx.array],
    ) -> tuple[mx.array, mx.array]:
        """Run the layer on rows that follow others, whose keys and values were kept; in float32.

        Args:
            x: the new rows (B, n, D).
            parameters: a tree like ``self.parameters()``; one use of them is too few to fold them.
            mask: additive (n, N), over all N rows of their window.
            cache: keys and values (2, B, H, N, d) of the window.
            write: puts those of the new rows, (2, B, H, n, d), in their place in the cache.

        Returns:
            (outputs (B, n, D), cache with the new rows written in).
        """
        (B, n, D), p, H = x.shape, parameters, self.heads
        x = x.reshape(B * n, D)
        qkv = (_layer_norm(x, p["attention_norm"]["weight"]) @ p["qkv"]).reshape(B, n, 3, H, D // H)
        qkv = qkv.transpose(2, 0, 3, 1, 4)  # (3, B, H, n, d)
        if self.qk_norm:
            qkv = mx.concatenate([_rms_norm(qkv[:2]), qkv[2:]])
        cache = write(cache, qkv[1:])
        k, v = each(cache)
        attended = _attend(qkv[:1].squeeze(0), k.swapaxes(2, 3), v, mask, self.scale)  # (B·n, D)
        x = _add_product(x, attended, p["attention_out"], None)
        hidden = self.activation(_layer_norm(x, p["mlp_norm"]["weight"]) @ p["mlp_in"])  # (B·n, 4D)
        return _add_product(x, hidden, p["mlp_out"], None).reshape(B, n, D), cache


def _layer_norm(x: mx.array, gain: mx.array | None) -> mx.array:
    return mx.fast.layer_norm(x, gain, None, NORM_EPS)


def _rms_norm(x: mx.array) -> mx.array:
    return mx.fast.rms_norm(x, None, NORM_EPS)


def _add_product(x: mx.array, rows: mx.array, weight: mx.array, scales: mx.array | None) -> mx.array:
    """``x + scales ⊙ (rows @ weight)``, in the dtype of x."""
    if scales is None:
        return mx.addmm(x, rows, weight) if weight.dtype == x.dtype else x + rows @ weight
    return x + scales * (rows @ weight)


def _attend(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str, scale: float, dropout: mx.array | None = None
) -> mx.array:
    """Attention of queries (B, H, n, d) to keys (B, H, d, N) and values (B, H, N, d): (B·n, D), heads side by side.

    Its weights are scaled by ``dropout`` (B, H, n, N) after the softmax. MLX's fused attention has no place for that.
    """
    B, H, n, d = q.shape
    if isinstance(mask, str) and dropout is not None:
        mask = causal_mask(k.shape[3])[-n:].astype(q.dtype)
    if isinstance(mask, str):
        out = mx.fast.scaled_dot_product_attention(q, k.swapaxes(2, 3), v, scale=scale, mask=mask)
    else:  # three kernels; heads this narrow are fused on no backend
        scores = mx.addmm(mask, q, k, alpha=scale)  # (B, H, n, N)
        weights = mx.softmax(scores, axis=-1, precise=True)
        if dropout is not None:
            weights = (weights * dropout).astype(v.dtype)
        out = weights @ v  # (B, H, n, d)
    return out.swapaxes(1, 2).reshape(B * n, H * d)
