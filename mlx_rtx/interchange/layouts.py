"""Correspondence between our parameter names and those of other programs.

Other programs store the weight of a matrix product as (outputs, inputs), this package as (inputs, outputs).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TRANSPOSED = ("head", "qkv", "attention_out", "mlp_in", "mlp_out", "gate")  # weights of matrix products


class Pair(NamedTuple):
    """Both names of a parameter, and whether it is transposed."""

    ours: str
    theirs: str
    transposed: bool


@dataclass(frozen=True)
class Layout:
    """Parameter names of another program, by our names."""

    ends: dict[str, str]
    """Parameters of the embedding and the readout."""
    layer: str
    """Prefix of the names of layer {i}."""
    tau: dict[str, str]
    """Parameters of τ."""
    recurrence: dict[str, str]
    """Parameters that a recurrence has in addition to τ."""

    def pairs(self, layers: int, recurrent: bool) -> Iterator[Pair]:
        """Yield every parameter that a model with this many layers may have."""
        for ours, theirs in self.ends.items():
            yield Pair(f"embedding.{ours}", theirs, ours in TRANSPOSED)
        for i in range(layers):
            own, other = f"layers.{i}.", self.layer.format(i=i)
            for ours, theirs in self.tau.items():
                yield Pair(f"{own}{'tau.' if recurrent else ''}{ours}", other + theirs, ours in TRANSPOSED)
            for ours, theirs in self.recurrence.items():
                yield Pair(own + ours, other + theirs, ours in TRANSPOSED)


MLX_LM = Layout(
    ends={
        "tokens": "model.embed_tokens.weight",
        "positions": "model.embed_positions.weight",
        "blocks": "model.embed_blocks.weight",
        "norm.weight": "model.norm.weight",
        "head": "lm_head.weight",
    },
    layer="model.layers.{i}.",
    tau={
        "attention_norm.weight": "attention_norm.weight",
        "qkv": "qkv_proj.weight",
        "attention_out": "o_proj.weight",
        "mlp_norm.weight": "mlp_norm.weight",
        "mlp_in": "up_proj.weight",
        "mlp_out": "down_proj.weight",
    },
    recurrence={"alpha": "alpha", "gate": "gate.weight"},
)

NANOGPT = Layout(
    ends={
        "tokens": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        "norm.weight": "transformer.ln_f.weight",
        "head": "lm_head.weight",
    },
    layer="transformer.h.{i}.",
    tau={
        "attention_norm.weight": "ln_1.weight",
        "qkv": "attn.c_attn.weight",
        "attention_out": "attn.c_proj.weight",
        "mlp_norm.weight": "ln_2.weight",
        "mlp_in": "mlp.c_fc.weight",
        "mlp_out": "mlp.c_proj.weight",
    },
    recurrence={},  # a single parameter "alpha" for the whole model
)
