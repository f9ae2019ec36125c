"""Recurrent transformer (arXiv 2402.14746) for ``transformers``: a stream with a state of constant size.

The first block has h_1 = τ(x_1); every later one has a window (α m_i-1 + h_i, α m_i-1 + x_i+1) of 2K rows, which τ maps
to the halves y_i and h_i+1; m is h ("hidden") or y ("output"). Letters: B batch, L length, W rows within one block, K
block width, D width, H heads, d = D/H. State of a layer, with the batch as first axis:

    position  (B,)              number of tokens fed, which may differ between the rows of a batch
    before    (B, K, D)         m_j-2, added to the inputs of block j
    last      (B, K, D)         m_j-1, added to its h
    current   (B, K, D)         m_j, filled row by row
    window    (B, 2, H, 2K, d)  keys and values of the window (α m_j-2 + h_j-1, α m_j-2 + x_j)
    output    (B, 2, H, K, d)   keys and values of α m_j-1 + h_j
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_recurrent_transformer import RecurrentTransformerConfig

QK_SHARPNESS = 9.0  # factor on the scores of normalised queries and keys
RARE, CERTAIN = -20.0, 1e4  # added to the logit of the untrained end-of-text token; CERTAIN past the last position


@dataclass
class StreamOutput(ModelOutput):
    """Logits (B, L, V), the loss if labels were given, and the state to continue from."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: tuple | None = None


def write(rows, new, start, count):
    """Return rows (B, …, N, d) with the first ``count`` (B,) of ``new`` (B, …, W, d) written from ``start`` (B,) on."""
    source = torch.arange(rows.shape[-2], device=rows.device) - start[:, None]  # (B, N)
    inside = (source >= 0) & (source < count[:, None])
    shape = (len(source), *[1] * (rows.dim() - 3), -1, 1)
    source = source.clamp(0, new.shape[-2] - 1).view(shape).expand(rows.shape)
    return torch.where(inside.view(shape), torch.gather(new, -2, source), rows)


def at_rows(rows, places):
    """Return the rows (B, W, D) of (B, N, D) at ``places`` (B, W)."""
    return torch.gather(rows, 1, places[:, :, None].expand(-1, -1, rows.shape[-1]))


class Layer(nn.Module):
    """Recurrent layer: τ (``x + Attn(LN x)``, then ``x + MLP(LN x)``, no biases) over blocks, and its parameter α."""

    def __init__(self, config):
        super().__init__()
        D, H, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        self.config = config
        self.attention_norm = nn.LayerNorm(D, eps=eps, bias=False)
        self.qkv_proj = nn.Linear(D, 3 * D, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        self.mlp_norm = nn.LayerNorm(D, eps=eps, bias=False)
        self.up_proj = nn.Linear(D, 4 * D, bias=False)
        self.down_proj = nn.Linear(4 * D, D, bias=False)
        self.alpha = nn.Parameter(torch.zeros({"scalar": (), "channel": (D,)}.get(config.alpha_kind, (H,))))
        if config.alpha_kind == "gated":
            self.gate = nn.Linear(D, H, bias=False)  # its bias is alpha
        self.scale = (QK_SHARPNESS if config.qk_norm else 1) * (D // H) ** -0.5

    def _normalise(self, x):
        return functional.rms_norm(x, x.shape[-1:], eps=self.config.layer_norm_eps)

    def _carried(self, x):
        return self._normalise(x) if self.config.state_norm else x

    def remember(self, m, z):
        """Return α m + z for history m and rows z, both (B, W, D)."""
        kind = self.config.alpha_kind
        alpha = torch.sigmoid(self.gate(z) + self.alpha) if kind == "gated" else self.alpha.clamp(0, 1)
        if kind in ("gated", "head"):
            alpha = alpha.repeat_interleave(z.shape[-1] // self.config.num_attention_heads, dim=-1)
        return alpha * m + z

    def start(self, batch):
        """Return the state before the first token."""
        K, D, H = self.config.block, self.config.hidden_size, self.config.num_attention_heads
        zeros = self.o_proj.weight.new_zeros
        rows, kv = zeros(batch, K, D), zeros(batch, 2, H, 2 * K, D // H)
        return zeros(batch, dtype=torch.long), rows, rows, rows, kv, kv[..., :K, :]

    def tau(self, x, kv, start, count, mask):
        """Apply τ to the next rows (B, W, D) of a window with cached keys and values: (outputs, updated kv)."""
        B, W, D = x.shape
        qkv = self.qkv_proj(self.attention_norm(x))
        qkv = qkv.view(B, W, 3, self.config.num_attention_heads, -1).permute(0, 2, 3, 1, 4)
        if self.config.qk_norm:
            qkv = torch.cat([self._normalise(qkv[:, :2]), qkv[:, 2:]], dim=1)
        kv = write(kv, qkv[:, 1:], start, count)
        attended = functional.scaled_dot_product_attention(
            qkv[:, 0], kv[:, 0], kv[:, 1], attn_mask=mask, scale=self.scale
        )
        x = x + self.o_proj(attended.transpose(1, 2).reshape(B, W, D))
        inner = self.up_proj(self.mlp_norm(x))
        inner = functional.relu(inner) if self.config.hidden_act == "relu" else functional.gelu(inner)
        return x + self.down_proj(inner), kv

    def forward(self, x, count, state):
        """Feed the first ``count`` (B,) of rows x (B, W, D), all within one block: (y (B, W, D), state)."""
        position, before, last, current, window, output = state
        K, hidden = self.config.block, self.config.history == "hidden"
        at, first = position % K, position < K
        places = (at[:, None] + torch.arange(x.shape[1], device=x.device)).clamp(max=K - 1)  # (B, W), in the block
        if not hidden:  # y_0 = x_1
            last = write(last, self._carried(x), at, torch.where(first, count, 0))
        columns = torch.arange(2 * K, device=x.device)
        seen = (columns <= K + places[:, :, None]) & ((columns >= K) | ~first[:, None, None])  # (B, W, 2K)
        h, window = self.tau(self.remember(at_rows(before, places), x), window, K + at, count, seen[:, None])
        h = self._carried(h)
        seen = columns[:K] <= places[:, :, None]
        y, output = self.tau(self.remember(at_rows(last, places), h), output, at, count, seen[:, None])
        current = write(current, h if hidden else self._carried(y), at, count)
        done = (at + count == K)[:, None, None]
        before, last = torch.where(done, last, before), torch.where(done, current, last)
        moved = torch.cat([output, window[..., K:, :]], dim=-2)
        window = torch.where(done[..., None, None], moved, window)
        return y, (position + count, before, last, current, window, output)


class Body(nn.Module):
    """The model without its output head."""

    def __init__(self, config):
        super().__init__()
        D, K, limit = config.hidden_size, config.block, config.max_position_embeddings
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, D)
        self.rows = {"absolute": limit, "block": K, "axial": K, "none": 0}[config.positions]
        if self.rows:
            self.embed_positions = nn.Embedding(self.rows, D)
        if config.positions == "axial":
            self.embed_blocks = nn.Embedding(-(-limit // K), D)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(D, eps=config.layer_norm_eps, bias=False)

    def embed(self, tokens, places):
        """Embed tokens at ``places``, both (B, n), as (B, n, D); places past the last position are clamped to it."""
        x, limit = self.embed_tokens(tokens), self.config.max_position_embeddings
        if not self.rows:
            return x
        places = places if limit is None else places.clamp(max=limit - 1)
        x = x + self.embed_positions(places % self.rows)
        return x + self.embed_blocks(places // self.rows) if self.config.positions == "axial" else x

    def forward(self, tokens, begin, states):
        """Feed tokens (B, L) with ``begin`` (B,) padding tokens on the left: outputs, their places, and states."""
        (B, L), K, limit = tokens.shape, self.config.block, self.config.max_position_embeddings
        if limit is not None and limit < L:
            raise ValueError(f"{L} tokens, but this model has {self.config.positions} positions for {limit}")
        states = [layer.start(B) for layer in self.layers] if states is None else list(states)
        position, outputs, at, W = states[0][0], [], begin, min(K, L)
        steps = torch.arange(W, device=tokens.device)
        # enough pieces, each within one block, to cover L tokens at any position within the block
        for _ in range(1 + -(-(L - 1) // K)):
            stands = states[0][0]
            count = torch.minimum(K - stands % K, L - at).clamp(0, W)
            piece = torch.gather(tokens, 1, (at[:, None] + steps).clamp(max=L - 1))
            x = self.embed(piece, stands[:, None] + steps)
            for i, layer in enumerate(self.layers):
                x, states[i] = layer(x, count, states[i])
            outputs.append(x)
            at = at + count
        places = position[:, None] + (torch.arange(L, device=tokens.device) - begin[:, None]).clamp(min=0)
        piece, start = places // K - position[:, None] // K, position[:, None] % K
        row = piece * W + places % K - torch.where(piece == 0, start, 0)
        return self.norm(at_rows(torch.cat(outputs, dim=1), row)), places, tuple(states)


class RecurrentTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """Predicts the next token; ``generate`` feeds one token at a time, with a state of constant size."""

    config_class = RecurrentTransformerConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        """Return the token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        """Return the output head."""
        return self.lm_head

    def forward(self, input_ids, attention_mask=None, cache=None, labels=None, **_):
        """Compute the logits after each of ``input_ids`` (B, L), continuing the stream with state ``cache``.

        Padding that ``attention_mask`` (B, L) hides must be on the left, as in ``generate``, or on the right, after
        which the stream cannot be continued.
        """
        B, L = input_ids.shape
        begin = input_ids.new_zeros(B)
        if attention_mask is not None:
            begin = (attention_mask[:, -L:].cumsum(-1) == 0).sum(-1)
        y, places, states = self.model(input_ids, begin, cache)
        logits, limit, V = self.lm_head(y), self.config.max_position_embeddings, self.config.vocab_size
        added = torch.full_like(logits[..., 0], RARE)
        if limit is not None:
            added = torch.where(places < limit, added, CERTAIN)
        last = torch.arange(V, device=logits.device) == V - 1
        logits = logits + torch.where(last, added[..., None], 0.0)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return StreamOutput(loss=loss, logits=logits, cache=states)

    def prepare_inputs_for_generation(self, input_ids, cache=None, attention_mask=None, **_):
        """Return the whole prompt for the first call, then one token at a time."""
        if cache is not None:
            return {"input_ids": input_ids[:, -1:], "cache": cache}
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *arguments, **others):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *arguments, **others)
        return {**model_kwargs, "cache": outputs.cache}

    @staticmethod
    def _reorder_cache(cache, beams):
        return tuple(tuple(array.index_select(0, beams) for array in state) for state in cache)

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False
