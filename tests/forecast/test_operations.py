"""Counts of operations, compared with the paper's figures and with the traced graph."""

from mlx_rtx import RecurrentTransformer, RegularTransformer, UserError
from mlx_rtx.forecast.graph import CountedExecution, count_work
from mlx_rtx.forecast.operations import executed_ops, paper_ops, training_ops, true_ops
from mlx_rtx.model.config import Architecture
from mlx_rtx.training.gradient import carried_loss_and_grad

import mlx.core as mx
import pytest

from tiny import HISTORIES, K, make_model, make_tokens

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


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("last", [None, 1, K, K + 1])
@pytest.mark.parametrize("length", [K - 1, K, 2 * K, 5 * K - 1])
@pytest.mark.parametrize("history", HISTORIES)
def test_executed_operations_match_the_graph(kind, history, length, last, close):
    model, batch = make_model(kind, implementation="exportable", history=history, layers=2, positions="block"), 3
    mx.eval(model.parameters())
    last = None if last is None else min(last, length)
    with mx.stream(mx.cpu):
        found = count_work(lambda tokens: model(tokens, last, close), make_tokens(length, batch))
    assert found.multiply_adds == batch * executed_ops(model.config, length, NAMES[kind], last)


@pytest.mark.parametrize("segment", [None, 1, 2, 3])
@pytest.mark.parametrize("targets", [1, K + 1, 5 * K - 1])
@pytest.mark.parametrize("history", HISTORIES)
def test_training_operations_match_the_graph(kind, history, targets, segment):
    model = make_model(kind, implementation="exportable", history=history, layers=2, positions="block")
    length, batch, execution = 5 * K - 1, 3, CountedExecution()
    tokens, classes = make_tokens(length, batch), make_tokens(targets, batch, seed=2)
    carried_loss_and_grad(model, tokens, classes, None, segment=segment, execution=execution)
    assert execution.work.multiply_adds == batch * training_ops(model.config, length, targets, NAMES[kind], segment)


def test_more_outputs_than_positions_are_refused():
    with pytest.raises(UserError, match="last=9"):
        executed_ops(make_model().config, 8, last=9)
