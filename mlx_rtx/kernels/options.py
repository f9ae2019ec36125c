"""What a kernel is compiled for, beside its sizes, and the arrays that all kernels pass."""

from typing import NamedTuple

import mlx.core as mx


class Options(NamedTuple):
    """A recurrence's heads H and choices, as in `mlx_rtx.model.config.Architecture`, and the epsilon of its norms."""

    heads: int
    history: str
    activation: str
    state_norm: bool
    qk_scale: float | None  # of the scores of normalised queries and keys; None where they are not normalised
    epsilon: float
    kept_scale: float = 1.0  # of attention weights, where some are dropped

    def rows(self, K: int) -> int:
        """Rows n of a window that have outputs."""
        return K if self.history == "hidden" else 2 * K

    @property
    def of_heads(self) -> dict[str, int | float]:
        """What kernels that see heads are compiled for."""
        normed = {"QK_NORM": self.qk_scale is not None, "QK_SCALE": self.qk_scale or 1.0}
        return {"HEADS": self.heads, **normed, "KEPT_SCALE": self.kept_scale}


class Drops(NamedTuple):
    """What a scan drops."""

    outputs: bool
    weights: bool

    @property
    def constants(self) -> dict[str, int | float]:
        """What kernels are compiled for."""
        return {"DROPOUT": self.outputs, "DROPS_WEIGHTS": self.weights}


# weights of τ with gains and scale folded in: qkv (D, 3D), attention_out (D, D), mlp_in (D, 4D), mlp_out (4D, D)
Products = tuple[mx.array, mx.array, mx.array, mx.array]


class ScanInputs(NamedTuple):
    """What a scan over S windows takes; n rows of each have outputs."""

    alpha: mx.array  # (D,)
    m: mx.array  # (B, K, D), the carry into the first window
    h: mx.array  # (B, K, D)
    x: mx.array  # (S, B, K, D), the blocks that the windows take
    weights: Products
    dropout: mx.array | None = None  # scales (S, 2, B, n, D)
    kept: mx.array | None = (
        None  # bits (S, B, H, n, ⌈2K/32⌉), one an attention weight; see `mlx_rtx.model.dropout.as_bits`
    )

    @property
    def drops(self) -> Drops:
        """What there is of dropout."""
        return Drops(self.dropout is not None, self.kept is not None)

    def some(self, start: int, end: int) -> "ScanInputs":
        """With some of the windows only."""
        dropout, kept = (mask if mask is None else mask[start:end] for mask in (self.dropout, self.kept))
        return self._replace(x=self.x[start:end], dropout=dropout, kept=kept)


class ScanGradient(NamedTuple):
    """Gradient of a scan's inputs, in their order."""

    alpha: mx.array  # (D,)
    m: mx.array  # (B, K, D)
    h: mx.array  # (B, K, D)
    x: mx.array  # (S, B, K, D)
    weights: list[mx.array]  # as `Products`
