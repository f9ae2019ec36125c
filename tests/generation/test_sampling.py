"""Samplers: which tokens each rule keeps, and that these are drawn with the right frequencies."""

from mlx_rtx import UserError, make_sampler
from mlx_rtx.generation.sampling import _nucleus

import mlx.core as mx
import numpy as np
import pytest

from tiny import complains

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def draws(count=4000, probabilities=P, **rules):
    logits = mx.broadcast_to(mx.log(mx.array(probabilities)), (count, len(probabilities)))
    keys = mx.stack([mx.arange(count), mx.full((count,), 7)], axis=1).astype(mx.uint32)
    return np.bincount(np.array(make_sampler(**rules)(logits, keys)), minlength=len(probabilities)) / count


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({}, 5),
        ({"top_k": 2}, 2),
        ({"top_k": 99}, 5),
        ({"top_p": 0.69}, 2),
        ({"top_p": 0.71}, 3),
        ({"top_p": 1e-6}, 1),
        ({"min_p": 0.3}, 3),
        ({"min_p": 1.0}, 1),
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.5}, 2),
        ({"top_k": 2, "top_p": 0.5}, 2),  # each rule considers all tokens, not those that another one kept
    ],
)
def test_kept_tokens_are_drawn_with_the_right_frequencies(rules, kept):
    expected = np.where(np.arange(5) < kept, P, 0) / P[:kept].sum()
    found = draws(temp=1.0, **rules)
    assert (found[expected == 0] == 0).all()
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("temp", [0.5, 2.0])
def test_temperature(temp):
    expected = P ** (1 / temp) / (P ** (1 / temp)).sum()
    assert np.abs(draws(temp=temp) - expected).max() < 5 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize("temp", [0.5, 2.0])
@pytest.mark.parametrize(
    ("rules", "kept"), [({"top_p": 0.71}, 3), ({"min_p": 0.3}, 3), ({"top_k": 3, "top_p": 0.9, "min_p": 0.5}, 2)]
)
def test_rules_use_probabilities_at_temperature_1(rules, kept, temp):
    """They keep the same tokens at every temperature; the temperature applies afterwards."""
    weights = np.where(np.arange(5) < kept, P, 0) ** (1 / temp)
    expected = weights / weights.sum()
    found = draws(temp=temp, **rules)
    assert (found[:kept] > 0).all()
    assert (found[kept:] == 0).all()
    assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / 4000)


@pytest.mark.parametrize(
    ("p", "least"), [(0.499, 1 / 2), (0.5, 1 / 2), (0.501, 1 / 4), (0.75, 1 / 4), (0.751, 1 / 8), (0.999, 1 / 8)]
)
def test_top_p_keeps_the_fewest_tokens_that_reach_p(p, least):
    """Halves of halves add up without rounding error."""
    probabilities = mx.array([[1 / 8, 1 / 2, 1 / 8, 1 / 4]])
    assert _nucleus(probabilities, p).item() == least


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ({"top_k": 1}, 1),
        ({"top_k": 2}, 3),
        ({"top_k": 3}, 3),
        ({"top_k": 4}, 5),
        ({"top_p": 0.3}, 1),
        ({"top_p": 0.5}, 3),
        ({"top_p": 0.9}, 5),
        ({"min_p": 0.5}, 3),
    ],
)
def test_equally_likely_tokens_are_kept_or_removed_together(rules, kept):
    found = draws(probabilities=np.array([0.4, 0.22, 0.22, 0.08, 0.08]), temp=1.0, **rules)
    assert (found[:kept] > 0).all()
    assert (found[kept:] == 0).all()


@pytest.mark.parametrize("rules", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_the_most_likely_tokens_are_always_kept(rules):
    found = draws(probabilities=np.array([0.2, 0.4, 0.4]), temp=1.0, **rules)
    assert found[0] == 0
    assert np.abs(found[1:] - 0.5).max() < 5 * np.sqrt(0.25 / 4000)


def test_temperature_0_takes_the_most_likely():
    assert draws(temp=0)[0] == 1


def test_order_of_tokens_does_not_matter():
    found = draws(probabilities=P[::-1].copy(), temp=1.0, top_p=0.71)
    assert (found[:2] == 0).all()
    assert found[4] > found[3] > found[2] > 0


def test_each_stream_draws_with_its_own_key():
    logits, sampler = mx.random.normal((3, 50), key=mx.random.key(1)), make_sampler(temp=1.0)
    keys = mx.array([[0, 5], [1, 5], [2, 5]], dtype=mx.uint32)
    together = sampler(logits, keys)
    alone = [sampler(logits[i : i + 1], keys[i : i + 1]).item() for i in range(3)]
    assert together.tolist() == alone


def test_values_at_the_ends_of_their_ranges_disable_a_rule():
    assert np.array_equal(draws(temp=1.0, top_k=0, top_p=1.0, min_p=0.0), draws(temp=1.0))


@pytest.mark.parametrize("wrong", [{"temp": -1}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": 2}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make_sampler(**wrong)


@pytest.mark.parametrize("rules", [{}, {"temp": 1.0}, {"temp": 1.0, "top_k": 2}, {"temp": 1.0, "top_p": 0.5}], ids=str)
def test_logits_that_are_nan_are_refused(rules):
    """With NaN the most likely token was the first one or an invalid one; logits of excluded tokens are -inf."""
    sampler, keys = make_sampler(**rules), mx.zeros((2, 2), mx.uint32)
    for wrong in ([np.nan, 1, 2], [1, 2, np.nan], [np.inf, 1, 2], [-np.inf] * 3):
        for dtype in (mx.float32, mx.bfloat16):
            logits = mx.array([[0, 1, 2], wrong], dtype)
            complains(sampler, logits, keys, words=r"^logits: stream \[1\] has a NaN, or no finite maximum")
    left = mx.array([[-np.inf, 9, -np.inf], [9, -np.inf, -np.inf]])
    assert sampler(left, keys).tolist() == [1, 0]
    assert mx.compile(sampler)(left, keys).tolist() == [1, 0]  # traced logits are not checked
