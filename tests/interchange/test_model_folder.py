"""Exported folders compute the same as the model, and unsupported models are refused."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from mlx_rtx import Characters, RecurrentTransformer, RegularTransformer, export
from mlx_rtx.interchange.model_folder import make_exported, write_tokenizer
from mlx_rtx.support.errors import UserError

import mlx
import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from interchange_runs import VARIANTS, make_run, write_run
from tiny import LENGTHS, K, complaint, make_model, make_tokens


class Cache:
    """The interface of mlx-lm's ``ArraysCache`` that the model file uses."""

    left_padding = lengths = None

    def __init__(self):
        self.cache = None

    def empty(self):
        return self.cache is None

    def advance(self, n):
        if self.lengths is not None:
            self.lengths -= n
        if self.left_padding is not None:
            self.left_padding -= n


def close(logits, expected):
    """Check that logits are equal up to rounding error, with one more for the end of text."""
    assert logits.shape[-1] == expected.shape[-1] + 1
    scale = max(1.0, mx.abs(expected).max().item())
    np.testing.assert_allclose(np.array(logits[..., :-1]), np.array(expected), atol=2e-5 * scale)
    assert (logits[..., -1] < logits[..., :-1].max(axis=-1) - 10).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_sequences(variant, kind):
    model = make_model(kind, **VARIANTS[variant])
    exported = make_exported(model).model
    for length in LENGTHS:
        tokens = make_tokens(length)
        close(exported(tokens), model(tokens, close=False))


@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_in_pieces(variant):
    model = make_model(**VARIANTS[variant])
    exported = make_exported(model).model
    tokens, cache, at, logits = make_tokens(23), [Cache() for _ in model.layers], 0, []
    for n in (1, K + 1, 2, 1, 2 * K + 1, K, 1):
        logits.append(exported(tokens[:, at : at + n], cache))
        at += n
    close(mx.concatenate(logits, axis=1), model(tokens[:, :at], close=False))


def test_rows_of_a_batch_may_be_at_different_positions():
    """Rows that started at different times, one of them right-padded, continue as each would alone."""
    model = make_model(positions="block", history="output")
    exported = make_exported(model).model
    tokens, starts, n, counts = make_tokens(20, batch=3), [0, 3, 2 * K + 1], 6, [6, 2, 5]
    alone = []
    for row, start in enumerate(starts):
        alone.append([Cache()])
        if start:
            exported(tokens[row : row + 1, :start], alone[row])
    zeros = [mx.zeros_like(array) for array in alone[1][0].cache]
    together = Cache()
    parts = [cache[0].cache or zeros for cache in alone]
    together.cache = [mx.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    together.lengths = mx.array(counts)
    given = mx.stack([tokens[row, start : start + n] for row, start in enumerate(starts)])
    logits = mx.concatenate([exported(given[:, :4], [together]), exported(given[:, 4:], [together])], axis=1)
    together.lengths = None
    following = mx.stack([tokens[row, start + counts[row], None] for row, start in enumerate(starts)])
    after = exported(following, [together])
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        expected = model(tokens[row : row + 1, : start + count + 1], close=False)[:, start:]
        close(mx.concatenate([logits[row : row + 1, :count], after[row : row + 1]], axis=1), expected)


def test_rows_that_are_left_padded():
    model = make_model(positions="block", history="output")
    exported, cache, padding = make_exported(model).model, Cache(), [0, 3, K + 1]
    tokens = make_tokens(2 * K + 3, batch=3)
    cache.left_padding = mx.array(padding)
    logits = mx.concatenate([exported(tokens[:, :2], [cache]), exported(tokens[:, 2:], [cache])], axis=1)
    cache.left_padding = None
    after = exported(tokens[:, :1], [cache])
    for row, begin in enumerate(padding):
        given = mx.concatenate([tokens[row : row + 1, begin:], tokens[row : row + 1, :1]], axis=1)
        expected = model(given, close=False)
        close(mx.concatenate([logits[row : row + 1, begin:], after[row : row + 1]], axis=1), expected)


@pytest.mark.parametrize("positions", ["absolute", "axial"])
def test_the_text_ends_after_the_last_position(positions):
    exported = make_exported(make_model(positions=positions, max_len=9)).model
    with pytest.raises(ValueError, match=f"10 tokens, but this model has {positions} positions for 9"):
        exported(make_tokens(10))
    cache = [Cache()]
    logits = mx.concatenate([exported(make_tokens(3), cache) for _ in range(4)], axis=1)
    assert (mx.argmax(logits, axis=-1) == 7).tolist() == [[False] * 9 + [True] * 3] * 2


def test_characters_are_tokens_and_unknown_ones_are_dropped(tmp_path):
    vocabulary = Characters("\n helo<|>")
    write_tokenizer(tmp_path, vocabulary, None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "hello\n  hole "
    assert tokenizer.encode(text).ids == vocabulary.encode(text).tolist()
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.encode("heXlo").ids == vocabulary.encode("helo").tolist()
    assert tokenizer.encode("h<|endoftext|>").ids[-1] == len(vocabulary)


def test_a_model_with_another_number_of_outputs_is_refused():
    with pytest.raises(UserError, match="out_size=3: only models that predict their own tokens"):
        make_exported(make_model(tie_embeddings=False, out_size=3))


def test_what_cannot_be_exported(tmp_path, capsys, monkeypatch):
    run = make_run(tmp_path / "run", RegularTransformer)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, words in (
        ([run, tmp_path / "full"], "is not empty; name a new folder"),
        ([tmp_path / "none", tmp_path / "a"], "no such run folder"),
        ([run, tmp_path / "a", "--format=mlxfn"], "--format mlxfn: a regular transformer's state grows"),
        ([run, tmp_path / "a", "--format=transformers"], "--format transformers: supports recurrent models only"),
        ([run, tmp_path / "a", "--bits=4", "--format=mlxfn"], "--bits 4: quantized weights are for mlx-lm only"),
    ):
        assert words in complaint(list(map(str, arguments)), capsys, monkeypatch, export.main)
    (run / "tokenizer.json").unlink()
    output = complaint([str(run), str(tmp_path / "a")], capsys, monkeypatch, export.main)
    assert "tokenizer.json: not found; restore it" in output


@pytest.mark.parametrize("variant", ["channel", "absolute"])
def test_a_step_exported_as_a_graph(variant, tmp_path):
    changes = {**VARIANTS[variant], "max_len": 11}
    run, out = make_run(tmp_path / "run", RecurrentTransformer, **changes), tmp_path / "out"
    export.main([str(run), str(out), "--format=mlxfn"])
    described = json.loads((out / "step.json").read_text())
    assert described["characters"] == "abcdefg"
    step = mx.import_function(str(out / "step.mlxfn"))
    _, *state = [mx.zeros(array["shape"], getattr(mx, array["dtype"])) for array in described["inputs"]]
    tokens, logits = make_tokens(12, batch=1), []
    for at in range(12):
        out_logits, *state = step([tokens[:, at : at + 1], *state])
        logits.append(out_logits)
    close(mx.concatenate(logits[:11], axis=1), make_model(**changes)(tokens[:, :11], close=False))
    assert (mx.argmax(logits[11]).item() == described["end_of_text"]) == (variant == "absolute")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_cpp_code_of_the_page_runs_it(tmp_path):
    model = make_model(positions="block", history="output", dim=16)
    export.main([str(write_run(tmp_path / "run", model)), str(tmp_path / "out"), "--format=mlxfn"])
    page = (Path(__file__).parents[2] / "docs" / "interchange.md").read_text()
    (code,) = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    (tmp_path / "step.cpp").write_text(code)
    (compiling,) = re.findall(r"    (g\+\+ .*)\n", page)
    (place,) = mlx.__path__
    subprocess.run(["sh", "-c", f"mlx={place}; {compiling}"], cwd=tmp_path, check=True)
    step = [str(tmp_path / "step"), "out/step.mlxfn", "16", "2", str(K), "3"]
    output = subprocess.run(step, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    tokens = [3]
    while len(tokens) <= 20:
        tokens.append(mx.argmax(model(mx.array([tokens]), last=1, close=False)).item())
    assert output.split() == [str(token) for token in tokens[1:]]
