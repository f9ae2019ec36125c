"""nanoGPT's model and the recurrent model of the paper's program, in plain float64 NumPy with their parameter names."""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def make_weights(V, L, D, layers, out=None, alpha=None, seed=0):
    """Return a checkpoint of random weights, large enough that every part affects the outputs."""
    rng = np.random.default_rng(seed)
    sizes = {"transformer.wte.weight": (V, D), "transformer.wpe.weight": (L, D), "transformer.ln_f.weight": (D,)}
    for i in range(layers):
        sizes |= {
            f"transformer.h.{i}.ln_1.weight": (D,),
            f"transformer.h.{i}.attn.c_attn.weight": (3 * D, D),
            f"transformer.h.{i}.attn.c_proj.weight": (D, D),
            f"transformer.h.{i}.ln_2.weight": (D,),
            f"transformer.h.{i}.mlp.c_fc.weight": (4 * D, D),
            f"transformer.h.{i}.mlp.c_proj.weight": (D, 4 * D),
        }
    weights = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    head = weights["transformer.wte.weight"] if out is None else rng.normal(0, 0.3, (out, D)).astype(np.float32)
    weights["lm_head.weight"] = head
    return weights if alpha is None else {**weights, "alpha": np.array(alpha, np.float32)}


def norm(x, weight):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight


def layer(x, w, name, heads, activation):
    """``Block.forward`` on (B, T, C)."""
    B, T, C = x.shape
    qkv = norm(x, w[name + "ln_1.weight"]) @ w[name + "attn.c_attn.weight"].T
    q, k, v = (a.reshape(B, T, heads, C // heads).transpose(0, 2, 1, 3) for a in np.split(qkv, 3, axis=2))
    att = q @ k.transpose(0, 1, 3, 2) / math.sqrt(C // heads)
    att = np.exp(np.where(np.tril(np.ones((T, T))) == 0, -np.inf, att))
    y = (att / att.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, C)
    x = x + y @ w[name + "attn.c_proj.weight"].T
    h = norm(x, w[name + "ln_2.weight"]) @ w[name + "mlp.c_fc.weight"].T
    h = np.maximum(h, 0) if activation == "relu" else h * 0.5 * (1 + ERF(h / math.sqrt(2)))
    return x + h @ w[name + "mlp.c_proj.weight"].T


def recur(x, K, alpha, tau):
    """The recurrence with y as history, over whole blocks and a shorter last block."""
    blocks = [x[:, i : i + K] for i in range(0, x.shape[1], K)]
    y, h, outputs = blocks[0], tau(blocks[0]), []
    for block in blocks[1:]:
        r = block.shape[1]
        both = tau(np.concatenate([alpha * y + h, alpha * y[:, :r] + block], axis=1))
        y, h = both[:, :K], both[:, K:]
        outputs.append(y)
    return np.concatenate([*outputs, tau(h)], axis=1)


def logits(weights, tokens, heads, activation="gelu", block=None, alpha=None):
    """Return the logits of a regular model, or with ``block`` and α of a recurrent one whose last block is closed."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][: tokens.shape[1]]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in w:

        def tau(rows, name=f"transformer.h.{i}."):
            return layer(rows, w, name, heads, activation)

        x = tau(x) if block is None else recur(x, block, alpha, tau)
        i += 1
    return norm(x, w["transformer.ln_f.weight"]) @ w["lm_head.weight"].T
