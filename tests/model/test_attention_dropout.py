"""Dropout on attention weights: equality with a reference that is given the drawn masks, and independence of masks."""

from functools import partial

from mlx_rtx import RecurrentTransformer, kernels, loss_and_grad
from mlx_rtx.model import recurrence
from mlx_rtx.model.layer import TransformerLayer
from mlx_rtx.support.trees import flat

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from reference import cross_entropy, parameters, recurrent_logits, regular_logits
from tiny import HISTORIES, K, make_model, make_tokens

RATE, KEY = 0.3, mx.random.key(5)
LENGTHS = [K - 1, K, 2 * K, 5 * K - 1]


def make_training(kind, **changes):
    model = make_model(kind, **{"attention_dropout": RATE, "layers": 2, **changes})
    model.train()
    return model


@pytest.fixture
def calls(monkeypatch):
    """Record the scales of attention weights of each use of a layer, (B, H, n, N), in order."""
    seen, run = [], TransformerLayer.__call__

    def noting(self, x, weights, rows=None, mask="causal", dropout=None):
        if dropout and dropout.weights is not None:
            seen.append(np.array(dropout.weights, dtype=np.float64))
        return run(self, x, weights, rows, mask, dropout)

    monkeypatch.setattr(TransformerLayer, "__call__", noting)
    return seen


def by_window(calls, history, T, batch=2):
    """Return per layer the scales of whole windows for the reference: for (5), for each i of (6), and for (7)."""
    size, layers = T + 1, []  # uses of τ per layer
    for uses in (calls[at : at + size] for at in range(0, len(calls), size)):
        first, windows, last = uses[0], uses[1:T], uses[T]
        if history == "hidden":  # windows draw scales for their second halves, one call for all outputs that are read
            last = last.reshape(batch, T, *last.shape[1:])
            windows = [whole(last[:, i], window) for i, window in enumerate(windows)]
            last = last[:, -1]
        layers.append([first, *windows, last])
    return layers


def whole(upper, lower):
    """Combine the scales of a window's halves to (B, H, 2K, 2K); the upper half does not see the second K rows."""
    return np.concatenate([np.concatenate([upper, np.zeros_like(upper)], axis=-1), lower], axis=-2)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("history", HISTORIES)
def test_logits_and_gradient_equal_the_reference_with_the_same_masks(kind, history, qk_norm, length, calls):
    """The reference is in float64 with whole windows; the gradient is taken in segments of one block."""
    tokens = make_tokens(length)
    model = make_training(kind, history=history, qk_norm=qk_norm, alpha=0.37, activation="gelu")
    found, inputs, p = model(tokens, key=KEY), np.array(tokens), parameters(model)
    if kind is RecurrentTransformer:
        reference = partial(recurrent_logits, scales=by_window(calls, history, -(-length // K)))
    else:
        reference = partial(regular_logits, scales=[*calls])
    expected = reference(inputs, p, model.config)
    assert np.abs(np.array(found) - expected).max() < 5e-5 * max(1, np.abs(expected).max())
    assert np.abs(np.array(model.eval()(tokens)) - expected).max() > 1e-2

    model.train()
    loss, gradients = loss_and_grad(model, tokens, tokens, 1, key=KEY)
    generator, step = np.random.default_rng(0), 1e-6
    assert loss.item() == pytest.approx(cross_entropy(expected, inputs), rel=1e-5)
    for name, gradient in flat(gradients).items():
        direction = generator.standard_normal(p[name].shape)
        up, down = (
            cross_entropy(reference(inputs, p | {name: p[name] + change * direction}, model.config), inputs)
            for change in (step, -step)
        )
        slope = (np.array(gradient, dtype=np.float64) * direction).sum()
        assert slope == pytest.approx((up - down) / (2 * step), rel=2e-4, abs=2e-4), name


@pytest.mark.parametrize(
    "variant",
    [{}, {"dropout": 0.4}, {"state_norm": True, "layers": 1}, {"alpha_kind": "gated", "qk_norm": True, "layers": 1}],
    ids=str,
)
@pytest.mark.parametrize("history", HISTORIES)
def test_masks_do_not_depend_on_segments(kind, history, variant):
    """Nor on the number of outputs read, nor on recomputation: the gradient equals that of the whole sequence."""
    model, tokens = make_training(kind, history=history, **variant), make_tokens(6 * K - 1)
    for n in (1, K + 1, 6 * K - 1):

        def whole_loss(model, n=n):
            logits = model(tokens, last=n, key=KEY)
            return nn.losses.cross_entropy(logits, tokens[:, -n:], reduction="mean")

        expected_loss, expected = nn.value_and_grad(model, whole_loss)(model)
        for segment in (1, 2, 3, None):
            loss, gradients = loss_and_grad(model, tokens, tokens[:, -n:], segment, key=KEY)
            assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5), (n, segment)
            for (name, found), (_, exact) in zip(tree_flatten(gradients), tree_flatten(expected), strict=True):
                assert mx.abs(found - exact).max() < 2e-5 * max(1, mx.abs(exact).max().item()), (n, segment, name)


@pytest.mark.parametrize("history", HISTORIES)
def test_the_key_determines_the_masks(kind, history):
    model, tokens = make_training(kind, history=history), make_tokens(3 * K)
    first = model(tokens, key=KEY)
    assert mx.array_equal(first, model(tokens, key=KEY))
    assert not mx.array_equal(first, model(tokens, key=mx.random.key(6)))
    assert not mx.array_equal(model(tokens), model(tokens))


@pytest.mark.parametrize("history", HISTORIES)
def test_masks_have_the_right_rate_and_are_independent(kind, history, calls):
    """Masks of different sequences, heads, layers and uses are uncorrelated."""
    make_training(kind, history=history, block=8)(make_tokens(24), key=KEY)
    masks = []
    for scales in calls:
        assert set(np.unique(scales)) == {0.0, float(np.float32(1 / (1 - RATE)))}
        assert abs((scales > 0).mean() - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / scales.size)
        assert abs(scales.mean() - 1) < 5 * np.sqrt(RATE / (1 - RATE) / scales.size)
        masks += [mask.tobytes() for mask in (scales > 0).reshape(-1, *scales.shape[-2:])]
    recurrent_uses = 1 + 2 + (3 if history == "hidden" else 1)
    assert len(masks) == 2 * 2 * 2 * (recurrent_uses if kind is RecurrentTransformer else 1)
    assert len(set(masks)) == len(masks)


@pytest.mark.parametrize("history", HISTORIES)
def test_dropout_is_causal(kind, history):
    model, length = make_training(kind, history=history), 4 * K - 1
    tokens = make_tokens(length, 1)
    before = np.array(model(tokens, close=False, key=KEY))
    for j in range(length):
        changed = mx.array(tokens)
        changed[0, j] = (tokens[0, j] + 1) % 7
        moved = np.abs(np.array(model(changed, close=False, key=KEY)) - before).max(axis=(0, 2))
        assert moved[:j].max(initial=0) == 0
        assert moved[j] > 1e-4


@pytest.mark.parametrize("history", HISTORIES)
def test_evaluation_drops_nothing(kind, history):
    dropping, keeping = (make_model(kind, history=history, attention_dropout=rate) for rate in (RATE, 0.0))
    tokens = make_tokens(3 * K)
    assert mx.array_equal(dropping(tokens), keeping(tokens))
    assert mx.array_equal(
        dropping.step(tokens, dropping.initial_state(2))[0], keeping.step(tokens, keeping.initial_state(2))[0]
    )


@pytest.mark.parametrize("history", HISTORIES)
def test_training_and_evaluation_use_kernels(history, monkeypatch):
    def scan(*_):
        raise RuntimeError("kernels")

    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(recurrence, "scan", scan)
    model, tokens = make_training(RecurrentTransformer, history=history, dropout=0.1), make_tokens(3 * K)
    with pytest.raises(RuntimeError, match="kernels"):
        loss_and_grad(model, tokens, tokens, 1)
    with pytest.raises(RuntimeError, match="kernels"):
        model.eval()(tokens)
