"""Invalid requests for generation are refused in one clear line, before anything is generated."""

from mlx_rtx import Characters, RecurrentTransformer, make_sampler, stream_generate
from mlx_rtx.generation.decoding import generate, token_stream
from mlx_rtx.generation.saved_state import save_stream
from mlx_rtx.support.errors import UserError

import mlx.core as mx
import numpy as np
import pytest

from tiny import complains, make_model

V, LETTERS = 7, Characters("abcdefg")


@pytest.mark.parametrize(
    ("gives", "words"),
    [
        (lambda logits: mx.full((len(logits),), 10**6), "1000000 at"),
        (lambda logits: mx.full((len(logits),), -100), "-100 at"),
        (lambda logits: mx.full((len(logits),), V), f"{V} at"),
        (lambda logits: logits.max(axis=-1), "has dtype float32"),
        (lambda logits: mx.argmax(logits, axis=-1, keepdims=True), r"shape \(1, 1\)"),
        (lambda logits: mx.array(3), r"shape \(\)"),
        (lambda logits: 3, "a int"),
    ],
)
def test_invalid_tokens_from_a_users_sampler_are_refused(gives, words):
    model = make_model()
    with pytest.raises(UserError, match=f"^sampler: .*{words}"):
        generate(model, LETTERS, "abc", sampler=lambda logits, _: gives(logits))
    likeliest = generate(model, LETTERS, "abc", sampler=lambda logits, _: mx.argmax(logits, axis=-1))
    assert likeliest == generate(model, LETTERS, "abc")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompts": [[-100]]}, "prompts: -100"),
        ({"prompts": [[1], [2, V]], "seeds": (0, 1)}, f"prompts: {V}"),
        ({"prompts": [[2**40]]}, "prompts: 1099511627776"),
        ({"prompts": [[1.5]]}, "prompts: give a list"),
        ({"prompts": ["abc"]}, "prompts: give a list"),
        ({"prompts": [1, 2]}, "prompts: give a list"),
        ({"prompts": []}, "prompts: empty"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 2.5}, "max_tokens=2.5"),
        ({"seeds": (0, 1)}, "seeds: 2 for 1"),
        ({"seeds": (-1,)}, "seed=-1"),
        ({"seeds": (2**32,)}, "seed=4294967296"),
        ({"sampler": 0.8}, "sampler: is a float"),
        ({"model": None}, "model: is a NoneType"),
        ({"model": make_model(tie_embeddings=False, out_size=3)}, "model: has 3 outputs"),
        ({"stream": make_model().initial_state(1)}, "stream: is a State"),
    ],
)
def test_invalid_requests_for_tokens(wrong, words):
    request = {"model": make_model(), "prompts": [[1, 2]], "max_tokens": 3, **wrong}
    complains(lambda: list(token_stream(**request)), words=f"^{words}")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompts": 5}, "prompts: give text"),
        ({"prompts": [[1, 2]]}, "prompts: give text"),
        ({"prompts": b"abc"}, "prompts: give text"),
        ({"vocabulary": Characters("abc")}, "vocabulary: must have the 7 tokens"),
        ({"vocabulary": "abcdefg"}, "vocabulary: must have the 7 tokens"),
        ({"max_tokens": float("inf")}, "max_tokens=inf"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_invalid_requests_for_text(wrong, words):
    request = {"model": make_model(), "vocabulary": LETTERS, "prompts": "abc", **wrong}
    complains(lambda: generate(**request), words=f"^{words}")


def stopped_stream(kind=RecurrentTransformer, **changes):
    *_, response = stream_generate(make_model(kind, **changes), LETTERS, "abc", max_tokens=3)
    return response.stream


def test_invalid_streams_to_continue(kind, tmp_path):
    model, stream = make_model(kind), stopped_stream(kind)
    layers = tuple(type(layer)(*(part * np.nan for part in layer)) if isinstance(layer, tuple) else layer * np.nan
                   for layer in stream.state.layers)  # fmt: skip
    for wrong, words in (
        (stream._replace(pending=mx.array([[10**6]])), "pending: 1000000 at"),
        (stream._replace(pending=mx.array([[-100]])), "pending: -100 at"),
        (stream._replace(pending=mx.array([[1.5]])), "pending: has dtype float32"),
        (stream._replace(pending=mx.array([1])), r"pending tokens have shape \(1,\)"),
        (stopped_stream(kind, dim=16), "does not fit this model"),
        (stream._replace(state=stream.state._replace(layers=layers)), "not finite"),
    ):
        complains(lambda wrong=wrong: generate(model, LETTERS, "a", stream=wrong), words=words)
        complains(lambda wrong=wrong: save_stream(tmp_path / "s", model, wrong), words=words)
    assert not (tmp_path / "s").exists()


def test_samplers_and_their_arguments():
    for rules in (
        {"temp": np.nan}, {"temp": np.inf}, {"temp": "1"}, {"temp": 1e-50}, {"temp": -1}, {"top_k": 1.5}, {"top_k": -1},
        {"top_p": np.nan}, {"top_p": 0}, {"min_p": "a"}, {"min_p": 2}, {"top_k": True},
    ):  # fmt: skip
        complains(lambda rules=rules: make_sampler(**rules), words=f"^{next(iter(rules))}=")
    logits, keys = mx.zeros((2, V)), mx.zeros((2, 2), mx.uint32)
    for sampler in (make_sampler(), make_sampler(temp=1.0)):
        for wrong in (
            (logits[0], keys), (logits[None], keys), (logits, keys[0]), (logits, keys[:1]), (logits, 3),
            (logits.astype(mx.int32), keys), (logits, keys.astype(mx.float32)), (np.zeros((2, V)), keys),
            (logits[:, :0], keys),
        ):  # fmt: skip
            complains(sampler, *wrong, words="^(logits|keys)")
