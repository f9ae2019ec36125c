"""Dropout whose masks belong to blocks: however a sequence is cut, each block draws the same ones."""

import mlx.core as mx


def split_keys(keys: mx.array | None, parts: int) -> list[mx.array] | list[None]:
    """Split each of S keys (S, 2) for ``parts`` uses: ``parts`` arrays (S, 2), or as many None for None."""
    if keys is None:
        return [None] * parts
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [split[:, i] for i in range(parts)]


def keep_factors(keys: mx.array | None, rate: float, shape: tuple[int, ...]) -> mx.array | None:
    """Factors (S, \\*shape), 0 with probability ``rate`` and 1 / (1 - rate) else, from S keys (S, 2)."""
    if keys is None or rate == 0:
        return None
    kept = mx.vmap(lambda key: mx.random.bernoulli(1 - rate, shape, key=key))(keys)
    return kept.astype(mx.float32) * (1 / (1 - rate))


def pairs(factors: mx.array | None, count: int) -> list[tuple[mx.array, mx.array] | None]:
    """Factors (count, 2, B, n, D) as ``count`` pairs for a layer's attention and MLP outputs, each (B·n, D)."""
    if factors is None or count == 0:
        return [None] * count
    parts = mx.split(factors.reshape(-1, factors.shape[-1]), 2 * count)
    return list(zip(parts[::2], parts[1::2], strict=True))


def fresh_key() -> mx.array:
    """A key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
