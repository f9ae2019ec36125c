"""One causal transformer layer, the τ of the recurrence.

Letters: B batch, N rows of a window, n rows whose output is wanted, D width, H heads, d = D/H.

The recurrence runs this hundreds of times a step, and the host that launches the work sets the
pace. So it is written in few operations: the rows of all sequences stand in one matrix (B·N, D),
and weights are kept as (inputs, outputs), which spares every product a transpose.
"""

import math

from mlx_rtx.config import Architecture

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


class TransformerLayer(nn.Module):
    """Pre-norm causal layer without biases: ``x + Attn(LN x)``, then ``x + MLP(LN x)``.

    Weights start as N(0, 0.02), those that write to the residual stream as N(0, 0.02/√(2r)) for r
    stacked layers.
    """

    def __init__(self, config: Architecture):
        super().__init__()
        D, residual = config.dim, 0.02 / math.sqrt(2 * config.layers)
        self.heads = config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = nn.LayerNorm(D, eps=EPS, bias=False)
        self.query = normal(D, D)
        self.key_value = normal(D, 2 * D)
        self.attention_out = normal(D, D, residual)
        self.mlp_norm = nn.LayerNorm(D, eps=EPS, bias=False)
        self.mlp_in = normal(D, 4 * D)
        self.mlp_out = normal(4 * D, D, residual)

    def __call__(
        self,
        x: mx.array,
        context: mx.array | None = None,
        mask: mx.array | str = "causal",
        keep: Keep | None = None,
    ) -> mx.array:
        """Run the layer on the last n rows of a window of N.

        Args:
            x: (B, n, D).
            context: the rows before them (B, N - n, D), which serve as keys and values only.
            mask: additive (n, N), or ``"causal"``.
            keep: dropout factors of the attention and MLP outputs, each (B·n, D).

        Returns:
            (B, n, D).
        """
        normed = self.attention_norm(x)
        window = normed
        if context is not None:
            window = mx.concatenate([self.attention_norm(context), normed], axis=1)
        return self._finish(x, self._attend(normed, *self._keys_values(window), mask), keep)

    def step(
        self, x: mx.array, mask: mx.array, k: mx.array, v: mx.array, at: int
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Run the layer on rows that follow others, whose keys and values were kept.

        Args:
            x: the new rows (B, n, D), rows ``at`` … of their window.
            mask: additive (n, N), over all N rows of the window.
            k, v: keys (B, H, d, N) and values (B, H, N, d) of the window, filled before ``at``.

        Returns:
            (outputs (B, n, D), k, v), the last two with the new rows written in.
        """
        normed = self.attention_norm(x)
        new_k, new_v = self._keys_values(normed)
        k = mx.slice_update(k, new_k, mx.array([at]), [3])
        v = mx.slice_update(v, new_v, mx.array([at]), [2])
        return self._finish(x, self._attend(normed, k, v, mask), None), k, v

    def _keys_values(self, normed: mx.array) -> tuple[mx.array, mx.array]:
        """(B, N, D) → keys (B, H, d, N) and values (B, H, N, d)."""
        B, N, D = normed.shape
        heads = (B, N, self.heads, D // self.heads)
        k, v = mx.split(normed.reshape(B * N, D) @ self.key_value, 2, axis=1)
        return k.reshape(heads).transpose(0, 2, 3, 1), v.reshape(heads).swapaxes(1, 2)

    def _attend(self, normed: mx.array, k: mx.array, v: mx.array, mask: mx.array | str) -> mx.array:
        """Attention of n normed rows (B, n, D) to keys and values of N: (B·n, D), heads side by side."""
        B, n, D = normed.shape
        d = D // self.heads
        q = (normed.reshape(B * n, D) @ self.query).reshape(B, n, self.heads, d).swapaxes(1, 2)  # (B, H, n, d)
        scale = 1 / math.sqrt(d)
        if isinstance(mask, str):
            out = mx.fast.scaled_dot_product_attention(q, k.swapaxes(2, 3), v, scale=scale, mask=mask)
        else:  # three kernels; heads this narrow are fused on no backend
            scores = mx.addmm(mask, q, k, alpha=scale)  # (B, H, n, N)
            out = mx.softmax(scores, axis=-1, precise=True) @ v  # (B, H, n, d)
        return out.swapaxes(1, 2).reshape(B * n, D)

    def _finish(self, x: mx.array, attended: mx.array, keep: Keep | None) -> mx.array:
        """Output projection, residual and MLP: (B, n, D)."""
        B, n, D = x.shape
        out = attended @ self.attention_out
        if keep is not None:
            out = out * keep[0]
        x = x.reshape(B * n, D) + out
        out = self.activation(self.mlp_norm(x) @ self.mlp_in) @ self.mlp_out
        if keep is not None:
            out = out * keep[1]
        return (x + out).reshape(B, n, D)
