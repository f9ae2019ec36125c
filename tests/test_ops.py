"""Counts of operations: against the paper's figures, and against a walk over the traced graph."""

import math

import mlx.core as mx
import pytest
from conftest import HISTORIES, K, make_model, make_tokens
from mlx.utils import tree_flatten

from mlx_rtx import RecurrentTransformer, RegularTransformer, UserError, gradient, loss_and_grad, recurrence
from mlx_rtx.config import Architecture
from mlx_rtx.ops import executed_ops, paper_ops, training_ops, true_ops

NAMES = {RecurrentTransformer: "recurrent", RegularTransformer: "regular"}


@pytest.mark.parametrize(
    ("dim", "block", "length", "layers", "model", "printed"),
    [
        (32, 32, 1024, 1, "recurrent", "6.29E+06"),
        (32, 32, 1024, 1, "regular", "3.46E+07"),
        (32, 32, 1024, 4, "regular", "1.38E+08"),
        (96, 32, 4128, 1, "recurrent", "1.27E+08"),  # the paper prints 2.5E7, its formula at D = 32
        (384, 16, 256, 1, "recurrent", "8.18E+07"),
        (384, 16, 256, 1, "regular", "6.29E+07"),
        (384, 16, 256, 6, "regular", "3.77E+08"),
    ],
)
def test_the_papers_figures(dim, block, length, layers, model, printed):
    config = Architecture(dim=dim, heads=1, block=block, layers=layers)
    assert f"{paper_ops(config, length, model):.2E}" == printed


@pytest.mark.parametrize(
    ("model", "expected"),
    [("recurrent", 2 * (24 * 40 * 64 + 8 * 40 * 4 * 8)), ("regular", 2 * (12 * 40 * 64 + 2 * 1600 * 8))],
)
def test_true_multiply_adds_by_hand(model, expected):
    assert true_ops(Architecture(dim=8, heads=2, block=4, layers=2), 40, model) == expected


def multiply_adds(function, *arguments):
    """Multiply-adds of every matrix product in the graph of a function."""
    graph = []
    mx.export_function(graph.append, function, *arguments)
    total = 0
    for node in graph:
        if node["type"] == "primitive" and node["name"] in ("Matmul", "AddMM"):
            (_, left, _), (_, right, _) = node["inputs"][:2]
            total += math.prod(left) * right[-1]  # (…, n, m) @ (…, m, p): n m p a matrix
        assert node.get("name") not in ("ScaledDotProductAttention", "BlockMaskedMM", "GatherMM")
    return total


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("last", [None, 1, K, K + 1])
@pytest.mark.parametrize("length", [K - 1, K, 2 * K, 5 * K - 1])
@pytest.mark.parametrize("history", HISTORIES)
def test_what_is_executed_is_what_the_graph_holds(kind, history, length, last, close, monkeypatch):
    monkeypatch.setattr(recurrence, "clamp", lambda alpha: mx.clip(alpha, 0, 1))  # the graph of the other has no name
    model, batch = make_model(kind, history=history, layers=2, positions="block"), 3
    mx.eval(model.parameters())
    last = None if last is None else min(last, length)
    with mx.stream(mx.cpu):
        found = multiply_adds(lambda tokens: model(tokens, last, close), make_tokens(length, batch))
    assert found == batch * executed_ops(model.config, length, NAMES[kind], last, close)


@pytest.mark.parametrize("segment", [None, 1, 2, 3])
@pytest.mark.parametrize("targets", [1, K + 1, 5 * K - 1])
@pytest.mark.parametrize("history", HISTORIES)
def test_what_training_executes_is_what_its_graph_holds(kind, history, targets, segment, monkeypatch):
    monkeypatch.setattr(recurrence, "clamp", lambda alpha: mx.clip(alpha, 0, 1))
    monkeypatch.setattr(gradient, "clamp", lambda alpha: mx.clip(alpha, 0, 1))
    model, length, batch = make_model(kind, history=history, layers=2, positions="block"), 5 * K - 1, 3
    evaluated = []
    for name in ("eval", "async_eval"):  # the whole step becomes one graph, whose ends are what is evaluated
        monkeypatch.setattr(mx, name, lambda *trees: evaluated.extend(array for _, array in tree_flatten(trees)))

    def step(tokens, classes):
        evaluated.clear()
        loss_and_grad(model, tokens, classes, segment)
        return list(evaluated)

    found = multiply_adds(step, make_tokens(length, batch), make_tokens(targets, batch, seed=2))
    assert found == batch * training_ops(model.config, length, targets, NAMES[kind], segment)


def test_reading_more_than_there_is():
    with pytest.raises(UserError, match="last=9"):
        executed_ops(make_model().config, 8, last=9)
