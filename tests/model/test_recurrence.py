"""Outputs and gradients equal the plain reference, streams equal whole sequences, and models are causal."""

import itertools

from mlx_rtx import ModelConfig, RecurrentTransformer, RegularTransformer, UserError, loss_and_grad
from mlx_rtx.model.layer import TransformerLayer
from mlx_rtx.model.window import clamp
from mlx_rtx.support.trees import flat

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from reference import cross_entropy, parameters, recurrent_logits, regular_logits
from tiny import HISTORIES, LENGTHS, K, make_config, make_model, make_tokens

IMAGE = {"vocab_size": 256, "out_size": 10, "tie_embeddings": False, "max_len": 1024, "dim": 32, "heads": 4}
VARIANTS = [
    {},
    {"state_norm": True},
    {"layers": 2},
    {"layers": 2, "state_norm": True},
    {"positions": "block", "activation": "gelu"},
    {"positions": "none", "tie_embeddings": False, "out_size": 5},
    {"qk_norm": True, "state_norm": True},
    {"alpha_kind": "head", "layers": 2},
    {"alpha_kind": "channel", "qk_norm": True},
    {"alpha_kind": "gated"},
    {"positions": "axial", "layers": 2},
    {"positions": "axial", "max_len": 5 * K - 1},
]


def close_to(actual, expected, tolerance=2e-5):
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(np.array(actual) - expected).max() <= tolerance * scale


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("alpha", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("history", HISTORIES)
def test_outputs_equal_the_reference(history, alpha, length):
    model, tokens = make_model(history=history, alpha=alpha), make_tokens(length)
    for close in (True, False):
        expected = recurrent_logits(np.array(tokens), parameters(model), model.config, close)
        close_to(model(tokens, close=close), expected)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("history", HISTORIES)
def test_variants_equal_the_reference(history, variant):
    model, tokens = make_model(history=history, alpha=0.37, **variant), make_tokens(5 * K - 1)
    for close in (True, False):
        expected = recurrent_logits(np.array(tokens), parameters(model), model.config, close)
        close_to(model(tokens, close=close), expected)


@pytest.mark.parametrize(
    "variant", [{}, {"qk_norm": True}, *({"positions": kind} for kind in ("block", "axial", "none"))], ids=str
)
def test_regular_equals_the_reference(variant):
    model, tokens = make_model(RegularTransformer, layers=3, **variant), make_tokens(17)
    close_to(model(tokens), regular_logits(np.array(tokens), parameters(model), model.config))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("alpha", "positions"), [(0.0, "absolute"), (0.37, "absolute"), (1.0, "absolute"), (0.37, "axial")]
)
@pytest.mark.parametrize("history", HISTORIES)
def test_gradients_equal_the_reference(history, alpha, positions, length):
    model = make_model(history=history, alpha=alpha, activation="gelu", positions=positions)
    check_gradients(model, make_tokens(length))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("history", HISTORIES)
def test_gradients_of_variants_equal_the_reference(history, variant):
    model = make_model(history=history, alpha=0.37, **{**variant, "activation": "gelu"})
    classes = model.config.outputs
    check_gradients(model, make_tokens(5 * K - 1), classes)


def check_gradients(model, tokens, classes=7):
    """Compare along a random direction of each weight with central differences of the float64 reference."""
    targets = make_tokens(min(3, tokens.shape[1]), seed=2) % classes
    loss, gradients = loss_and_grad(model, tokens, targets, segment=1)
    p, inputs, classes = parameters(model), np.array(tokens), np.array(targets)
    generator, step = np.random.default_rng(0), 1e-6

    def reference(name, change):
        return cross_entropy(recurrent_logits(inputs, p | {name: p[name] + change}, model.config), classes)

    close_to(loss, reference("embedding.tokens", 0.0))
    for name, gradient in flat(gradients).items():
        if name.endswith("alpha") and model.config.alpha in (0.0, 1.0):
            continue  # the clamp is not differentiable at the boundary; test_alpha_comes_back covers it
        direction = generator.standard_normal(p[name].shape)
        slope = (reference(name, step * direction) - reference(name, -step * direction)) / (2 * step)
        sharp = 3 if model.config.qk_norm else 1  # scores are larger, and so are rounding errors in float32
        close_to((np.array(gradient, dtype=np.float64) * direction).sum(), slope, sharp * 1e-4)


@pytest.mark.parametrize("history", HISTORIES)
def test_readings_agree_at_alpha_0_only(history):
    tokens = make_tokens(5 * K)
    same = make_model(history=history, alpha=0.0), make_model(history="hidden", alpha=0.0)
    close_to(same[0](tokens), same[1](tokens))
    hidden, output = (make_model(history=h, alpha=0.5)(tokens) for h in HISTORIES)
    assert mx.abs(hidden - output).max() > 1e-2


@pytest.mark.parametrize("last", [1, 2, K, K + 1, 3 * K])
@pytest.mark.parametrize("history", HISTORIES)
def test_last_reads_the_final_positions(history, last, kind):
    model, tokens = make_model(kind, history=history, layers=2), make_tokens(4 * K - 1)
    for close in (True, False):
        close_to(model(tokens, last=last, close=close), model(tokens, close=close)[:, -last:])


@pytest.mark.parametrize(("last", "length"), [(0, 5), (6, 5), (-1, 5), (None, 0)])
def test_bad_last_is_refused(last, length, kind):
    with pytest.raises(UserError, match=r"last=|empty"):
        make_model(kind)(make_tokens(length), last=last)


def test_outputs_not_read_are_not_computed(monkeypatch):
    """With history="hidden", reading the last block takes one τ more than the chain; reading all, a batched one."""
    model, tokens, calls = make_model(), make_tokens(6 * K), []
    tau = TransformerLayer.__call__
    monkeypatch.setattr(
        TransformerLayer, "__call__", lambda self, x, *a, **k: (calls.append(x.shape[0]), tau(self, x, *a, **k))[1]
    )
    model(tokens, last=1)
    assert calls == [2] * 6 + [2]
    calls.clear()
    model(tokens)
    assert calls == [2] * 6 + [2 * 6]


STREAMED = [
    {}, {"layers": 2}, {"state_norm": True}, {"positions": "block"}, {"positions": "axial"},
    {"alpha_kind": "channel", "qk_norm": True}, {"alpha_kind": "gated"},
]  # fmt: skip


@pytest.mark.parametrize("variant", STREAMED, ids=str)
@pytest.mark.parametrize("history", HISTORIES)
def test_streaming_equals_the_whole(history, variant, kind):
    model = make_model(kind, history=history, **variant)
    generator = np.random.default_rng(3)
    for length in LENGTHS:
        tokens = make_tokens(length)
        whole = model(tokens, close=False)
        cuts = np.unique(generator.integers(0, length + 1, 4))
        for edges in ([0, length], [*range(length + 1)], [0, *cuts[(cuts > 0) & (cuts < length)], length]):
            state, outputs = model.initial_state(2), []
            for start, end in itertools.pairwise(edges):
                logits, state = model.step(tokens[:, int(start) : int(end)], state)
                outputs.append(logits)
            close_to(mx.concatenate(outputs, axis=1), whole)
            assert state.position == length


@pytest.mark.parametrize("history", HISTORIES)
def test_state_size_is_constant(history):
    model = make_model(history=history, positions="block", layers=2)
    state, sizes = model.initial_state(1), set()
    for _ in range(5 * K):
        sizes.add(sum(array.nbytes for array in flat(state.layers).values()))
        _, state = model.step(make_tokens(1, 1), state)
    assert len(sizes) == 1


def test_a_state_can_be_used_twice(kind):
    model = make_model(kind)
    _, state = model.step(make_tokens(K + 1), model.initial_state(2))
    first, _ = model.step(make_tokens(3), state)
    second, _ = model.step(make_tokens(3), state)
    assert mx.array_equal(first, second)


@pytest.mark.parametrize("positions", ["absolute", "axial"])
@pytest.mark.parametrize("limit", [40, 41])  # 10 blocks, or a fraction of one more
def test_positions_end_with_the_longest_sequence(kind, positions, limit):
    model, tokens, refusal = make_model(kind, positions=positions, max_len=limit), make_tokens(limit + 1), []
    assert model.limit == limit
    assert model(tokens[:, :limit]).shape == (2, limit, 7)
    _, state = model.step(tokens[:, :limit], model.initial_state(2))
    for run in (
        lambda: model(tokens),
        lambda: model.step(tokens[:, :1], state),
        lambda: loss_and_grad(model, tokens, tokens),
    ):
        with pytest.raises(UserError, match=rf"length={limit + 1}.*max_len={limit}.*positions='block'") as error:
            run()
        refusal.append(str(error.value))
    assert len(set(refusal)) == 1


@pytest.mark.parametrize("positions", ["block", "none"])
def test_other_positions_have_no_end(kind, positions):
    model = make_model(kind, positions=positions)
    assert model.limit is None
    assert model(make_tokens(41)).shape == (2, 41, 7)


@pytest.mark.parametrize("positions", ["absolute", "axial"])
@pytest.mark.parametrize("history", HISTORIES)
def test_causality(history, positions, kind):
    """Changing token j changes the output at j and none before it."""
    model, length = make_model(kind, history=history, positions=positions, layers=2), 4 * K - 1
    tokens = make_tokens(length, 1)
    before = np.array(model(tokens, close=False))
    for j in range(length):
        changed = mx.array(tokens)
        changed[0, j] = (tokens[0, j] + 1) % 7
        moved = np.abs(np.array(model(changed, close=False)) - before).max(axis=(0, 2))
        assert moved[:j].max(initial=0) == 0
        assert moved[j] > 1e-4


@pytest.mark.parametrize("history", HISTORIES)
def test_memory_beyond_a_window_depends_on_alpha(history):
    """A token changes outputs 4 blocks later, at α = 0 too (h_i enters h_i+1), and more with α."""
    tokens = make_tokens(6 * K, 1)
    changed = mx.array(tokens)
    changed[0, 0] = (tokens[0, 0] + 1) % 7
    for alpha in (0.0, 0.5):
        model = make_model(history=history, alpha=alpha)
        assert mx.abs(model(changed, last=1) - model(tokens, last=1)).max() > 1e-6


@pytest.mark.parametrize(
    ("alpha", "cotangent", "passes"),
    [(0.5, 1, True), (0.5, -1, True), (-0.1, 1, False), (-0.1, -1, True), (1.1, 1, True), (1.1, -1, False)],
)
def test_alpha_comes_back(alpha, cotangent, passes):
    """Outside of [0, 1] only gradients whose descent step leads back inside are let through."""
    (value,), (gradient,) = mx.vjp(clamp, [mx.array(alpha)], [mx.array(float(cotangent))])
    assert value.item() == pytest.approx(min(max(alpha, 0), 1))
    assert gradient.item() == (cotangent if passes else 0)


@pytest.mark.parametrize("segment", [None, 1, 2])
def test_alpha_outside_has_the_same_gradient_by_segments(segment):
    model, tokens, targets = make_model(), make_tokens(6 * K), make_tokens(6 * K, seed=2)
    for alpha in (-0.01, 1.01):
        model.layers[0].alpha = mx.array(alpha)
        _, plain = loss_and_grad(model, tokens, targets, None)
        _, gradients = loss_and_grad(model, tokens, targets, segment)
        close_to(gradients["layers"][0]["alpha"], plain["layers"][0]["alpha"])


@pytest.mark.parametrize("kind", ["scalar", "head", "channel", "gated"])
def test_initial_alpha_does_not_depend_on_its_kind(kind):
    """Untrained models with any kind of α have the same outputs."""
    model, same = (RecurrentTransformer(make_config(alpha=0.3, alpha_kind=k)) for k in (kind, "scalar"))
    same.update(
        tree_unflatten([(n, a) for n, a in flat(model.parameters()).items() if not n.endswith(("alpha", "gate"))])
    )
    tokens = make_tokens(4 * K)
    close_to(model(tokens), same(tokens))
    assert [alpha.item() for alpha in model.alphas] == pytest.approx([0.3])


@pytest.mark.parametrize("kind", ["scalar", "head", "channel", "gated"])
def test_frozen_alpha_has_no_gradient(kind):
    model = make_model(train_alpha=False, alpha_kind=kind)
    _, gradients = loss_and_grad(model, make_tokens(9), make_tokens(9))
    names = list(flat(gradients))
    assert names
    assert not any("alpha" in name or "gate" in name for name in names)


@pytest.mark.parametrize(
    ("kind", "config", "count"),
    [
        ("recurrent", IMAGE, 53_665),
        ("recurrent", {"vocab_size": 16, "max_len": 4128, "dim": 96, "heads": 6}, 508_705),
        ("recurrent", {"vocab_size": 65, "max_len": 256, "dim": 384, "heads": 6}, 1_893_889),
        ("regular", {**IMAGE, "layers": 4}, 90_721 - 1),  # the paper's program has an unused α in the regular model
        ("regular", {"vocab_size": 65, "max_len": 256, "dim": 384, "heads": 6, "layers": 6}, 10_745_088),
    ],
)
def test_parameter_counts_agree_with_the_paper(kind, config, count):
    model = {"recurrent": RecurrentTransformer, "regular": RegularTransformer}[kind](ModelConfig(block=32, **config))
    assert sum(array.size for array in flat(model.parameters()).values()) == count
    assert sum(array.size for array in flat(model.trainable_parameters()).values()) == count
