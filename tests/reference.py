"""Eqs. 5–7 in plain float64 NumPy, directly from the paper: each window as a whole, nothing shared or cached."""

import math

import numpy as np
from mlx.utils import tree_flatten

ERF = np.vectorize(math.erf)


def parameters(model) -> dict[str, np.ndarray]:
    return {name: np.array(array, dtype=np.float64) for name, array in tree_flatten(model.parameters())}


def layer_norm(x, weight):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight


def rms_norm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def tau(x, p, prefix, config, scales=None):
    """One causal transformer layer on (B, N, D); ``scales`` (B, H, N, N), if given, multiply the attention weights."""
    _, N, D = x.shape
    d = D // config.heads
    normed = layer_norm(x, p[prefix + "attention_norm.weight"])
    q, k, v = (part.reshape(-1, N, config.heads, d) for part in np.split(normed @ p[prefix + "qkv"], 3, axis=-1))
    if config.qk_norm:
        q, k = 3 * rms_norm(q), 3 * rms_norm(k)
    mixed = np.zeros_like(x)
    for head in range(config.heads):
        cols = slice(head * d, (head + 1) * d)
        for i in range(N):
            scores = np.einsum("bd,bjd->bj", q[:, i, head], k[:, : i + 1, head]) / math.sqrt(d)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            if scales is not None:
                weights *= scales[:, head, i, : i + 1]
            mixed[:, i, cols] = np.einsum("bj,bjd->bd", weights, v[:, : i + 1, head])
    x = x + mixed @ p[prefix + "attention_out"]
    hidden = layer_norm(x, p[prefix + "mlp_norm.weight"]) @ p[prefix + "mlp_in"]
    if config.activation == "relu":
        hidden = np.maximum(hidden, 0)
    else:
        hidden = hidden * 0.5 * (1 + ERF(hidden / math.sqrt(2)))
    return x + hidden @ p[prefix + "mlp_out"]


def recurrence(x, p, prefix, config, close, scales=None):
    """Eqs. 5–7 on embedded input (B, L, D); ``scales`` of attention weights for (5), (6) of i = 1 … T - 1, and (7)."""
    K, norm = config.block, rms_norm if config.state_norm else (lambda a: a)
    blocks = [x[:, i : i + K] for i in range(0, x.shape[1], K)]
    T = len(blocks)

    def layer(window, at):
        N = window.shape[1]  # smaller than the scales' size if the last block is shorter
        return tau(window, p, prefix + "tau.", config, None if scales is None else scales[at][:, :, :N, :N])

    def remember(history, rows):
        """Return rows plus α times the history."""
        alpha, shares = p[prefix + "alpha"], config.dim // config.heads
        if config.alpha_kind == "gated":
            alpha = np.repeat(1 / (1 + np.exp(-(rows @ p[prefix + "gate"] + alpha))), shares, axis=-1)
        elif config.alpha_kind == "head":
            alpha = np.repeat(alpha, shares)
        return rows + (alpha if config.alpha_kind == "gated" else np.clip(alpha, 0, 1)) * history

    h = {0: np.zeros_like(blocks[0]), 1: norm(layer(blocks[0], 0))}  # (5)
    y = {0: norm(blocks[0])}
    outputs = {}
    for i in range(1, T):
        history = h[i - 1] if config.history == "hidden" else y[i - 1]
        following = blocks[i]
        r = following.shape[1]
        window = np.concatenate([remember(history, h[i]), remember(history[:, :r], following)], axis=1)
        both = layer(window, i)  # (6)
        outputs[i], h[i + 1] = both[:, :K], norm(both[:, K:])
        y[i] = norm(outputs[i])
    r = blocks[-1].shape[1]
    history = (h[T - 1] if config.history == "hidden" else y[T - 1])[:, :r]
    outputs[T] = layer(h[T] if close else remember(history, h[T]), T)  # (7), or (6) as in a stream
    return np.concatenate([outputs[i] for i in range(1, T + 1)], axis=1)


def embed(tokens, p, config):
    x = p["embedding.tokens"][tokens]
    L = tokens.shape[1]
    if config.positions == "absolute":
        x = x + p["embedding.positions"][:L]
    elif config.positions == "block":
        x = x + p["embedding.positions"][np.arange(L) % config.block]
    elif config.positions == "axial":
        x = x + np.stack([p["embedding.positions"][t % config.block] for t in range(L)])
        x = x + np.stack([p["embedding.blocks"][t // config.block] for t in range(L)])
    return x


def readout(x, p):
    head = p["embedding.head"] if "embedding.head" in p else p["embedding.tokens"].T
    return layer_norm(x, p["embedding.norm.weight"]) @ head


def recurrent_logits(tokens, p, config, close=True, scales=None):
    x = embed(tokens, p, config)
    for i in range(config.layers):
        x = recurrence(x, p, f"layers.{i}.", config, close, scales and scales[i])
    return readout(x, p)


def regular_logits(tokens, p, config, scales=None):
    x = embed(tokens, p, config)
    for i in range(config.layers):
        x = tau(x, p, f"layers.{i}.", config, None if scales is None else scales[i])
    return readout(x, p)


def cross_entropy(logits, targets):
    """Return the mean over the last n positions of (B, L, V) for targets (B, n)."""
    logits = logits[:, -targets.shape[1] :]
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return -np.take_along_axis(logs, targets[..., None], axis=-1).mean()
