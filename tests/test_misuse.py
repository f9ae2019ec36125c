"""Wrong arguments are refused in one clear line by every public function; nothing is read or written out of bounds."""

from dataclasses import fields
from typing import get_args, get_type_hints

from mlx_rtx import (
    Characters,
    ModelConfig,
    RecurrentTransformer,
    RegularTransformer,
    UserError,
    load,
    load_vocabulary,
    loss_and_grad,
    make_sampler,
)
from mlx_rtx.generation.decoding import token_stream
from mlx_rtx.generation.saved_state import load_stream
from mlx_rtx.model.base import Transformer
from mlx_rtx.tasks import CopyTask, Sequences
from mlx_rtx.tasks.cifar import Images
from mlx_rtx.tasks.image import ImageData
from mlx_rtx.tasks.subwords import train_tokenizer
from mlx_rtx.tasks.text_file import Text
from mlx_rtx.training.evaluation import evaluate
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.step import TrainingStep

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny import TINY, K, complains, make_config, make_model, make_tokens, make_trainer, text_run

V, L = 7, 2 * K + 1  # of the models in `tiny`
MODELS = {kind: make_model(kind) for kind in (RecurrentTransformer, RegularTransformer)}
GOOD, LETTERS = make_tokens(L), Characters("abcdefg")
READS_TOKENS = {
    "call": lambda model, tokens: model(tokens),
    "step": lambda model, tokens: model.step(tokens, model.initial_state(2)),
    "loss_and_grad": lambda model, tokens: loss_and_grad(model, tokens, GOOD[:, :1]),
    "TrainingStep": lambda model, tokens: TrainingStep(model, OptimizerConfig(), 1)(tokens, GOOD[:, :1], 1e-3),
    "evaluate": lambda model, tokens: evaluate(model, [Sequences(L, lambda *_: tokens, GOOD)]),
}
READS_TARGETS = {
    "loss_and_grad": lambda model, targets: loss_and_grad(model, GOOD, targets),
    "TrainingStep": lambda model, targets: TrainingStep(model, OptimizerConfig(), 1)(GOOD, targets, 1e-3),
    "evaluate": lambda model, targets: evaluate(model, [Sequences(L, lambda *_: GOOD, targets)]),
}
NO_INDICES = [
    None, "abc", [[1, 2]], np.zeros((2, L), np.int32), 3, GOOD.astype(mx.float32), GOOD > 2, GOOD[0], GOOD[None],
    GOOD[:0], GOOD[:, :0], mx.array(3), mx.zeros((2, L, V)),
]  # fmt: skip


@given(
    st.sampled_from(["tokens", "targets"]),
    st.sampled_from(list(MODELS)),
    st.integers(0, 1),
    st.integers(0, L - 1),
    st.one_of(st.sampled_from([-100, -1, V, -V - 1, 10**6]), st.integers(-(2**40), -1), st.integers(V, 2**40)),
)
def test_an_index_out_of_range_is_reported_with_its_position(name, kind, row, column, wrong):
    """Including PyTorch's -100, which is not ignored here. It once wrote out of bounds."""
    array = np.array(GOOD, np.int64)
    array[row, column] = wrong
    for call in {"tokens": READS_TOKENS, "targets": READS_TARGETS}[name].values():
        output = complains(call, MODELS[kind], mx.array(array))
        assert output.startswith(f"{name}: {wrong} at ({row}, {column}); must lie in 0 … {V - 1}, the ")


@pytest.mark.parametrize("dtype", [mx.uint8, mx.uint32, mx.int64])
def test_all_integer_dtypes_are_accepted_up_to_the_last_index(kind, dtype):
    assert mx.array_equal(MODELS[kind](GOOD.astype(dtype)), MODELS[kind](GOOD))
    complains(MODELS[kind], mx.full((1, L), V, dtype=dtype), words=f"tokens: {V} at")


def test_arrays_that_are_not_indices(kind):
    for name, calls in (("tokens", READS_TOKENS), ("targets", READS_TARGETS)):
        for call in calls.values():
            for wrong in NO_INDICES:
                complains(call, MODELS[kind], wrong, words=f"^{name}: ")
    for call in (*READS_TARGETS.values(), READS_TOKENS["call"]):
        complains(call, MODELS[kind], make_tokens(L + 40, batch=3))


def test_other_arguments(kind):
    model = make_model(kind, dropout=0.5)
    model.train()
    for last in (0, L + 1, -1, 2.5, "3", True, np.nan):
        complains(lambda last=last: model(GOOD, last), words="^last=")
    for key in (5, "a", mx.array([1.0, 2.0]), mx.array([1, 2, 3]), mx.array(3)):
        complains(lambda key=key: model(GOOD, key=key), words="^key: ")
        complains(lambda key=key: loss_and_grad(model, GOOD, GOOD, key=key), words="^key: ")
    for name in ("segment", "detach"):
        for wrong in (0, -1, 1.5, "2", np.nan):
            complains(lambda n=name, w=wrong: loss_and_grad(model, GOOD, GOOD, **{n: w}), words=f"^{name}=")
            cut = {"segment": None, name: wrong}
            complains(lambda cut=cut: TrainingStep(model, OptimizerConfig(), **cut), words=f"^{name}=")
    for lr in (np.nan, np.inf, -1.0, "a", None):
        complains(lambda lr=lr: TrainingStep(model, OptimizerConfig(), 1)(GOOD, GOOD, lr), words="^lr=")
    for batch in (0, -1, 2.5, "a", None, True):
        complains(model.initial_state, batch, words="^batch_size=")
    complains(kind, {"dim": 8}, words="^config: ")
    complains(kind, make_config(), "fast", words="^implementation=")
    complains(loss_and_grad, make_config(), GOOD, GOOD, words="^model: ")


def test_states_of_another_model(kind):
    model = MODELS[kind]
    own = model.initial_state(2)
    other_kind = next(other for name, other in MODELS.items() if name is not kind)
    others = [make_model(kind, **changes) for changes in ({"dim": 16}, {"heads": 4}, {"layers": 2})]
    _, fed = others[0].step(GOOD, others[0].initial_state(2))
    for wrong in (
        None, 3, (0, own.layers), (GOOD, own), model.initial_state(3), model.initial_state(1), fed,
        other_kind.initial_state(2), *(other.initial_state(2) for other in others),
        own._replace(position=-1), own._replace(position=1.5), own._replace(layers=()),
    ):  # fmt: skip
        complains(model.step, GOOD, wrong, words="^(state: |position=)")
    if kind is RegularTransformer:  # its cache would be too short
        complains(model.step, GOOD, own._replace(position=30), words="^state: ")
    else:
        complains(model.step, GOOD, own._replace(position=39), words="max_len=40")


def test_carries_and_optimizers_of_another_model():
    step = TrainingStep(make_model(), OptimizerConfig(), 1)
    carry = step(make_tokens(2 * K), make_tokens(1), 1e-3, close=False).carry
    other = TrainingStep(make_model(dim=16), OptimizerConfig(), 1)
    tokens, targets = make_tokens(2 * K), make_tokens(1)
    complains(lambda: other(tokens, targets, 1e-3, carry=carry).loss, words="^carry: ")
    complains(lambda: step(make_tokens(2 * K, 3), make_tokens(1, 3), 1e-3, carry=carry).loss, words="^carry: ")
    complains(lambda: step(GOOD, targets, 1e-3, carry=carry).loss, words=f"multiple of block={K}")
    for wrong in (other, TrainingStep(make_model(), OptimizerConfig(average=0.9), 1)):
        with pytest.raises(UserError, match=r"^state: \S+ does not fit"):
            step.state = wrong.state


def test_traced_arrays_are_not_evaluated(kind):
    """Their values are unknown while tracing; shape and dtype are still checked."""
    model = make_model(kind, implementation="exportable")
    for traced in (lambda tokens: model(tokens), lambda tokens: model.step(tokens, model.initial_state(2))[0]):
        graph: list = []
        mx.export_function(graph.append, traced, GOOD)
        assert graph
    compiled = mx.compile(lambda tokens: (model.check_tokens(tokens), tokens)[1])
    assert mx.array_equal(compiled(GOOD), GOOD)
    complains(compiled, GOOD.astype(mx.float32), words="^tokens: has dtype float32")
    gradient = mx.grad(lambda weights: (model.update(weights), model(GOOD).sum())[1])(model.parameters())
    assert mx.isfinite(gradient["embedding"]["tokens"]).all()


def test_loops_do_not_check_values(tmp_path, monkeypatch):
    """Checking values means waiting for them. It happens at a stage's first batch and for held-out data and prompts."""
    looks: list = []
    check = Transformer.check_tokens
    monkeypatch.setattr(Transformer, "check_tokens", lambda self, *a: (looks.append(self), check(self, *a)))
    trainer = make_trainer(tmp_path, TINY)
    for _ in range(5):
        trainer._take_step()
    assert len(looks) == 1
    looks.clear()
    for _ in token_stream(make_model(positions="block"), [[1, 2]], 50, make_sampler(temp=1.0)):
        pass
    assert not looks


def test_the_first_batch_of_a_task_is_checked(tmp_path):
    """For any task, including a user's own."""

    class Wrong(CopyTask):
        def draw(self, key, size):
            tokens, payload = super().draw(key, size)
            return tokens, payload + 9

    trainer = make_trainer(tmp_path, TINY)
    trainer.data = Wrong(noise=12, payload=2, alphabet=5)
    with pytest.raises(UserError, match=r"^targets: 1\d at \(0, 0\); must lie in 0 … 4"):
        trainer.fit()


def test_vocabularies():
    letters = Characters("abc")
    for wrong in (5, None, b"abc", ["ab", "c"]):
        complains(Characters, wrong, words="^characters=")
    complains(Characters, "", words="^characters='': must have")
    for wrong in (5, None, ["a"], b"a"):
        complains(letters.encode, wrong, words="^text: is a")
    for vocabulary in (letters, train_tokenizer(["abc"], 259)):
        for wrong in ([-1], [len(vocabulary)], [0, 999], [1.5], 3, [[1]], "ab", None):
            complains(vocabulary.decode, wrong, words="^tokens: ")
        complains(vocabulary.encode, b"a", words="^text: is a bytes")
    complains(Text.of, b"a", "a file", words="^a file: is a bytes")


@pytest.mark.parametrize("call", [load, load_vocabulary, lambda path: load_stream(path, make_model())])
def test_invalid_paths(call):
    for wrong in (None, 5, b"run", ["run"], "", "a\0b"):
        complains(call, wrong, words="^path(: is a|=.*: not a path)")


def test_invalid_steps(tmp_path):
    for data in (TINY.task.load(), text_run(tmp_path).task.load(), text_run(tmp_path, stateful=True).task.load()):
        for wrong in ((0, -1, 2), (-1, 0, 2), (0, 2**32, 2), (0, 0.5, 2), (0, None, 2), (0, 0, 0), (0, 0, "2")):
            complains(lambda wrong=wrong, data=data: data.batch(*wrong), words="^(seed|step|size)=")
        assert data.batch(0, 2**20, 2).tokens.shape[0] == 2


@given(st.data())
def test_settings_of_a_wrong_type(data):
    """For each setting of a model, any value that its annotation does not allow."""
    name = data.draw(st.sampled_from([field.name for field in fields(ModelConfig)]))
    hint = get_type_hints(ModelConfig)[name]
    kinds = get_args(hint) if int in get_args(hint) else (hint,)
    anything = {
        int: st.integers(), bool: st.booleans(), float: st.floats(), str: st.text(), type(None): st.none(),
        list: st.lists(st.integers()),
    }  # fmt: skip
    allowed = {*kinds, *((int,) if float in kinds else ())}
    wrong = data.draw(st.one_of(*(values for kind, values in anything.items() if kind not in allowed)))
    complains(lambda: make_config(**{name: wrong}), words=f"^{name}=")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("name", ["lr", "muon_lr", "weight_decay", "clip", "skip_above", "beta2", "average"])
def test_settings_out_of_the_range_of_32_bits(name, wrong):
    complains(lambda: OptimizerConfig(**{name: wrong}), words=f"^{name}=")


def images(pixels=lambda array: array, labels=lambda array: array):
    grey = np.arange(20 * 1024).reshape(20, 1024).astype(np.uint8)
    return Images(pixels(grey), labels(np.arange(20, dtype=np.uint8) % 10))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (images(lambda p: p * np.nan), "float64 and uint8, not 8-bit"),
        (images(lambda p: p.astype(int) + 100), "int64 and uint8"),
        (images(labels=lambda y: y * np.nan), "not 8-bit"),
        (images(labels=lambda y: y.astype(int) * 0 - 100), "not 8-bit"),
        (images(labels=lambda y: y + 1), "label of .* is 10; must lie in 0 … 9"),
        (images(labels=lambda y: y[:5]), "shape"),
        (images(lambda p: p.reshape(20, 32, 32)), "shape"),
        (images(lambda p: p[:0], lambda y: y[:0]), "shape"),
        (None, "has no .* images"),
    ],
)
def test_images_that_would_index_out_of_bounds(split, wrong, words):
    complains(lambda: ImageData({"train": images(), "test": images(), split: wrong}, "made", False), words=words)


def test_invalid_requests_for_data():
    task, key = CopyTask(noise=8, payload=2, alphabet=5), mx.random.key(0)
    made = ImageData({"train": images(), "test": images()}, "made", False)
    for data in (task, made):
        for wrong in ((0, 2), (mx.array([1, 2, 3]), 2), (key, 0), (key, 1.5)):
            complains(data.draw, *wrong, words="^(key: |size=)")
        for samples, batch in ((0, 2), (-4, 2), (1.5, 2), (4, 0)):
            request = (data.splits[-1], samples, batch, key)
            complains(lambda data=data, request=request: list(data.held_out(*request)), words="^(samples|batch)=")
    complains(
        lambda: list(made.held_out("stream", None, 2, key)), words="^split='stream': must be one of validation, test"
    )
