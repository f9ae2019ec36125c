"""Unique sequences: compared with direct counting, and with counts known in closed form."""

import itertools
import json
import sys

from mlx_rtx import UserError
from mlx_rtx.scaling import corpora
from mlx_rtx.scaling.regression import across, exponent
from mlx_rtx.scaling.unique import growth, rising_sizes, unique_sequences

import numpy as np
import pytest


def count_directly(tokens, length, size):
    return len({tuple(tokens[p : p + length]) for p in range(size)})


@pytest.mark.parametrize("symbols", [1, 2, 3, 1000])
def test_unique_sequences_are_counted_exactly(symbols):
    tokens = np.random.default_rng(symbols).integers(0, symbols, 300)
    tokens[200:260] = tokens[20:80]  # a long repetition
    lengths, sizes = [1, 2, 3, 5, 40, 60, 61], [1, 2, 7, 50, 201, 240]
    expected = [[count_directly(tokens, length, size) for size in sizes] for length in lengths]
    assert unique_sequences(tokens, lengths, sizes).tolist() == expected


def test_counts_known_in_closed_form():
    sizes, lengths = [1, 10, 100, 1000], [1, 2, 5, 50]
    least = np.minimum(sizes, 1)[None].repeat(4, 0)
    assert np.array_equal(unique_sequences(np.zeros(1100, int), lengths, sizes), least)
    assert np.array_equal(unique_sequences(np.arange(1100), lengths, sizes), np.array([sizes] * 4))
    periodic = unique_sequences(np.resize(np.arange(7), 1100), lengths, sizes)
    assert np.array_equal(periodic, np.minimum(sizes, 7)[None].repeat(4, 0))


def test_every_word_of_a_de_bruijn_sequence_occurs_once():
    order, tokens = 6, []
    for p in range(1, order + 1):  # Lyndon words whose length divides the order, one after the other
        tokens += [w for w in itertools.product(range(2), repeat=p) if order % p == 0 and lyndon(w)]
    tokens = np.array([symbol for word in sorted(tokens) for symbol in word])
    assert len(tokens) == 2**order
    around = np.concatenate([tokens, tokens])
    counts = unique_sequences(around, range(1, 10), [2**order])[:, 0]
    assert counts.tolist() == [2 ** min(length, order) for length in range(1, 10)]


def lyndon(word):
    return all(word < word[i:] + word[:i] for i in range(1, len(word)))


@pytest.mark.parametrize(
    ("tokens", "lengths", "sizes", "words"),
    [
        (0, [1], [1], "the corpus is empty"),
        (10, [11], [1], "length=11: the corpus has only 10 tokens"),
        (10, [4], [8], "size=8: a corpus of 10 tokens has 7 sequences of 4"),
        (10, [0], [1], "lengths="),
        (10, [], [1], "lengths="),
        (10, [1], [2, 2], "sizes="),
        (10, [1], [0], "sizes="),
        (10, [1], [], "sizes="),
    ],
)
def test_invalid_lengths_and_sizes(tokens, lengths, sizes, words):
    with pytest.raises(UserError, match=words):
        unique_sequences(np.arange(tokens), lengths, sizes)


def test_tokens_out_of_range():
    for tokens in (np.array([0, -1]), np.array([0, 2**31])):
        with pytest.raises(UserError, match=r"tokens: must lie in 0 … 2147483647"):
            unique_sequences(tokens, [1], [1])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydivsufsort", None)
    with pytest.raises(UserError, match=r"needs pydivsufsort; pip install 'mlx-rtx\[scaling\]'"):
        unique_sequences(np.arange(10), [1], [1])
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UserError, match=r"needs scipy; pip install 'mlx-rtx\[scaling\]'"):
        across(np.arange(3.0))


@pytest.mark.parametrize(("power", "offset"), [(1.0, 2.7), (1.5, 0.0), (2.3, 2.7)])
def test_zipf_has_the_expected_number_of_distinct_ranks(power, offset):
    ranks, sizes = 100_000, [100, 1000, 10_000, 100_000]
    counts = unique_sequences(corpora.zipf(100_000, power, offset, ranks, seed=1), [1], sizes)[0]
    for size, count in zip(sizes, counts, strict=True):
        expected = corpora.expected_unique(corpora.zipf_weights(power, offset, ranks), size)
        assert abs(count - expected) < 5 * np.sqrt(expected)  # five standard deviations of a Poisson count


def test_the_exponent_of_unique_ranks_is_the_inverse_of_zipfs():
    """With unlimited ranks |S| ∝ D^(1/s) for s > 1, which is in the paper's band for s from 1.39 to 2.27."""
    weights, sizes = corpora.zipf_weights(2.0, 0.0, 1_000_000), [10_000, 100_000, 1_000_000]
    counts = np.array([corpora.expected_unique(weights, size) for size in sizes])
    assert exponent(sizes, counts) == pytest.approx(0.5, abs=0.01)


def test_a_markov_chain_has_at_most_the_possible_sequences():
    tokens = corpora.markov(20_000, states=20, choices=2)
    counts = unique_sequences(tokens, [1, 2, 3, 4], [10_000])[:, 0]
    assert all(counts <= 20 * 2 ** np.arange(4))
    assert counts[1] > counts[0]


def test_copies():
    assert unique_sequences(corpora.copies(1000, period=100), [20], [50, 500])[0].tolist() == [50, 100]
    fresh = corpora.repeated(10_000, period=100, fresh=0.2)
    assert 500 < unique_sequences(fresh, [20], [9_900])[0, 0] < 9_000
    assert len(fresh) == 10_000


def test_the_exponent_of_a_power_law():
    sizes = rising_sizes(10_000, decades=3, per_decade=2)
    assert sizes == [10, 32, 100, 316, 1000, 3162, 10_000]
    assert exponent(sizes, 3 * np.array(sizes) ** 0.6) == pytest.approx(0.6)
    value, low, high = across(np.array([0.5, 0.6, 0.7]))
    assert (value, low, high) == pytest.approx((0.6, 0.6 - 0.2484, 0.6 + 0.2484), abs=1e-4)


def test_growth_of_a_corpus():
    found = growth(corpora.Corpus("all different", np.arange(2000)), [1, 4], rising_sizes(1990, 2), starts=3)
    assert found.symbols == found.tokens == 2000
    assert np.allclose(found.exponents, 1)
    assert found.within(0.44, 0.72) == []
    assert found.within(0.9, 1.1) == [1, 4]
    flat = growth(corpora.Corpus("copies", np.resize(np.arange(20), 2000)), [1], rising_sizes(1990, 3), starts=3)
    assert 0.2 < flat.exponents[0].value < 0.6
    assert flat.within(0.2, 0.6) == []  # its last decade has an exponent of 0
    assert json.loads(json.dumps(flat.report()))["exponents"][0].keys() == {"value", "low", "high"}
