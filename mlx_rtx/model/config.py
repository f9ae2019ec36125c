"""Model settings. Letters: D width, H heads, K block width, V vocabulary."""

from dataclasses import dataclass
from typing import Literal

from mlx_rtx.support.errors import UserError, require, require_at_most, require_positive
from mlx_rtx.support.typed import require_types

ModelKind = Literal["recurrent", "regular"]  # as commands and run folders call them; see `mlx_rtx.model.registry`
NORM_EPS = 1e-5  # of every norm
FUSIBLE_SIZE = 8  # arrays of fewer numbers come to Metal kernels in an address space that they are not written for


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The part of a model that its user chooses."""

    dim: int
    """Model width D."""
    heads: int
    """Attention heads H; they must divide D."""
    block: int
    """Block width K in tokens: a window holds 2K."""
    layers: int = 1
    """Stacked layers r, each with a recurrence of its own."""
    dropout: float = 0.0
    """Dropout on embeddings, attention output and MLP output."""
    attention_dropout: float = 0.0
    """Dropout on attention weights."""
    activation: Literal["relu", "gelu"] = "relu"
    """Nonlinearity of the MLP."""
    positions: Literal["absolute", "block", "axial", "none"] = "absolute"
    """Learned positions: a row per token, K rows shared by all blocks, those plus a row per block, or none."""
    history: Literal["hidden", "output"] = "hidden"
    """What Eq. 6 mixes in: h as printed in the paper, or y as the author's program does."""
    state_norm: bool = False
    """RMS-normalise what is carried from block to block, so that it cannot grow."""
    qk_norm: bool = False
    """RMS-normalise queries and keys, each head's by itself, and multiply their scores by 9: within ±9√(D/H)."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head."""
    alpha: float = 0.5
    """Initial value of the accumulation parameter, in [0, 1]."""
    alpha_kind: Literal["scalar", "head", "channel", "gated"] = "scalar"
    """One alpha a layer, as in the paper; one a head or a channel; or gated: one a head and row, a sigmoid of the row
    that history is added to (by plain operations, slower on a GPU)."""
    embedding_std: float = 0.02
    """Standard deviation of the initial token and position embeddings."""
    train_alpha: bool = True
    """Learn alpha, or keep it as it starts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Numbers of the layers' products; weights, norms, what is carried, readout and loss stay float32."""

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
            f"alpha={self.alpha}: a gate starts between 0 and 1, and can't at either; e.g. 0.5",
        )

    @property
    def has_limit(self) -> bool:
        """Whether there are positions for sequences up to max_len only."""
        return self.positions in ("absolute", "axial")

    @property
    def fusible(self) -> bool:
        """Whether fused kernels (`mlx_rtx.kernels`) can run it."""
        smallest = min(self.dim, self.heads * self.block)  # a bit an attention weight comes in so many words or more
        return self.dtype == "float32" and self.alpha_kind != "gated" and smallest >= FUSIBLE_SIZE

    def _pairs(self) -> str:
        """Say which heads fit this width, and which widths near it fit these heads."""
        fitting = [h for h in range(1, self.dim + 1) if self.dim % h == 0]
        near = sorted(sorted(fitting, key=lambda h: abs(h - self.heads))[:4])
        below = self.dim // self.heads * self.heads
        widths = [str(d) for d in (below, below + self.heads) if d > 0]
        return f"use heads {', '.join(map(str, near))} with dim {self.dim}, or dim {' or '.join(widths)}"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """An `Architecture` and what the data dictates: vocabulary, outputs, length.

    Example:
        >>> config = ModelConfig(vocab_size=16, max_len=4128, dim=96, heads=6, block=32)
        >>> config.outputs
        16
    """

    vocab_size: int
    """Input vocabulary V."""
    max_len: int
    """Longest sequence in tokens that absolute and axial positions have rows for; no limit otherwise."""
    out_size: int | None = None
    """Classes of the output head; the vocabulary when not given."""

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
        """Number of classes of the output head."""
        return self.vocab_size if self.out_size is None else self.out_size
