"""Randomness as a function of (seed, step, purpose): a run that resumes needs no more than its step number."""

from typing import Literal, get_args

import mlx.core as mx

Purpose = Literal["data", "dropout", "validation", "test"]


def step_key(seed: int, step: int, purpose: Purpose) -> mx.array:
    """The random key of one purpose at one step."""
    seed_and_step = mx.array([seed, step], dtype=mx.uint32)
    return mx.random.split(seed_and_step, len(get_args(Purpose)))[get_args(Purpose).index(purpose)]
