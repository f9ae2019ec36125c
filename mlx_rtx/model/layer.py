"""One causal transformer layer, the τ of the recurrence.

Letters: B batch, N rows of a window, n rows whose output is wanted, D width, H heads, d = D/H.

The recurrence runs this hundreds of times a step, and the host that launches the work sets the
pace. So it is written in few operations: the rows of all sequences stand in one matrix (B·N, D),
queries, keys and values come from one product, and weights are kept as (inputs, outputs), which
spares every product a transpose.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from mlx_rtx.model.config import Architecture
from mlx_rtx.support.trees import each

import mlx.core as mx
import mlx.nn as nn

EPS = 1e-5  # of every norm
Keep = tuple[mx.array, mx.array]  # dropout factors of one call


def relu(x: mx.array) -> mx.array:
    """max(x, 0). Not `nn.relu`, which is compiled: under a gradient it would be traced at every call."""
    return mx.maximum(x, 0.0)


def gelu(x: mx.array) -> mx.array:
    """x Φ(x), exact, and not compiled for the same reason."""
    return x * (0.5 * mx.erf(x * math.sqrt(0.5)) + 0.5)


ACTIVATIONS = {"relu": relu, "gelu": gelu}


def causal_mask(rows: int) -> mx.array:
    """Additive mask (rows, rows): 0 where a row may look, -inf at rows after it."""
    above = mx.arange(rows)[:, None] < mx.arange(rows)
    return mx.where(above, -mx.inf, 0.0)


def normal(inputs: int, outputs: int, std: float = 0.02) -> mx.array:
    """A weight (inputs, outputs) drawn from N(0, std), for ``x @ weight``."""
    return mx.random.normal((inputs, outputs), scale=std)


class Weights(NamedTuple):
    """A layer's weights as its products take them, each (inputs, outputs)."""

    scale: float  # of attention scores
    attention_norm: mx.array | None  # gain of the norm
    qkv: mx.array  # (D, 3D)
    attention_out: mx.array  # (D, D)
    mlp_norm: mx.array | None
    mlp_in: mx.array  # (D, 4D)
    mlp_out: mx.array  # (4D, D)


class TransformerLayer(nn.Module):
    """Pre-norm causal layer without biases: ``x + Attn(LN x)``, then ``x + MLP(LN x)``.

    Weights start as N(0, 0.02), those that write to the residual stream as N(0, 0.02/√(2r)) for r
    stacked layers.
    """

    def __init__(self, config: Architecture):
        super().__init__()
        D, residual = config.dim, 0.02 / math.sqrt(2 * config.layers)
        self.heads = config.heads
        self.dtype = getattr(mx, config.dtype)  # of products
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = nn.LayerNorm(D, eps=EPS, bias=False)
        self.qkv = mx.concatenate([normal(D, D), normal(D, 2 * D)], axis=1)  # as one draw a seed would give other ones
        self.attention_out = normal(D, D, residual)
        self.mlp_norm = nn.LayerNorm(D, eps=EPS, bias=False)
        self.mlp_in = normal(D, 4 * D)
        self.mlp_out = normal(4 * D, D, residual)
        self._ready: list[mx.array] | None = None

    def weights(self) -> Weights:
        """The weights as they are."""
        return Weights(
            1 / math.sqrt(self.qkv.shape[0] // self.heads),
            self.attention_norm.weight,
            self.qkv,
            self.attention_out,
            self.mlp_norm.weight,
            self.mlp_in,
            self.mlp_out,
        )

    def folded(self) -> Weights:
        """The same with each norm's gain, and the scale, folded into a product: ``(x ⊙ g) W = x (diag(g) W)``.

        It pays where one set of weights serves many calls: they launch and save less, above all backward.
        """
        own, D = self.weights(), self.qkv.shape[0]
        scales = mx.where(mx.arange(3 * D) < D, own.scale, 1.0)  # of queries, keys, values
        qkv = own.qkv * self.attention_norm.weight[:, None] * scales
        mlp_in = own.mlp_in * self.mlp_norm.weight[:, None]
        return own._replace(scale=1.0, attention_norm=None, qkv=qkv, mlp_norm=None, mlp_in=mlp_in)

    def ready(self) -> list[mx.array]:
        """What `use` takes: of the folded weights those that products take."""
        _, _, qkv, attention_out, _, mlp_in, mlp_out = self.folded()
        return [qkv, attention_out, mlp_in, mlp_out]

    def use(self, ready: list[mx.array] | None) -> None:
        """Run with weights that were made ready, until told to use its own again, None."""
        self._ready = ready

    @property
    def in_use(self) -> Weights:
        """The folded weights that it runs with, in the numbers of its products."""
        ready = self.ready() if self._ready is None else self._ready
        qkv, attention_out, mlp_in, mlp_out = (weight.astype(self.dtype) for weight in ready)
        return Weights(1.0, None, qkv, attention_out, None, mlp_in, mlp_out)

    def __call__(
        self,
        x: mx.array,
        rows: int | None = None,
        mask: mx.array | str = "causal",
        keep: Keep | None = None,
        weights: Weights | None = None,
    ) -> mx.array:
        """Run the layer on the last n rows of windows of N; all rows serve as keys and values.

        Args:
            x: (B, N, D), float32.
            rows: n; all N if not given.
            mask: additive (n, N) in the numbers of the products, or ``"causal"``.
            keep: dropout factors of the attention and MLP outputs, each (B·n, D).
            weights: this layer's, folded or not, whose numbers the products are in; `in_use` if not given.

        Returns:
            (B, n, D), float32.
        """
        (B, N, D), w = x.shape, weights or self.in_use
        n = N if rows is None else rows
        normed = _layer_norm(x, w.attention_norm).astype(w.qkv.dtype)
        if 2 * n < N:  # most rows need no query
            q = normed[:, N - n :].reshape(B * n, D) @ w.qkv[:, :D]
            k, v = mx.split(normed.reshape(B * N, D) @ w.qkv[:, D:], 2, axis=1)
        else:
            q, k, v = mx.split(normed.reshape(B * N, D) @ w.qkv, 3, axis=1)
        q, k, v = (part.reshape(B, -1, self.heads, D // self.heads).swapaxes(1, 2) for part in (q, k, v))
        attended = _attend(q[:, :, q.shape[2] - n :], k.swapaxes(2, 3), v, mask, w.scale)
        return self._finish(x[:, N - n :].reshape(B * n, D), attended, keep, w).reshape(B, n, D)

    def step(
        self, x: mx.array, mask: mx.array, cache: mx.array, write: Callable[[mx.array, mx.array], mx.array]
    ) -> tuple[mx.array, mx.array]:
        """Run the layer on rows that follow others, whose keys and values were kept.

        Args:
            x: the new rows (B, n, D).
            mask: additive (n, N), over all N rows of their window.
            cache: keys and values (2, B, H, N, d) of the window.
            write: puts those of the new rows, (2, B, H, n, d), in their place in the cache.

        Returns:
            (outputs (B, n, D), cache with the new rows written in).
        """
        (B, n, D), w, H = x.shape, self.weights(), self.heads
        x = x.reshape(B * n, D)
        qkv = (_layer_norm(x, w.attention_norm) @ w.qkv).reshape(B, n, 3, H, D // H).transpose(2, 0, 3, 1, 4)
        cache = write(cache, qkv[1:])
        k, v = each(cache)
        attended = _attend(qkv[:1].squeeze(0), k.swapaxes(2, 3), v, mask, w.scale)
        return self._finish(x, attended, None, w).reshape(B, n, D), cache

    def _finish(self, x: mx.array, attended: mx.array, keep: Keep | None, w: Weights) -> mx.array:
        """Output projection, residual and MLP of rows (B·n, D)."""
        x = _add_product(x, attended, w.attention_out, keep and keep[0])
        inner = self.activation(_layer_norm(x, w.mlp_norm).astype(w.mlp_in.dtype) @ w.mlp_in)
        return _add_product(x, inner, w.mlp_out, keep and keep[1])


def _layer_norm(x: mx.array, gain: mx.array | None) -> mx.array:
    return mx.fast.layer_norm(x, gain, None, EPS)


def _add_product(x: mx.array, rows: mx.array, weight: mx.array, keep: mx.array | None) -> mx.array:
    """``x + keep ⊙ (rows @ weight)``, in the numbers of x."""
    if keep is None:
        return mx.addmm(x, rows, weight) if weight.dtype == x.dtype else x + rows @ weight
    return x + keep * (rows @ weight)


def _attend(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | str, scale: float) -> mx.array:
    """Attention of queries (B, H, n, d) to keys (B, H, d, N) and values (B, H, N, d): (B·n, D), heads side by side."""
    B, H, n, d = q.shape
    if isinstance(mask, str):
        out = mx.fast.scaled_dot_product_attention(q, k.swapaxes(2, 3), v, scale=scale, mask=mask)
    else:  # three kernels; heads this narrow are fused on no backend
        scores = mx.addmm(mask, q, k, alpha=scale)  # (B, H, n, N)
        out = mx.softmax(scores, axis=-1, precise=True) @ v  # (B, H, n, d)
    return out.swapaxes(1, 2).reshape(B * n, H * d)
