"""The paper's two models in plain PyTorch, as a user of PyTorch would write them, to be timed against MLX.

Letters: B batch, L length, K block width, T = ⌈L/K⌉ blocks, N rows of a window, D width, H heads, V vocabulary.

Every window of 2K tokens passes through the layer as a whole, which gives y and the next h together; windows share no
intermediate results. The module is independent of MLX; `translate` reads the weights of an MLX model.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def linear(inputs: int, outputs: int, std: float = 0.02) -> nn.Linear:
    """Return a linear map without bias, with weights from N(0, std²)."""
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=std)
    return made


def table(rows: int, D: int) -> nn.Embedding:
    """Return an embedding (rows, D) with weights from N(0, 0.02²)."""
    made = nn.Embedding(rows, D)
    nn.init.normal_(made.weight, std=0.02)
    return made


class TransformerLayer(nn.Module):
    """Pre-norm causal layer without biases: ``x + Attn(LN x)``, then ``x + MLP(LN x)``."""

    def __init__(self, config: Any):
        super().__init__()
        D, residual = config.dim, 0.02 / math.sqrt(2 * config.layers)
        self.heads = config.heads
        self.activation = ACTIVATIONS[config.activation]
        self.attention_norm = nn.LayerNorm(D, eps=1e-5, bias=False)
        self.qkv = linear(D, 3 * D)
        self.attention_out = linear(D, D, residual)
        self.mlp_norm = nn.LayerNorm(D, eps=1e-5, bias=False)
        self.mlp_in = linear(D, 4 * D)
        self.mlp_out = linear(4 * D, D, residual)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_dropout = config.attention_dropout

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        B, N, D = x.shape
        qkv = self.qkv(self.attention_norm(x))  # (B, N, 3D)
        q, k, v = qkv.view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, N, D/H)
        drops = self.attention_dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=drops, is_causal=True)
        x = x + self.dropout(self.attention_out(attended.transpose(1, 2).reshape(B, N, D)))
        return x + self.dropout(self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x)))))


class Recurrence(nn.Module):
    """Eqs. 5–7: a layer τ slides over blocks, and α m is added to both halves of its window.

    The history m is h of the previous block as in the printed paper, or y of that block as in its author's program.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.tau = TransformerLayer(config)
        self.alpha = nn.Parameter(torch.tensor(config.alpha), requires_grad=config.train_alpha)
        self.block = config.block
        self.history = config.history

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) → (B, L, D)."""
        L, K, alpha = x.shape[1], self.block, self.alpha.clamp(0, 1)
        blocks = F.pad(x, (0, 0, 0, -L % K)).split(K, dim=1)  # T of (B, K, D)
        h = self.tau(blocks[0])  # (5)
        m = torch.zeros_like(h) if self.history == "hidden" else blocks[0]
        outputs = []
        for block in blocks[1:]:
            window = torch.cat([alpha * m + h, alpha * m + block], dim=1)  # (B, 2K, D)
            y, following = self.tau(window).split(K, dim=1)  # (6)
            outputs.append(y)
            m, h = h if self.history == "hidden" else y, following
        outputs.append(self.tau(h))  # (7)
        return torch.cat(outputs, dim=1)[:, :L]


class Transformer(nn.Module):
    """Embedding, a stack of layers, readout.

    Args:
        config: an object with the attributes of `mlx_rtx.ModelConfig`.
        layers: modules (B, L, D) → (B, L, D).
    """

    def __init__(self, config: Any, layers: Iterable[nn.Module]):
        super().__init__()
        if config.state_norm:
            raise ValueError("state_norm=True: not in the paper, and not in this model")
        if config.positions == "axial":
            raise ValueError("positions='axial': not in the paper, and not in this model")
        D, outputs = config.dim, config.out_size or config.vocab_size
        rows = {"absolute": config.max_len, "block": config.block, "none": 0}[config.positions]
        self.block = config.block if config.positions == "block" else None
        self.tokens = table(config.vocab_size, D)
        self.positions = table(rows, D) if rows else None
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(D, eps=1e-5, bias=False)
        self.head = None if config.tie_embeddings else linear(D, outputs)

    def forward(self, tokens: Tensor, last: int | None = None) -> Tensor:
        """Return logits (B, n, outputs) of tokens (B, L) at the final n = ``last`` positions, or all L."""
        L = tokens.shape[1]
        x = self.tokens(tokens)  # (B, L, D)
        if self.positions is not None:
            at = torch.arange(L, device=tokens.device)
            x = x + self.positions(at % self.block if self.block else at)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        y = self.norm(x[:, L - (last or L) :])  # (B, last, D)
        return F.linear(y, self.tokens.weight) if self.head is None else self.head(y)


class RecurrentTransformer(Transformer):
    """The paper's model: each layer is a recurrence over blocks."""

    def __init__(self, config: Any):
        super().__init__(config, [Recurrence(config) for _ in range(config.layers)])


class RegularTransformer(Transformer):
    """The regular transformer that the paper compares with."""

    def __init__(self, config: Any):
        super().__init__(config, [TransformerLayer(config) for _ in range(config.layers)])


MODELS = {"recurrent": RecurrentTransformer, "regular": RegularTransformer}


def translate(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights or gradients of an `mlx_rtx` model with the names and layouts of these models.

    Args:
        weights: NumPy arrays by dotted name, as given by `mlx_rtx.support.trees.flat` of the parameters.

    Example:
        >>> model.load_state_dict(translate(weights))
    """
    state = {}
    for name, array in weights.items():
        tensor, (path, _, leaf) = torch.tensor(array), name.removeprefix("embedding.").rpartition(".")
        path = path + "." if path else ""
        if leaf in ("qkv", "attention_out", "mlp_in", "mlp_out", "head"):
            state[f"{path}{leaf}.weight"] = tensor.T
        elif leaf in ("tokens", "positions"):
            state[f"{leaf}.weight"] = tensor
        else:  # alpha, and the weight of a norm
            state[path + leaf] = tensor
    return state
