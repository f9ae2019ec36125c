"""Adam as the books have it, clipping, and the guard."""

from mlx_rtx import UserError
from mlx_rtx.training.optimizer import OptimizerConfig, apply_gradients, make_optimizer

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from tiny import make_model


def adam(w, gradients, lr, clip, beta2=0.999, decay=0.0):
    """Kingma and Ba, with bias correction, after clipping by the norm; decay as Loshchilov and Hutter have it."""
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
def test_steps_are_adams(clip, beta2, decay):
    model, generator = make_model(), np.random.default_rng(0)
    optimizer = make_optimizer(OptimizerConfig(lr=0.01, clip=clip, beta2=beta2, weight_decay=decay), model)
    names, weights = zip(*tree_flatten(model.parameters()), strict=True)
    flat = np.concatenate([np.array(w).ravel() for w in weights])
    decays = np.concatenate([np.full(w.size, decay if w.ndim > 1 else 0.0) for w in weights])  # on matrices only
    gradients = [generator.standard_normal(flat.shape).astype(np.float32) for _ in range(5)]
    for gradient in gradients:
        parts = np.split(gradient, np.cumsum([w.size for w in weights])[:-1])
        shaped = {n: mx.array(p.reshape(w.shape)) for n, p, w in zip(names, parts, weights, strict=True)}
        assert apply_gradients(model, optimizer, _fill(model.parameters(), shaped), clip).item()
    after = np.concatenate([np.array(w).ravel() for _, w in tree_flatten(model.parameters())])
    assert np.abs(after - adam(flat, gradients, 0.01, clip, beta2, decays)).max() < 1e-4


def _fill(tree, values):
    from mlx.utils import tree_unflatten

    return tree_unflatten([(name, values[name]) for name, _ in tree_flatten(tree)])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, decay):
    model = make_model()
    optimizer = make_optimizer(OptimizerConfig(weight_decay=decay), model)
    good = tree_map(mx.ones_like, model.trainable_parameters())
    assert apply_gradients(model, optimizer, good, 1.0).item()
    before = {n: np.array(a) for n, a in tree_flatten([model.parameters(), optimizer.state])}
    spoilt = tree_map(mx.ones_like, model.trainable_parameters())
    spoilt["embedding"]["tokens"][0, 0] = bad
    assert not apply_gradients(model, optimizer, spoilt, 1.0).item()
    for name, array in tree_flatten([model.parameters(), optimizer.state]):
        assert np.array_equal(np.array(array), before[name]), name
    assert apply_gradients(model, optimizer, good, 1.0).item()


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"clip": -1}, {"beta2": 1.0}, {"weight_decay": -0.1}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        OptimizerConfig(**wrong)
