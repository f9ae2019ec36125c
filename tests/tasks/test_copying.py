"""Copy and selective copy: contents of a batch, and its dependence on the key."""

from mlx_rtx import UserError
from mlx_rtx.tasks import CopyTask, SelectiveCopyTask

import mlx.core as mx
import numpy as np
import pytest

TASKS = [CopyTask, SelectiveCopyTask]


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(("noise", "payload", "alphabet"), [(1, 1, 4), (40, 16, 16), (128, 5, 9)])
def test_targets_are_the_payload(kind, noise, payload, alphabet):
    task = kind(noise=noise, payload=payload, alphabet=alphabet)
    tokens, targets = (np.array(a) for a in task.draw(mx.random.key(3), 50))
    assert tokens.shape == (50, task.length) == (50, noise + 2 * payload)
    assert targets.shape == (50, payload)
    assert set(np.unique(targets)) == set(range(1, alphabet - 1))
    assert (tokens[:, -payload:] == alphabet - 1).all()
    body = tokens[:, :-payload]
    assert ((body != 0).sum(axis=1) == payload).all()
    assert np.array_equal(body[body != 0].reshape(50, payload), targets)  # in order


@pytest.mark.parametrize("kind", TASKS)
def test_chance_is_the_loss_of_guessing_among_the_payload_symbols(kind):
    assert kind().chance == pytest.approx(2.639, abs=5e-4)  # ln 14
    task = kind(noise=3, alphabet=7)
    symbols = np.unique(np.array(task.draw(mx.random.key(0), 200)[1]))
    assert task.chance == pytest.approx(np.log(len(symbols)))


def test_copy_puts_the_payload_first():
    tokens, targets = CopyTask(noise=10, payload=4).draw(mx.random.key(0), 8)
    assert mx.array_equal(tokens[:, :4], targets)


def test_selective_copy_spreads_it_evenly():
    task = SelectiveCopyTask(noise=12, payload=4)
    tokens = np.array(task.draw(mx.random.key(0), 4000)[0])[:, :16]
    share = (tokens != 0).mean(axis=0)  # 1/4 at each of 16 positions, standard error 0.007
    assert np.abs(share - 0.25).max() < 0.035
    assert len({tuple(row) for row in tokens != 0}) > 1000  # of 1820 choices


@pytest.mark.parametrize("kind", TASKS)
def test_a_key_determines_a_batch(kind):
    task = kind(noise=20)
    first, same, other = (task.draw(mx.random.key(seed), 4)[0] for seed in (1, 1, 2))
    assert mx.array_equal(first, same)
    assert not mx.array_equal(first, other)


@pytest.mark.parametrize("wrong", [{"noise": 0}, {"payload": 0}, {"alphabet": 3}])
def test_invalid_sizes_are_refused(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        CopyTask(**wrong)


@pytest.mark.parametrize("kind", TASKS)
def test_held_out_sequences_can_be_read_in_pieces(kind):
    """Only the piece that is read is generated, so that any noise fits into memory."""
    task = kind(noise=30, payload=5)
    parts = list(task.held_out("fresh", 7, 3, mx.random.key(4)))
    assert [len(part.targets) for part in parts] == [3, 3, 1]
    for part in parts:
        whole = part.read_tokens(0, part.length)
        assert whole.shape == (len(part.targets), task.length)
        pieces = [part.read_tokens(start, min(start + 7, part.length)) for start in range(0, part.length, 7)]
        assert mx.array_equal(mx.concatenate(pieces, axis=1), whole)
        assert np.array_equal(np.array(whole)[np.array((whole > 0) & (whole < 15))].reshape(-1, 5), part.targets)
    with pytest.raises(UserError, match="give a number"):
        next(task.held_out("fresh", None, 3, mx.random.key(4)))
