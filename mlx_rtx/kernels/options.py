"""Compile-time options of the kernels, and the inputs and gradients of a scan."""

from typing import NamedTuple

import mlx.core as mx


class Options(NamedTuple):
    """Settings of a recurrence, as in `mlx_rtx.model.config.Architecture`, and constants derived from them."""

    heads: int
    history: str
    activation: str
    state_norm: bool
    qk_scale: float | None  # scale of the scores of normalised queries and keys; None if they are not normalised
    epsilon: float  # of all norms
    kept_scale: float = 1.0  # factor 1 / (1 - rate) of the attention weights that dropout keeps

    def rows(self, K: int) -> int:
        """Return the number n of rows of a window that have outputs."""
        return K if self.history == "hidden" else 2 * K

    @property
    def of_heads(self) -> dict[str, int | float]:
        """Compile-time constants of the kernels that process attention heads."""
        normed = {"QK_NORM": self.qk_scale is not None, "QK_SCALE": self.qk_scale or 1.0}
        return {"HEADS": self.heads, **normed, "KEPT_SCALE": self.kept_scale}


class Drops(NamedTuple):
    """Which kinds of dropout a scan applies."""

    outputs: bool  # of attention and MLP outputs
    weights: bool  # of attention weights

    @property
    def constants(self) -> dict[str, int | float]:
        """Compile-time constants."""
        return {"DROPOUT": self.outputs, "DROPS_WEIGHTS": self.weights}


# folded weights of τ: qkv (D, 3D), attention_out (D, D), mlp_in (D, 4D), mlp_out (4D, D)
Products = tuple[mx.array, mx.array, mx.array, mx.array]


class ScanInputs(NamedTuple):
    """Inputs of a scan over S windows, in each of which n rows have outputs."""

    alpha: mx.array  # (D,)
    m: mx.array  # (B, K, D), carry into the first window
    h: mx.array  # (B, K, D), carry into the first window
    x: mx.array  # (S, B, K, D), input block of each window
    weights: Products
    dropout: mx.array | None = None  # scales (S, 2, B, n, D)
    kept: mx.array | None = (
        None  # bits (S, B, H, n, ⌈2K/32⌉), one per attention weight; see `mlx_rtx.model.dropout.as_bits`
    )

    @property
    def drops(self) -> Drops:
        """Kinds of dropout that these inputs contain."""
        return Drops(self.dropout is not None, self.kept is not None)

    def slice(self, start: int, end: int) -> "ScanInputs":
        """Return the inputs restricted to windows ``start`` … ``end`` - 1."""
        dropout, kept = (mask if mask is None else mask[start:end] for mask in (self.dropout, self.kept))
        return self._replace(x=self.x[start:end], dropout=dropout, kept=kept)


class ScanGradient(NamedTuple):
    """Gradient with respect to a scan's inputs, in their order."""

    alpha: mx.array  # (D,)
    m: mx.array  # (B, K, D)
    h: mx.array  # (B, K, D)
    x: mx.array  # (S, B, K, D)
    weights: list[mx.array]  # as `Products`
