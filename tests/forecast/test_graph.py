"""Traversal of a traced graph: what is counted, and that all computation is covered."""

from mlx_rtx import ModelConfig, loss_and_grad
from mlx_rtx.forecast.graph import CountedExecution, Work, count_work
from mlx_rtx.forecast.step_benchmark import StepBenchmark
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.trees import arrays

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from tiny import HISTORIES, K, make_model, make_tokens

POSITIONS = ["absolute", "block", "axial", "none"]


def test_work_counted_by_hand():
    """Two products and a sum; a transpose and a broadcast launch and move nothing."""
    a, b, row = mx.zeros((3, 4)), mx.zeros((5, 4)), mx.zeros((5,))
    product, total = 4 * (3 * 4 + 5 * 4 + 3 * 5), 4 * (3 * 5 + 5 + 3 * 5)
    assert count_work(lambda a, b, row: a @ b.T + row, a, b, row) == Work(2, 3 * 4 * 5, product + total)


def test_trees_and_constants_are_accepted_as_arguments():
    def function(tree, factor, nothing):
        assert nothing is None
        return {"scaled": tree["x"] * factor, "as it is": tree["y"]}

    tree = {"x": mx.zeros((8,)), "y": mx.zeros((8,))}
    assert count_work(function, tree, 3, None).launches == 1


def test_the_work_of_several_functions_is_summed():
    """Each is traced separately, so that equal computations in two of them count twice."""
    execution, model, x = CountedExecution(), make_model(), mx.ones((8,))

    def double(model, x):
        return 2 * x

    y = execution(model, double, x)
    execution.queue(y)
    execution.wait(y)
    execution(model, double, x)
    assert execution.work.launches == 2
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize("changes", [{"positions": p} for p in POSITIONS] + [{"attention_dropout": 0.1}], ids=str)
@pytest.mark.parametrize("history", HISTORIES)
def test_both_passes_over_a_segment_are_counted(history, changes):
    """A segment runs twice on the same arrays, which the tracer would merge in a single graph."""
    benchmark = StepBenchmark(make_config(history=history, dropout=0.1, **changes), segment=2)
    assert benchmark.work(3, 64, 8).multiply_adds == benchmark.executed(3, 64, 8)


@pytest.mark.parametrize("kind", ["recurrent", "regular"])
def test_a_token_of_a_stream_does_not_copy_the_cache(kind):
    """In addition to the weights, a token reads and writes each cache to insert its row, and then reads it."""
    model = MODELS[kind](make_config(block=64, positions="block"), "exportable")
    model.eval()
    state = model.initial_state(1)
    for n in (300, 1):
        _, state = model.step(mx.zeros((1, n), mx.int32), state)
    mx.eval(model.parameters(), state)
    moved = count_work(model.step, mx.zeros((1, 1), mx.int32), state, model.parameters()).bytes
    weights, caches = (sum(array.nbytes for array in arrays(tree)) for tree in (model.parameters(), state))
    assert moved < 2 * weights + 4 * caches


@pytest.mark.parametrize("targets", [3, 20, 99])
@pytest.mark.parametrize("mode", ["training", "forward"])
@pytest.mark.parametrize("model", ["recurrent", "regular"])
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("attention", [0.0, 0.1])
def test_the_work_of_a_long_step_is_extrapolated_from_short_ones(attention, batch, model, mode, targets, monkeypatch):
    monkeypatch.setattr("mlx_rtx.forecast.step_benchmark.SEGMENT", 2)
    monkeypatch.setattr("mlx_rtx.training.evaluation.SEGMENT", 2)
    benchmark = StepBenchmark(make_config(dropout=0.1, attention_dropout=attention), model, mode, segment=2)
    assert benchmark.work(batch, 99, targets) == benchmark.count(batch, 99, targets)


@pytest.mark.parametrize("more", [{}, {"alpha_kind": "head", "qk_norm": True}, {"alpha_kind": "gated"}], ids=str)
@pytest.mark.parametrize("history", HISTORIES)
def test_an_exportable_model_equals_the_default_one(history, more):
    """Loss and gradient agree; operations with custom gradients are replaced by those MLX differentiates."""
    changes = {"history": history, "state_norm": True, "alpha": 0.4, **more}
    plain, exportable = make_model(**changes), make_model(implementation="exportable", **changes)
    tokens = make_tokens(6 * K - 1)
    (loss, gradients), (found, found_gradients) = (loss_and_grad(m, tokens, tokens, 2) for m in (plain, exportable))
    assert mx.allclose(found, loss)
    named = dict(tree_flatten(found_gradients))
    for name, gradient in tree_flatten(gradients):
        assert mx.allclose(named[name], gradient, rtol=1e-4, atol=1e-5), name
    if plain.config.alpha_kind != "gated":  # it has no custom gradient
        with pytest.raises(ValueError, match="CustomTransforms"):
            count_work(lambda tokens: plain(tokens), tokens)
    assert count_work(lambda tokens: exportable(tokens), tokens).launches > 0


def make_config(**changes):
    return ModelConfig(**{"vocab_size": 7, "max_len": 99, "dim": 8, "heads": 2, "block": 4, **changes})


@pytest.mark.parametrize(
    ("segment", "length", "targets"), [(16, 4 * 44, 3), (33, 4 * 71 + 1, 4 * 71 + 1), (70, 4 * 70, 9)]
)
@pytest.mark.parametrize("history", HISTORIES)
def test_the_work_of_long_segments_is_extrapolated_from_short_ones(history, segment, length, targets, monkeypatch):
    """Within 1 %, although the bytes of long segments grow with the square of their length."""
    benchmark = StepBenchmark(make_config(history=history, max_len=300), segment=segment)
    found, exact = benchmark.work(2, length, targets), benchmark.count(2, length, targets)
    assert list(found) == pytest.approx(list(exact), rel=0.01)
    monkeypatch.setattr(StepBenchmark, "count", lambda self, batch, length, _: Work(length, self.segment, batch))
    assert benchmark.work(2, 4 * 10**9, targets).launches == pytest.approx(4 * 10**9, rel=0.01)  # and quickly


def test_the_work_of_layers_is_extrapolated():
    few, many = (StepBenchmark(make_config(layers=layers), segment=2).work(2, 40, 3) for layers in (5, 1000))
    assert list(many) == pytest.approx([200 * a for a in few], rel=0.1)
    exact = StepBenchmark(make_config(layers=5), segment=2).count(2, 40, 3)
    assert list(few) == pytest.approx(list(exact), rel=0.01)
