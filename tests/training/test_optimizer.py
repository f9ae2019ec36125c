"""Adam, Muon, clipping, and the guard against updates that are not finite."""

from mlx_rtx import ModelConfig, RecurrentTransformer, UserError
from mlx_rtx.support.compiled import Execution
from mlx_rtx.support.trees import flat
from mlx_rtx.training.averaging import WeightAverage
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from tiny import make_model


def adam(w, gradients, lr, clip, beta2=0.999, decay=0.0):
    """Adam of Kingma and Ba with bias correction, after clipping by the norm; decay as in Loshchilov and Hutter."""
    m = v = np.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        norm = np.sqrt((g**2).sum())
        g = g * min(1, clip / norm) if clip else g
        m, v = 0.9 * m + 0.1 * g, beta2 * v + (1 - beta2) * g**2
        w = w * (1 - lr * decay) - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - beta2**t)) + 1e-8)
    return w


@pytest.mark.parametrize(
    ("clip", "beta2", "decay"), [(0, 0.999, 0), (0.5, 0.999, 0), (100.0, 0.95, 0), (0.5, 0.95, 2.0)]
)
def test_steps_match_a_reference_implementation_of_adam(clip, beta2, decay):
    model, generator = make_model(), np.random.default_rng(0)
    config = OptimizerConfig(lr=0.01, clip=clip, beta2=beta2, weight_decay=decay)
    optimizer = make_optimizer(config, model)
    names, weights = zip(*tree_flatten(model.parameters()), strict=True)
    flat = np.concatenate([np.array(w).ravel() for w in weights])
    decays = np.concatenate([np.full(w.size, decay if w.ndim > 1 else 0.0) for w in weights])  # on matrices only
    gradients = [generator.standard_normal(flat.shape).astype(np.float32) for _ in range(5)]
    for gradient in gradients:
        parts = np.split(gradient, np.cumsum([w.size for w in weights])[:-1])
        shaped = {n: mx.array(p.reshape(w.shape)) for n, p, w in zip(names, parts, weights, strict=True)}
        assert apply_gradients(model, optimizer, _fill(model.parameters(), shaped), config).taken.item()
    after = np.concatenate([np.array(w).ravel() for _, w in tree_flatten(model.parameters())])
    assert np.abs(after - adam(flat, gradients, 0.01, clip, beta2, decays)).max() < 1e-4


def _fill(tree, values):
    from mlx.utils import tree_unflatten

    return tree_unflatten([(name, values[name]) for name, _ in tree_flatten(tree)])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["adam", "muon"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, decay, kind):
    model = make_model()
    config = OptimizerConfig(weight_decay=decay, optimizer=kind)
    optimizer = make_optimizer(config, model)
    good = tree_map(mx.ones_like, model.trainable_parameters())
    assert apply_gradients(model, optimizer, good, config).taken.item()
    before = {n: np.array(a) for n, a in tree_flatten([model.parameters(), optimizer.state])}
    spoilt = tree_map(mx.ones_like, model.trainable_parameters())
    spoilt["embedding"]["tokens"][0, 0] = bad
    assert not apply_gradients(model, optimizer, spoilt, config).taken.item()
    for name, array in tree_flatten([model.parameters(), optimizer.state]):
        assert np.array_equal(np.array(array), before[name]), name
    assert apply_gradients(model, optimizer, good, config).taken.item()


def test_matrices_are_aligned_for_products_on_a_gpu():
    """Regression test: as slices of a vector they had arbitrary offsets, which cuBLAS rejects."""
    model = make_model(layers=2, dim=6, heads=2, vocab_size=7)
    average = WeightAverage(model, 0.9, Execution())
    optimizer = make_optimizer(config := OptimizerConfig(), model)
    apply_gradients(model, optimizer, tree_map(mx.ones_like, model.trainable_parameters()), config)
    average.update(mx.array(True))
    for tree in (model.trainable_parameters(), average.weights):
        matrices = [mx.zeros((4, 4)), *(array for array in flat(tree).values() if array.ndim == 2)]
        mx.eval(matrices)
        own, *others = (np.asarray(memoryview(array)).ctypes.data % 16 for array in matrices)  # of a buffer's beginning
        assert set(others) == {own}


def orthogonalised(matrix, steps=5):
    """The Newton–Schulz iteration of Jordan et al. (2024), in float64."""
    X = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    X = X / (np.linalg.norm(X) + 1e-7)
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X.T if matrix.shape[0] > matrix.shape[1] else X


def muon(w, gradients, lr, decay):
    """Muon with Nesterov momentum 0.95, scaled as in Liu et al. (2025), with decoupled decay."""
    v = np.zeros_like(w)
    for g in gradients:
        v = 0.95 * v + 0.05 * g
        update = 0.2 * np.sqrt(max(w.shape)) * orthogonalised(0.05 * g + 0.95 * v)
        w = w * (1 - lr * decay) - lr * update
    return w


@pytest.mark.parametrize("muon_lr", [None, 0.03])
@pytest.mark.parametrize("decay", [0.0, 2.0])
def test_muon_updates_the_layers_matrices_and_adam_all_other_parameters(kind, decay, muon_lr):
    """Queries, keys and values separately; each optimizer has its own rate."""
    model, generator = make_model(kind, tie_embeddings=False), np.random.default_rng(0)
    config = OptimizerConfig(optimizer="muon", lr=0.01, muon_lr=muon_lr, clip=0, weight_decay=decay)
    matrix_lr = muon_lr or 0.01
    optimizer = make_optimizer(config, model)
    before = {name: np.array(w, np.float64) for name, w in tree_flatten(model.parameters())}
    gradients = [{name: generator.standard_normal(w.shape) for name, w in before.items()} for _ in range(3)]
    for gradient in gradients:
        shaped = {name: mx.array(g.astype(np.float32)) for name, g in gradient.items()}
        assert apply_gradients(model, optimizer, _fill(model.parameters(), shaped), config).taken.item()
    for name, found in tree_flatten(model.parameters()):
        own, w = [gradient[name] for gradient in gradients], before[name]
        last = name.rpartition(".")[2]
        if last == "qkv":
            parts = zip(np.split(w, 3, axis=1), zip(*(np.split(g, 3, axis=1) for g in own), strict=True), strict=True)
            expected = np.concatenate([muon(part, steps, matrix_lr, decay) for part, steps in parts], axis=1)
        elif last in ("attention_out", "mlp_in", "mlp_out"):
            expected = muon(w, own, matrix_lr, decay)
        else:
            expected = adam(w, own, 0.01, 0, decay=decay if w.ndim > 1 else 0.0)
        assert np.abs(np.array(found) - expected).max() < 1e-4, name


def test_updates_of_muon_and_adam_have_similar_sizes():
    """The root mean square of an update is 0.2 to 1.2 times the rate, so one rate suits both."""
    model, generator = make_model(dim=32, heads=4), np.random.default_rng(0)
    config = OptimizerConfig(optimizer="muon", lr=0.01, clip=0)
    optimizer = make_optimizer(config, model)
    before = dict(tree_flatten(model.parameters()))
    drawn = {name: mx.array(generator.standard_normal(w.shape).astype(np.float32)) for name, w in before.items()}
    apply_gradients(model, optimizer, _fill(model.parameters(), drawn), config)
    for name, after in tree_flatten(model.parameters()):
        size = float(mx.sqrt(mx.square(after - before[name]).mean()))
        assert 0.001 < size < 0.012, name


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muons_own_rate_follows_the_schedule(decay):
    """At half the learning rate of a step, both updates are half as large."""
    moves = {}
    for rate in (0.01, 0.005):
        model, generator = make_model(), np.random.default_rng(0)
        config = OptimizerConfig(optimizer="muon", lr=0.01, muon_lr=0.08, clip=0, weight_decay=decay)
        optimizer = make_optimizer(config, model)
        optimizer.learning_rate = rate
        before = dict(tree_flatten(model.parameters()))
        drawn = {name: mx.array(generator.standard_normal(w.shape).astype(np.float32)) for name, w in before.items()}
        apply_gradients(model, optimizer, _fill(model.parameters(), drawn), config)
        moves[rate] = {name: np.array(w - before[name]) for name, w in tree_flatten(model.parameters())}
    for name, move in moves[0.01].items():
        assert np.abs(move - 2 * moves[0.005][name]).max() < 1e-5, name


def test_muon_lr_equal_to_lr_is_the_default(kind):
    after = []
    for muon_lr in (None, 0.02):
        model = make_model(kind)
        config = OptimizerConfig(optimizer="muon", lr=0.02, muon_lr=muon_lr, weight_decay=0.1)
        ones = tree_map(mx.ones_like, model.trainable_parameters())
        apply_gradients(model, make_optimizer(config, model), ones, config)
        after.append(dict(tree_flatten(model.parameters())))
    for name, array in after[0].items():
        assert mx.array_equal(array, after[1][name]), name


@pytest.mark.parametrize(
    "wrong",
    [
        {"average": 1.0},
        {"skip_above": 1.0},
        {"skip_above": -2.0},
        {"skip_above": float("inf")},
        {"average": -0.1},
        {"muon_lr": 0.0, "optimizer": "muon"},
        {"muon_lr": float("nan"), "optimizer": "muon"},
        {"lr": 0},
        {"lr": float("inf")},
        {"warm_up": -1},
        {"optimizer": "sgd"},
        {"clip": -1},
        {"beta2": 1.0},
        {"weight_decay": -0.1},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)


def test_more_parameters_than_an_array_can_hold_are_refused():
    """Before any of them is computed."""
    model = RecurrentTransformer(ModelConfig(vocab_size=16, max_len=64, dim=2**14, heads=2, block=4))
    with pytest.raises(UserError, match="3,222,585,345 parameters: at most 2,147,483,647 can be trained"):
        make_optimizer(OptimizerConfig(), model)
