"""Recurrent transformer (arXiv 2402.14746), and the regular one it is compared with, as a model file for mlx-lm.

The first block has h_1 = τ(x_1); every later one has a window (α m_i-1 + h_i, α m_i-1 + x_i+1) of 2K rows, which τ maps
to the halves y_i and h_i+1; m is h ("hidden") or y ("output"). The state of a stream has a constant size. Letters: B
batch, L length, W rows within one block, K block width, D width, H heads, d = D/H.

A recurrent layer's state is six arrays with the batch as first axis, all zeros before the first token:

    position  (B,)              number of tokens fed, which may differ between the rows of a batch
    before    (B, K, D)         m_j-2, added to the inputs of block j
    last      (B, K, D)         m_j-1, added to its h
    current   (B, K, D)         m_j, filled row by row
    window    (B, 2, H, 2K, d)  keys and values of the window (α m_j-2 + h_j-1, α m_j-2 + x_j)
    output    (B, 2, H, K, d)   keys and values of α m_j-1 + h_j
"""

import inspect
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

QK_SHARPNESS = 9.0  # factor on the scores of normalised queries and keys
RARE, CERTAIN = -20.0, 1e4  # added to the logit of the untrained end-of-text token; CERTAIN past the last position
NO_GROUPS = "groups do not divide hidden_size, so most weights would silently not be quantized; use --q-group-size 32"


@dataclass
class ModelArgs:
    """Model settings, named as in the ``config.json`` of other models."""

    model_type: str
    vocab_size: int  # including the last token, the end of text
    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    kind: str = "recurrent"  # or "regular"
    block: int = 16
    positions: str = "block"  # absolute, block, axial, none
    max_position_embeddings: int | None = None  # None: no limit
    hidden_act: str = "relu"  # or "gelu"
    history: str = "hidden"  # or "output"
    state_norm: bool = False
    qk_norm: bool = False
    alpha_kind: str = "scalar"  # head, channel, gated
    tie_word_embeddings: bool = True
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, params):
        """Select the arguments among the entries of a ``config.json``."""
        if params["hidden_size"] % params.get("quantization", {}).get("group_size", 1):
            raise ValueError(NO_GROUPS)
        return cls(**{name: value for name, value in params.items() if name in inspect.signature(cls).parameters})


def write(rows, new, start, count):
    """Return rows (B, …, N, d) with the first ``count`` (B,) of ``new`` (B, …, W, d) written from ``start`` (B,) on."""
    source = mx.arange(rows.shape[-2]) - start[:, None]  # (B, N)
    source = source.reshape(len(source), *[1] * (rows.ndim - 3), -1, 1)
    inside = (source >= 0) & (source < count.reshape(-1, *[1] * (rows.ndim - 1)))
    if new.shape[-2] > 1:
        new = mx.take_along_axis(new, mx.clip(source, 0, new.shape[-2] - 1), axis=-2)
    return mx.where(inside, new, rows)


class Layer(nn.Module):
    """The layer τ: ``x + Attn(LN x)``, then ``x + MLP(LN x)``, without biases."""

    def __init__(self, args):
        super().__init__()
        D, eps, self.args = args.hidden_size, args.layer_norm_eps, args
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(D, eps=eps, bias=False) for _ in range(2))
        self.qkv_proj = nn.Linear(D, 3 * D, bias=False)
        self.o_proj = nn.Linear(D, D, bias=False)
        self.up_proj = nn.Linear(D, 4 * D, bias=False)
        self.down_proj = nn.Linear(4 * D, D, bias=False)
        self.scale = (QK_SHARPNESS if args.qk_norm else 1) * (D // args.num_attention_heads) ** -0.5

    def _normalise(self, x):
        return mx.fast.rms_norm(x, None, self.args.layer_norm_eps)

    def project(self, x):
        """Return queries (B, H, W, d), and keys and values (B, 2, H, W, d), of rows (B, W, D)."""
        (B, W, D), H = x.shape, self.args.num_attention_heads
        qkv = self.qkv_proj(self.attention_norm(x)).reshape(B, W, 3, H, D // H).transpose(0, 2, 3, 1, 4)
        if self.args.qk_norm:
            qkv = mx.concatenate([self._normalise(qkv[:, :2]), qkv[:, 2:]], axis=1)
        return qkv[:, 0], qkv[:, 1:]

    def finish(self, x, attended):
        """Return the layer's outputs (B, W, D), given rows x and their attention outputs (B, H, W, d)."""
        x = x + self.o_proj(attended.transpose(0, 2, 1, 3).reshape(x.shape))
        inner = self.up_proj(self.mlp_norm(x))
        return x + self.down_proj(nn.relu(inner) if self.args.hidden_act == "relu" else nn.gelu(inner))

    def whole(self, x):
        """Apply the layer to whole sequences (B, L, D), with causal attention."""
        q, kv = self.project(x)
        return self.finish(
            x, mx.fast.scaled_dot_product_attention(q, *kv.swapaxes(0, 1), scale=self.scale, mask="causal")
        )


class RegularLayer(Layer):
    """τ over the whole sequence, with mlx-lm's key-value cache."""

    def __call__(self, x, cache):
        """Apply the layer to rows (B, W, D) that follow those in the cache."""
        from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention

        mask = create_attention_mask(x, cache)
        q, kv = self.project(x)
        k, v = cache.update_and_fetch(*kv.swapaxes(0, 1))
        return self.finish(x, scaled_dot_product_attention(q, k, v, cache=cache, scale=self.scale, mask=mask))


class RecurrentLayer(Layer):
    """τ over blocks, with its accumulation parameter α."""

    def __init__(self, args):
        super().__init__(args)
        D, H = args.hidden_size, args.num_attention_heads
        self.alpha = mx.zeros({"scalar": (), "channel": (D,)}.get(args.alpha_kind, (H,)))
        if args.alpha_kind == "gated":
            self.gate = nn.Linear(D, H, bias=False)  # its bias is alpha

    def remember(self, m, z):
        """Return α m + z for history m and rows z, both (B, W, D)."""
        kind = self.args.alpha_kind
        alpha = mx.sigmoid(self.gate(z) + self.alpha) if kind == "gated" else mx.clip(self.alpha, 0, 1)
        if kind in ("gated", "head"):
            alpha = mx.repeat(alpha, z.shape[-1] // self.args.num_attention_heads, axis=-1)
        return alpha * m + z

    def _carried(self, x):
        return self._normalise(x) if self.args.state_norm else x

    def whole(self, x):
        """Return all y of whole sequences x (B, L, D), as in a stream (without Eq. 7)."""
        L, K, hidden = x.shape[1], self.args.block, self.args.history == "hidden"
        first, *blocks = mx.split(mx.pad(x, [(0, 0), (0, -L % K), (0, 0)]), -(-L // K), axis=1)
        h, outputs = self._carried(super().whole(first)), []
        m = mx.zeros_like(h) if hidden else self._carried(first)  # y_0 = x_1
        for block in blocks:
            window = mx.concatenate([self.remember(m, h), self.remember(m, block)], axis=1)
            y, following = mx.split(super().whole(window), 2, axis=1)
            outputs, m, h = [*outputs, y], h if hidden else self._carried(y), self._carried(following)
        return mx.concatenate([*outputs, super().whole(self.remember(m, h))], axis=1)[:, :L]

    def start(self, batch, dtype):
        """Return the state before the first token."""
        K, D, H = self.args.block, self.args.hidden_size, self.args.num_attention_heads
        rows, kv = mx.zeros((batch, K, D), dtype), mx.zeros((batch, 2, H, 2 * K, D // H), dtype)
        return [mx.zeros((batch,), mx.int32), rows, rows, rows, kv, kv[..., :K, :]]

    def tau(self, x, kv, start, count, mask):
        """Apply τ to the next rows (B, W, D) of a window with cached keys and values: (outputs, updated kv)."""
        q, new = self.project(x)
        kv = write(kv, new, start, count)
        return self.finish(
            x, mx.fast.scaled_dot_product_attention(q, *kv.swapaxes(0, 1), scale=self.scale, mask=mask)
        ), kv

    def __call__(self, x, count, state):
        """Feed the first ``count`` (B,) of rows x (B, W, D), all within one block: (y (B, W, D), state)."""
        position, before, last, current, window, output = state
        K, hidden = self.args.block, self.args.history == "hidden"
        at, first = position % K, position < K
        places = mx.minimum(at[:, None] + mx.arange(x.shape[1]), K - 1)[:, :, None]  # (B, W, 1), in the block
        if not hidden:  # y_0 = x_1
            last = write(last, self._carried(x), at, mx.where(first, count, 0))
        columns = mx.arange(2 * K)
        seen = (columns <= K + places) & ((columns >= K) | ~first[:, None, None])  # (B, W, 2K)
        rows = self.remember(mx.take_along_axis(before, places, axis=1), x)
        h, window = self.tau(rows, window, K + at, count, seen[:, None])
        h = self._carried(h)
        rows = self.remember(mx.take_along_axis(last, places, axis=1), h)
        y, output = self.tau(rows, output, at, count, (columns[:K] <= places)[:, None])
        current = write(current, h if hidden else self._carried(y), at, count)
        done = (at + count == K)[:, None, None]
        before, last = mx.where(done, last, before), mx.where(done, current, last)
        moved = mx.concatenate([output, window[..., K:, :]], axis=-2)
        return y, [position + count, before, last, current, mx.where(done[..., None, None], moved, window), output]


class Body(nn.Module):
    """The model without its output head."""

    def __init__(self, args):
        super().__init__()
        self.args, D, K, limit = args, args.hidden_size, args.block, args.max_position_embeddings
        self.embed_tokens = nn.Embedding(args.vocab_size, D)
        self.rows = {"absolute": limit, "block": K, "axial": K, "none": 0}[args.positions]
        if self.rows:
            self.embed_positions = nn.Embedding(self.rows, D)
        if args.positions == "axial":
            self.embed_blocks = nn.Embedding(-(-limit // K), D)
        kind = RegularLayer if args.kind == "regular" else RecurrentLayer
        self.layers = [kind(args) for _ in range(args.num_hidden_layers)]
        self.norm = nn.LayerNorm(D, eps=args.layer_norm_eps, bias=False)

    def embed(self, tokens, places):
        """Embed tokens (B, n) at ``places`` (B or 1, n), clamped to the last position, as (B, n, D)."""
        x, limit = self.embed_tokens(tokens), self.args.max_position_embeddings
        if not self.rows:
            return x
        places = mx.clip(places, 0, None if limit is None else limit - 1)
        x = x + self.embed_positions(places % self.rows)
        return x + self.embed_blocks(places // self.rows) if "embed_blocks" in self else x

    def __call__(self, inputs, cache):
        """Return outputs (B, L, D) of inputs (B, L), and their places (B or 1, L) in their streams."""
        limit, L = self.args.max_position_embeddings, inputs.shape[1]
        if limit is not None and limit < L:
            raise ValueError(f"{L} tokens, but this model has {self.args.positions} positions for {limit}")
        if cache is not None and self.args.kind == "recurrent":
            y, places = self._stream(inputs, cache)
        else:
            offset = 0 if cache is None else cache[0].offset  # one per row of a batch
            places = mx.array(offset).reshape(-1, 1) + mx.arange(L)
            y = self.embed(inputs, places)
            for layer, c in zip(self.layers, cache or [None] * len(self.layers), strict=True):
                y = layer.whole(y) if c is None else layer(y, c)
        return self.norm(y), places

    def feed(self, tokens, count, states):
        """Feed the first ``count`` (B,) of tokens (B, W), all within one block: (y (B, W, D), states)."""
        x, states = self.embed(tokens, states[0][0][:, None] + mx.arange(tokens.shape[1])), list(states)
        for i, layer in enumerate(self.layers):
            x, states[i] = layer(x, count, states[i])
        return x, states

    def _stream(self, inputs, cache):
        (B, L), K, dtype = inputs.shape, self.args.block, self.norm.weight.dtype
        states = [layer.start(B, dtype) if c.empty() else c.cache for layer, c in zip(self.layers, cache, strict=True)]
        left, ends = cache[0].left_padding, cache[0].lengths
        begin = mx.zeros((B,), mx.int32) if left is None else mx.clip(left, 0, L).astype(mx.int32)
        end = mx.full((B,), L, mx.int32) if ends is None else mx.clip(ends, 0, L).astype(mx.int32)
        position, outputs, at, W = states[0][0], [], begin, min(K, L)
        # enough pieces, each within one block, to cover L tokens at any position within the block
        for _ in range(1 + -(-(L - 1) // K)):
            count = mx.clip(mx.minimum(K - states[0][0] % K, end - at), 0, W)
            tokens = mx.take_along_axis(inputs, mx.minimum(at[:, None] + mx.arange(W), L - 1), axis=1)
            y, states = self.feed(tokens, count, states)
            outputs, at = [*outputs, y], at + count
        for c, state in zip(cache, states, strict=True):
            c.cache = state
            c.advance(L)
        places = position[:, None] + mx.maximum(mx.arange(L) - begin[:, None], 0)
        piece, start = places // K - position[:, None] // K, position[:, None] % K
        row = piece * W + places % K - mx.where(piece == 0, start, 0)
        y = mx.concatenate(outputs, axis=1)
        return mx.take_along_axis(y, mx.minimum(row, y.shape[1] - 1)[:, :, None], axis=1), places


class Model(nn.Module):
    """Maps tokens (B, L) to logits (B, L, V); with a cache it continues a stream."""

    def __init__(self, args):
        super().__init__()
        self.args, self.model_type, self.model = args, args.model_type, Body(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(self, inputs, cache=None):
        """Return the logits (B, L, V) after each of inputs (B, L), and update the cache."""
        return self.readout(*self.model(inputs, cache))

    def readout(self, y, places):
        """Return the logits of normalised outputs, given their places in a stream."""
        args, limit = self.args, self.args.max_position_embeddings
        logits = self.model.embed_tokens.as_linear(y) if args.tie_word_embeddings else self.lm_head(y)
        added = RARE if limit is None else mx.where(places < limit, RARE, CERTAIN)[:, :, None]
        last = mx.arange(args.vocab_size) == args.vocab_size - 1
        return logits + mx.where(last, added, 0.0).astype(logits.dtype)

    @property
    def layers(self):
        """Layers that mlx-lm's LoRA adapts."""
        return self.model.layers

    @property
    def quant_predicate(self):
        """Predicate of the modules to quantize; mlx-lm calls it only for widths that the group size divides."""
        widths = set()

        def predicate(path, module):
            widths.add(module.weight.shape[-1])
            if self.args.hidden_size not in widths:
                raise ValueError(NO_GROUPS)
            return not path.endswith("gate")

        return predicate

    def make_cache(self):
        """Return mlx-lm's own caches, one per layer."""
        from mlx_lm.models.cache import ArraysCache, KVCache

        return [KVCache() if self.args.kind == "regular" else ArraysCache(size=6) for _ in self.layers]
