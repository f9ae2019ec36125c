"""Model settings.

Letters: D model width, H heads, K block width, V vocabulary size.
"""

from dataclasses import dataclass
from typing import Literal

from mlx_rtx.support.errors import UserError, require, require_at_most, require_positive
from mlx_rtx.support.typed import require_types

ModelKind = Literal["recurrent", "regular"]  # names used by commands and run folders; see `mlx_rtx.model.registry`
NORM_EPS = 1e-5  # epsilon of every normalisation
FUSIBLE_SIZE = 8  # MLX passes smaller arrays to Metal kernels as `constant`, which the fused kernels do not support


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Model settings that the user chooses, independent of the data."""

    dim: int
    """Model width D."""
    heads: int
    """Number of attention heads H; must divide D."""
    block: int
    """Block width K in tokens; a window holds 2K tokens."""
    layers: int = 1
    """Number of stacked layers r, each with its own recurrence."""
    dropout: float = 0.0
    """Dropout rate on embeddings, attention output and MLP output."""
    attention_dropout: float = 0.0
    """Dropout rate on attention weights."""
    activation: Literal["relu", "gelu"] = "relu"
    """Activation function of the MLP."""
    positions: Literal["absolute", "block", "axial", "none"] = "absolute"
    """Learned position embedding.
    absolute: one row per position; block: K rows shared by all blocks; axial: those plus one row per block."""
    history: Literal["hidden", "output"] = "hidden"
    """History that Eq. 6 adds: h as printed in the paper (hidden), or y as in the author's program (output)."""
    state_norm: bool = False
    """RMS-normalise the carry between blocks, so that it cannot grow."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head and multiply the scores by 9, which bounds them to ±9√(D/H)."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head."""
    alpha: float = 0.5
    """Initial value of the accumulation parameter, in [0, 1]."""
    alpha_kind: Literal["scalar", "head", "channel", "gated"] = "scalar"
    """One alpha per layer (scalar), as in the paper, per head, per channel, or per head and row (gated).
    A gated alpha is a sigmoid of the row to which the history is added; no fused kernels, hence slower on a GPU."""
    embedding_std: float = 0.02
    """Standard deviation of the initial token and position embeddings."""
    train_alpha: bool = True
    """Train alpha, or keep it at its initial value."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the layers' matrix products; weights, norms, carry, readout and loss stay float32."""

    def __post_init__(self):
        require_types(self)
        require_positive(self, "dim", "heads", "block", "layers")
        require_at_most(self, dim=2**16, heads=2**16, block=2**20, layers=2**10)
        if self.dim % self.heads:
            raise UserError(f"heads={self.heads} does not divide dim={self.dim}: {self._pairs()}")
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            require(0 <= rate < 1, f"{name}={rate}: must lie in [0, 1)")
        require(self.embedding_std > 0, f"embedding_std={self.embedding_std}: must be above 0, e.g. 0.02")
        require(0 <= self.alpha <= 1, f"alpha={self.alpha}: must lie in [0, 1]")
        require(
            self.alpha_kind != "gated" or 0 < self.alpha < 1,
            f"alpha={self.alpha}: must lie strictly between 0 and 1 for a gated alpha, e.g. 0.5",
        )

    @property
    def has_limit(self) -> bool:
        """Whether the position embedding limits sequences to max_len tokens."""
        return self.positions in ("absolute", "axial")

    @property
    def fusible(self) -> bool:
        """Whether the fused kernels (`mlx_rtx.kernels`) support these settings."""
        smallest = min(self.dim, self.heads * self.block)  # alpha has D elements, attention-dropout bits ≥ H·K
        return self.dtype == "float32" and self.alpha_kind != "gated" and smallest >= FUSIBLE_SIZE

    def _pairs(self) -> str:
        """Return valid head counts for this width and nearby widths for this head count, as text."""
        fitting = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
        near = sorted(sorted(fitting, key=lambda h: abs(h - self.heads))[:4])
        below = self.dim // self.heads * self.heads
        widths = [str(d) for d in (below, below + self.heads) if d > 0]
        return f"use heads {', '.join(map(str, near))} with dim {self.dim}, or dim {' or '.join(widths)}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """An `Architecture` plus the settings that the data determines: vocabulary size, output classes, maximum length.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> config.outputs
        16
    """

    vocab_size: int
    """Size V of the input vocabulary."""
    max_len: int
    """Maximum sequence length in tokens with absolute or axial positions; no limit otherwise."""
    out_size: int | None = None
    """Number of output classes; defaults to vocab_size."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "vocab_size", "max_len")
        require_at_most(self, vocab_size=2**24, max_len=2**31 - 1)
        require(
            not self.tie_embeddings or self.outputs == self.vocab_size,
            f"out_size={self.out_size} differs from vocab_size={self.vocab_size}: use tie_embeddings=False",
        )
        require(self.outputs >= 1, f"out_size={self.out_size}: must be at least 1")

    @property
    def outputs(self) -> int:
        """Number of output classes."""
        return self.vocab_size if self.out_size is None else self.out_size
