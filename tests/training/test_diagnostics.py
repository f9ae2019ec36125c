"""Signs of failure: at which values, in which layers, and after how many consecutive validations."""

from mlx_rtx.training.diagnostics import FailureSigns

import pytest

GOOD = (1.0, 1.0, [0.5])  # training loss, validation loss, α of each layer


def warnings_of(*validations, patience=1, **settings):
    """Return the warnings of validations, joined; the chance loss is 2."""
    signs = FailureSigns(chance=2.0, patience=patience, **settings)
    return " ".join(text for validation in validations for text in signs.observe(*validation))


@pytest.mark.parametrize(
    ("alphas", "words"),
    [
        ([1.0, 1.0], "pinned at 1"),
        ([1.0, 0.5], ""),  # one layer still decays
        ([0.98], ""),
        ([0.0, 0.0], "pinned at 0"),
        ([0.0, 0.5], ""),  # one layer still remembers
        ([0.02], ""),
        ([], ""),  # a regular transformer
    ],
)
def test_alpha_counts_as_pinned_only_if_it_is_in_every_layer(alphas, words):
    found = warnings_of((1.0, 1.0, alphas))
    assert words in found
    assert bool(found) == bool(words)


def test_alpha_at_0_is_not_a_sign_in_short_range_tasks():
    assert not warnings_of((1.0, 1.0, [0.0]), long_range=False)
    assert "pinned at 1" in warnings_of((1.0, 1.0, [1.0]), long_range=False)


@pytest.mark.parametrize(
    ("train_loss", "loss", "words"),
    [(1.95, 1.95, "loss stays at"), (1.93, 1.93, ""), (0.5, 1.11, "above training"), (0.5, 1.09, ""), (0.0, 0.09, "")],
)
def test_losses_are_signs_beyond_their_thresholds(train_loss, loss, words):
    """A loss above 97 % of that of guessing; a validation loss above twice the training loss plus 0.1."""
    found = warnings_of((train_loss, loss, [0.5]))
    assert words in found
    assert bool(found) == bool(words)


def test_a_sign_must_last_without_a_break():
    bad = (1.0, 1.0, [1.0])
    assert not warnings_of(bad, bad, GOOD, bad, bad, patience=3)
    assert warnings_of(bad, bad, GOOD, bad, bad, bad, patience=3).count("pinned") == 1
    assert not warnings_of(*[bad] * 9, patience=10)
