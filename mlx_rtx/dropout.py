"""Dropout whose masks belong to blocks: however a sequence is cut, each block draws the same ones."""

import mlx.core as mx


def split_keys(keys: mx.array, parts: int) -> list[mx.array]:
    """Split each of S keys (S, 2) for ``parts`` uses: ``parts`` arrays (S, 2)."""
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [split[:, i] for i in range(parts)]


def keep_factors(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Factors (S, \\*shape), 0 with probability ``rate`` and 1 / (1 - rate) else, from S keys (S, 2)."""
    kept = mx.vmap(lambda key: mx.random.bernoulli(1 - rate, shape, key=key))(keys)
    return kept.astype(mx.float32) * (1 / (1 - rate))


def pair(factors: mx.array) -> tuple[mx.array, mx.array]:
    """Factors (2, B, n, D) as those of a layer's attention and MLP outputs, each (B·n, D)."""
    _, B, n, D = factors.shape
    attention, mlp = factors.reshape(2, B * n, D)
    return attention, mlp


def fresh_key() -> mx.array:
    """A key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
