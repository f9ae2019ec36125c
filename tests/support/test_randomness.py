"""Keys: different for each seed, step and purpose, and reproducible."""

import itertools
from typing import get_args

from mlx_rtx.support.randomness import Purpose, step_generator, step_key

import mlx.core as mx

SEEDS = (0, 1, 2, 2**31 - 1)
STEPS = (0, 1, 2, 1000)


def keys():
    return [step_key(*which).tolist() for which in itertools.product(SEEDS, STEPS, get_args(Purpose))]


def test_keys_differ_by_seed_step_and_purpose():
    assert set(get_args(Purpose)) == {"data", "dropout", "validation", "test"}
    assert len(set(map(tuple, keys()))) == len(SEEDS) * len(STEPS) * 4


def test_earlier_draws_change_no_key():
    before = keys()
    mx.random.seed(7)
    mx.eval(mx.random.uniform(shape=(3,)))
    assert keys() == before


def test_random_numbers_on_the_host_depend_on_seed_and_step():
    drawn = {(seed, step): step_generator(seed, step).random() for seed, step in itertools.product(SEEDS, STEPS)}
    assert len(set(drawn.values())) == len(SEEDS) * len(STEPS)
    assert drawn == {which: step_generator(*which).random() for which in drawn}
    assert drawn[0, 0] == 0.6369616873214543  # NumPy guarantees this number
