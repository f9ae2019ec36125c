"""Randomness as a function of (seed, step, purpose): a run that resumes needs no more than its step number."""

from typing import Literal, get_args

import mlx.core as mx
import numpy as np

Purpose = Literal["data", "dropout", "validation", "test"]


def step_key(seed: int, step: int, purpose: Purpose) -> mx.array:
    """The random key of one purpose at one step."""
    seed_and_step = mx.array([seed, step], dtype=mx.uint32)
    return mx.random.split(seed_and_step, len(get_args(Purpose)))[get_args(Purpose).index(purpose)]


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step for what the host decides by itself, without waiting for the device."""
    return np.random.default_rng([seed, step])
