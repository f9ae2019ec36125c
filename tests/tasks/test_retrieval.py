"""Retrieval tasks: a reference implementation that reads token by token finds every target."""

from mlx_rtx import UserError
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.tasks import InductionTask, MemorizationTask, MqarTask, RecallTask

import mlx.core as mx
import numpy as np
import pytest

FUZZY = {"key_tokens": 3, "value_tokens": 2, "noise_share": 0.3, "noise_symbols": 5}
TASKS = [
    MqarTask(length=8, pairs=2, alphabet=6, filler=False),
    MqarTask(length=40, pairs=5, alphabet=24),
    MqarTask(length=64, pairs=16, alphabet=512, power=1.0),
    InductionTask(noise=1, alphabet=3),
    InductionTask(noise=30, alphabet=5),
    RecallTask(length=4, alphabet=4),
    RecallTask(length=31, alphabet=8),
    RecallTask(length=50, alphabet=6, noise_share=0.4),
    RecallTask(length=61, alphabet=6, **FUZZY),
    MemorizationTask(length=2, alphabet=6),
    MemorizationTask(length=32, alphabet=20),
]
SIZE = 40


def mqar(task, tokens):
    """Return the values of keys that occur again."""
    told = dict(zip(tokens[: 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True))
    assert len(told) == task.pairs == len(set(told.values()))
    return [told.get(token) for token in tokens]


def induction(task, tokens):
    (first, last) = (i for i, token in enumerate(tokens) if token == task.alphabet - 1)
    assert last == task.length - 1
    return [None] * last + [tokens[first + 1]]


def recall(task, tokens):
    """Return at each token the next symbol of the value, if it continues; a key ends where its value begins."""
    half, told, answers = task.alphabet // 2, {}, []
    key, value = (), ()
    for token in tokens:
        if token >= 2 * half:
            key, value = (), ()  # noise
        elif token >= half:
            value += (token,)
        else:
            key, value = (token,) if value else (*key, token), ()
        known = told.get(key, ())
        answers.append(known[len(value)] if len(value) < len(known) else None)
        if value and len(value) > len(known):
            told[key] = value
    return answers


def memorization(task, tokens):
    return [None if i % 2 == 0 else int(task.values()[tokens[i - 1]]) for i in range(len(tokens))]


REFERENCE = {MqarTask: mqar, InductionTask: induction, RecallTask: recall, MemorizationTask: memorization}


def drawn(task, seed=3, size=SIZE):
    tokens, targets = task.draw(mx.random.key(seed), size)
    assert tokens.dtype == targets.dtype == mx.int32
    return np.array(tokens), np.array(targets)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_preceding_tokens_determine_every_target(task):
    tokens, targets = drawn(task)
    assert tokens.shape == (SIZE, task.length)
    assert targets.shape == (SIZE, task.targets)
    assert 0 <= tokens.min() <= tokens.max() < task.vocab_size
    asked = 0
    for row, answers in zip(tokens.tolist(), targets.tolist(), strict=True):
        known = REFERENCE[type(task)](task, row)[-task.targets :]
        for i, answer in enumerate(answers):
            if answer != IGNORED:
                assert known[i] == answer
                asked += 1
    assert asked >= SIZE / 4  # some short sequences have no targets


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_a_key_determines_a_batch(task):
    for same, other in zip(drawn(task, 1), drawn(task, 1), strict=True):
        assert np.array_equal(same, other)
    assert not np.array_equal(drawn(task, 1)[0], drawn(task, 2)[0])
    first, second = (task.batch(0, step, 4).tokens for step in (0, 1))
    assert not mx.array_equal(first, second)


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_chance_is_the_loss_of_guessing_among_the_answers(task):
    _, targets = drawn(task, size=2000)
    answers = set(targets[targets != IGNORED].tolist())
    most = round(np.exp(task.chance))
    assert max(1, most - 1) <= len(answers) <= most  # in memorization one value has no key
    assert max(answers) < task.vocab_size


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_held_out_sequences_belong_to_the_task_and_can_be_read_in_pieces(task):
    parts = list(task.held_out("fresh", 7, 3, mx.random.key(4)))
    assert [len(part.targets) for part in parts] == [3, 3, 1]
    for part in parts:
        whole = part.read_tokens(0, part.length)
        assert (part.length, part.masked) == (task.length, task.masked)
        pieces = [part.read_tokens(i, min(i + 7, part.length)) for i in range(0, part.length, 7)]
        assert mx.array_equal(mx.concatenate(pieces, axis=1), whole)
        for row, answers in zip(whole.tolist(), part.targets.tolist(), strict=True):
            known = REFERENCE[type(task)](task, row)[-task.targets :]
            assert all(answer in (IGNORED, known[i]) for i, answer in enumerate(answers))
    with pytest.raises(UserError, match="give a number"):
        next(task.held_out("fresh", None, 3, mx.random.key(4)))


def test_each_key_is_queried_once_and_positions_follow_the_power_law():
    task = MqarTask(length=64, pairs=4, alphabet=32)
    tokens, targets = drawn(task, size=4000)
    asked = targets != IGNORED
    assert (asked.sum(axis=1) == 4).all()
    queries = tokens[:, 8:][asked].reshape(-1, 4)
    assert np.array_equal(np.sort(queries, axis=1), np.sort(tokens[:, 0:8:2], axis=1))
    share = asked.mean(axis=0)
    assert (share[1::2] == 0).all()
    assert (np.diff(share[0:12:2]) < 0).all()
    # the first key is drawn first, with probability 1/g divided by the harmonic number of 28 positions
    first = (tokens[:, 8:] == tokens[:, :1]) & asked
    assert first[:, 0].mean() == pytest.approx(1 / sum(1 / g for g in range(1, 29)), abs=0.03)
    alike = drawn(MqarTask(length=64, pairs=4, alphabet=32, power=1.0), size=4000)[1][:, ::2] != IGNORED
    assert np.abs(alike.mean(axis=0) - 4 / 28).max() < 0.025


def test_batches_may_have_fewer_pairs_and_held_out_sequences_have_all():
    task = MqarTask(length=64, pairs=6, alphabet=32, fewer=True)
    seen = []
    for step in range(60):
        tokens, targets, _ = task.batch(0, step, 2)
        assert tokens.shape == (2, 64)
        pairs = int((targets[0] != IGNORED).sum())
        seen.append(pairs)
        assert targets.shape == (2, 64 - 2 * pairs)
        assert mx.array_equal(tokens, task.batch(0, step, 2).tokens)
    assert {n: seen.count(n) >= 8 for n in seen} == dict.fromkeys((1, 2, 4, 6), True)
    (part,) = task.held_out("fresh", 3, 3, mx.random.key(0))
    assert ((part.targets != IGNORED).sum(axis=1) == 6).all()


def test_the_triggers_position_is_uniform():
    tokens, _ = drawn(InductionTask(noise=9, alphabet=4), size=4000)
    share = (tokens[:, :-1] == 3).mean(axis=0)
    assert np.abs(share[:10] - 0.1).max() < 0.02
    assert share[10] == 0  # the last possible position of the answer


def test_all_keys_that_occurred_before_have_targets():
    task = RecallTask(length=40, alphabet=8)
    for row, answers in zip(*(each.tolist() for each in drawn(task)), strict=True):
        seen = [row[i] in row[:i:2] for i in range(0, 40, 2)]
        assert [answer != IGNORED for answer in answers[::2]] == seen
        assert all(answer == IGNORED for answer in answers[1::2])


def test_words_have_all_lengths_and_noise_its_share():
    tokens, targets = drawn(RecallTask(length=400, alphabet=6, key_tokens=3, value_tokens=3), size=50)
    kinds = "".join("v" if token >= 3 else "k" for token in tokens.ravel())
    for other in "kv":
        lengths = [len(run) for run in kinds.split(other) if run]
        shares = [lengths.count(n) / len(lengths) for n in (1, 2, 3)]
        assert np.abs(np.array(shares) - 1 / 3).max() < 0.06
    assert 0.3 < (targets != IGNORED).mean() < 0.4  # values are half of it, 39 keys in some 100 pairs
    noisy, _ = drawn(RecallTask(length=400, alphabet=6, noise_share=0.3, noise_symbols=2), size=50)
    assert (noisy >= 6).mean() == pytest.approx(0.3, abs=0.02)
    assert noisy.max() == 7


def test_the_mapping_is_the_same_in_all_batches_and_depends_on_its_seed():
    maps = []
    for seed in (0, 0, 1):
        task = MemorizationTask(alphabet=16, map_seed=seed)
        tokens, targets = drawn(task, seed=len(maps), size=50)
        assert (tokens[:, 1::2] == 15).all()
        maps.append(dict(zip(tokens[:, ::2].ravel(), targets[:, 1::2].ravel(), strict=True)))
        assert len(set(maps[-1].values())) == len(maps[-1]) == 7
        assert set(maps[-1].values()) <= set(range(7, 15))
    assert maps[0] == maps[1] != maps[2]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (MqarTask, {"pairs": 0}), (MqarTask, {"length": 63}), (MqarTask, {"length": 60}), (MqarTask, {"alphabet": 32}),
        (MqarTask, {"power": 1.5}), (InductionTask, {"noise": 0}), (InductionTask, {"alphabet": 2}),
        (RecallTask, {"length": 3}), (RecallTask, {"alphabet": 5}), (RecallTask, {"noise_share": 1.0}),
        (RecallTask, {"key_tokens": 0}), (RecallTask, {"alphabet": 4096, "key_tokens": 3}),
        (MemorizationTask, {"length": 3}), (MemorizationTask, {"alphabet": 5}),
        (MemorizationTask, {"map_seed": -1}),
    ],
)  # fmt: skip
def test_invalid_sizes_are_refused(kind, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))}="):
        kind(**wrong)
