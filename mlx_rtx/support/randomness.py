"""Random keys as a function of (seed, step, purpose), so that a resumed run needs only its step number."""

from typing import Literal, get_args

import mlx.core as mx
import numpy as np

Purpose = Literal["data", "dropout", "validation", "test"]


def step_key(seed: int, step: int, purpose: Purpose) -> mx.array:
    """Return the random key for one purpose at one step."""
    seed_and_step = mx.array([seed, step], dtype=mx.uint32)
    return mx.random.split(seed_and_step, len(get_args(Purpose)))[get_args(Purpose).index(purpose)]


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return a generator of one step's random numbers for decisions on the host, which need not wait for the device."""
    return np.random.default_rng([seed, step])
