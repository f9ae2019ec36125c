"""Keys: another one for each seed, step and purpose, and always the same."""

import itertools
from typing import get_args

from mlx_rtx.support.randomness import Purpose, step_generator, step_key

import mlx.core as mx

SEEDS = (0, 1, 2, 2**31 - 1)
STEPS = (0, 1, 2, 1000)


def keys():
    return [step_key(*which).tolist() for which in itertools.product(SEEDS, STEPS, get_args(Purpose))]


def test_seeds_steps_and_purposes_have_keys_of_their_own():
    assert set(get_args(Purpose)) == {"data", "dropout", "validation", "test"}
    assert len(set(map(tuple, keys()))) == len(SEEDS) * len(STEPS) * 4


def test_what_was_drawn_before_changes_no_key():
    before = keys()
    mx.random.seed(7)
    mx.eval(mx.random.uniform(shape=(3,)))
    assert keys() == before


def test_what_the_host_draws_is_fixed_by_seed_and_step():
    drawn = {(seed, step): step_generator(seed, step).random() for seed, step in itertools.product(SEEDS, STEPS)}
    assert len(set(drawn.values())) == len(SEEDS) * len(STEPS)
    assert drawn == {which: step_generator(*which).random() for which in drawn}
    assert drawn[0, 0] == 0.6369616873214543  # numbers that NumPy guarantees
