"""Matrix products in bfloat16: close to those in float32; everything else is in float32."""

import json

from mlx_rtx import kernels, load, loss_and_grad, train
from mlx_rtx.model import recurrence
from mlx_rtx.model.segment import Segment
from mlx_rtx.training.stored_settings import from_stored

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tiny import HISTORIES, K, make_model, make_tokens

ROUNDING = 2**-8  # of a number to bfloat16


@pytest.mark.parametrize(
    "variant",
    [{}, {"dropout": 0.4, "activation": "gelu"}, {"attention_dropout": 0.4}, {"state_norm": True}, {"qk_norm": True}],
    ids=str,
)
@pytest.mark.parametrize("history", HISTORIES)
def test_bfloat16_equals_float32_up_to_rounding_error(history, variant, kind):
    tokens, key = make_tokens(6 * K - 1), mx.random.key(5)
    logits, gradients = {}, {}
    for dtype in ("float32", "bfloat16"):
        model = make_model(kind, dtype=dtype, history=history, **variant)
        model.train()
        logits[dtype] = model(tokens, key=key)
        _, found = loss_and_grad(model, tokens, tokens, 2, key=key)
        arrays = [array for _, array in tree_flatten([found, model.parameters()])]
        assert {array.dtype for array in [logits[dtype], *arrays]} == {mx.float32}
        gradients[dtype] = mx.concatenate([array.reshape(-1) for _, array in tree_flatten(found)])
    for values in (logits, gradients):
        exact, found = np.array(values["float32"]), np.array(values["bfloat16"])
        most = (
            64 if "qk_norm" in variant else 16
        ) * ROUNDING  # its scores are larger, and so are their rounding errors
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert 0 < error < most


def test_products_are_in_bfloat16_and_the_carry_is_not():
    model, tokens = make_model(dtype="bfloat16"), make_tokens(3 * K)
    weights = model.fold_weights()
    (carry,) = model.run(weights, Segment(tokens)).carry
    assert {array.dtype for array in carry} == {mx.float32}
    tau = model.layers[0].tau
    assert {weight.dtype for weight in tau.cast(weights.layers[0].tau)} == {mx.bfloat16}


def test_kernels_are_only_for_float32(monkeypatch):
    def scan(*_):
        raise RuntimeError("kernels")

    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(recurrence, "scan", scan)
    with pytest.raises(RuntimeError, match="kernels"):
        make_model()(make_tokens(2 * K))
    for plain in ({"dtype": "bfloat16"}, {"implementation": "plain"}, {"implementation": "exportable"}):
        assert make_model(**plain)(make_tokens(2 * K)).shape[1] == 2 * K


def test_a_stream_runs_in_float32():
    """One token at a time reads each weight once, so bfloat16 would save nothing and only add rounding errors."""
    exact, model, tokens = make_model(), make_model(dtype="bfloat16"), make_tokens(3 * K)
    expected, _ = exact.step(tokens, exact.initial_state(2))
    found, _ = model.step(tokens, model.initial_state(2))
    assert mx.array_equal(found, expected)


def test_a_run_records_bfloat16(tmp_path):
    sizes = ["--noise", "16", "--dim", "8", "--heads", "2", "--block", "8", "--samples", "16", "--batch", "8"]
    train.main(["copy", *sizes, "--dtype", "bfloat16", "--out", str(tmp_path / "run")])
    model, config = load(tmp_path / "run")
    assert config.dtype == "bfloat16"
    assert model.layers[0].tau.dtype == mx.bfloat16
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    del stored["model"]["dtype"]  # as in runs stored before the setting existed
    assert from_stored(stored)[1].architecture.dtype == "float32"
