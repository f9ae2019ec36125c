"""Dropout whose masks belong to blocks: however a sequence is cut, each block draws the same ones."""

import math
from typing import NamedTuple

import mlx.core as mx


class DropoutScales(NamedTuple):
    """Scales of a layer's two outputs, 0 or 1 / (1 - rate), each (B·n, D) for n rows of B sequences."""

    attention: mx.array
    mlp: mx.array

    @classmethod
    def of(cls, scales: mx.array) -> "DropoutScales":
        """From both in one array (2, B, n, D)."""
        _, B, n, D = scales.shape
        return cls(*scales.reshape(2, B * n, D))


def split_keys(keys: mx.array, parts: int) -> list[mx.array]:
    """Split each of S keys (S, 2) for ``parts`` uses: ``parts`` arrays (S, 2)."""
    split = mx.vmap(lambda key: mx.random.split(key, parts))(keys)  # (S, parts, 2)
    return [part.squeeze(1) for part in mx.split(split, parts, axis=1)]  # views; indices would copy them


def draw_scales(keys: mx.array, rate: float, shape: tuple[int, ...]) -> mx.array:
    """Scales (S, \\*shape), 0 with probability ``rate`` and 1 / (1 - rate) else, from S keys (S, 2)."""
    count, kept = math.prod(shape), round((1 - rate) * 2**32) - 1
    # splitting a key gives its random bits as they are: a launch, where drawing numbers in [0, 1) takes six more
    bits = mx.vmap(lambda key: mx.random.split(key, -(-count // 2)).flatten())(keys)  # (S, count or one more)
    return mx.where(bits[:, :count] <= mx.array(kept, mx.uint32), 1 / (1 - rate), 0.0).reshape(-1, *shape)


def fresh_key() -> mx.array:
    """A key from MLX's global random state."""
    return mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)
