"""Mixture of text and copy problems: each row is one of the two, and is scored like its own task."""

from mlx_rtx import UserError
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.tasks import CopyTask, MixtureTask

import mlx.core as mx
import numpy as np
import pytest

TEXT = "to be, or not to be: that is the question.\n" * 40
CHARACTERS = sorted(set(TEXT))
V = len(CHARACTERS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return MixtureTask(data=str(path), length=24, payload=3, alphabet=6, copy_share=0.25).load()


def test_a_fraction_of_the_rows_are_copy_problems_and_the_others_text(data):
    tokens, targets = (np.array(array) for array in data.draw(mx.random.key(0), 20))
    assert tokens.shape == targets.shape == (20, 24)
    assert data.vocab_size == V + 6
    copying, text = (tokens >= V).all(axis=1), (tokens < V).all(axis=1)
    assert (copying.sum(), text.sum()) == (5, 15)
    for row, answers in zip(tokens[text], targets[text], strict=True):
        read = "".join(CHARACTERS[token] for token in [*row, answers[-1]])
        assert read in TEXT
        assert np.array_equal(answers[:-1], row[1:])
    for row, answers in zip(tokens[copying] - V, targets[copying], strict=True):
        assert (answers[:-3] == IGNORED).all()
        assert np.array_equal(answers[-3:] - V, row[:3])  # the payload comes first
        assert (row[-3:] == 5).all()
        assert (row[3:-3] == 0).all()
    assert data.draw(mx.random.key(0), 1)[0].max() < V  # a single row is text


def test_held_out_splits(data):
    key = mx.random.key(1)
    copies = list(data.held_out("copy", 7, 4, key))
    assert [len(part.targets) for part in copies] == [4, 3]
    for part, plain in zip(copies, CopyTask(noise=18, payload=3, alphabet=6).held_out("fresh", 7, 4, key), strict=True):
        assert mx.array_equal(part.targets, plain.targets + V)
        assert mx.array_equal(part.read_tokens(2, 23), plain.read_tokens(2, 23) + V)
    texts = list(data.held_out("text", None, 4, key))
    assert sum(part.targets.size for part in texts) == len(TEXT) - int(0.9 * len(TEXT)) - 1
    assert all(part.targets.max() < V for part in texts)
    both = list(data.held_out("validation", 7, 4, key))
    assert len(both) == len(copies) + len(list(data.held_out("text", 7, 4, key)))
    with pytest.raises(UserError, match="must be one of text, copy, validation"):
        data.held_out("test", 7, 4, key)


def test_another_noise_changes_the_scored_but_not_the_training_problems(data):
    longer = data.at_stage({"noise": 40})
    (part,) = longer.held_out("copy", 2, 2, mx.random.key(1))
    assert (part.length, longer.stage, longer.length) == (46, {"noise": 40}, 24)
    for ours, theirs in zip(data.draw(mx.random.key(2), 4), longer.draw(mx.random.key(2), 4), strict=True):
        assert mx.array_equal(ours, theirs)
    assert data.at_stage({}) is data


def test_fingerprint_and_description_are_those_of_the_text(data):
    assert data.fingerprint == data.text.fingerprint
    assert data.chance == pytest.approx(np.log(V))
    assert data.describe()["noise"] == 18


@pytest.mark.parametrize("wrong", [{"copy_share": 0.0}, {"copy_share": 1.0}, {"length": 32}, {"alphabet": 3}])
def test_invalid_sizes_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        MixtureTask(**wrong)
