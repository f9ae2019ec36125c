"""nanoGPT's format, both ways: logits equal those of a plain implementation on its checkpoint."""

import json

from mlx_rtx import RecurrentTransformer, convert, evaluate, generate, load
from mlx_rtx.interchange.nanogpt import to_nanogpt
from mlx_rtx.support.errors import UserError

import mlx.core as mx
import numpy as np
import pytest

import nanogpt
from interchange_runs import write_run
from tiny import LENGTHS, K, complaint, make_model, make_tokens


def save(path, weights):
    if path.suffix == ".npz":
        np.savez(path, **weights)
    else:
        mx.save_safetensors(str(path), {name: mx.array(array) for name, array in weights.items()})
    return str(path)


def same(ours, expected):
    np.testing.assert_allclose(np.array(ours), expected, atol=5e-6 * max(1, abs(expected).max()))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("alpha", [None, 0.6, 1.2])
@pytest.mark.parametrize(("out", "layers", "activation"), [(None, 1, "gelu"), (5, 2, "relu")])
def test_a_checkpoint_is_read(tmp_path, suffix, alpha, out, layers, activation):
    weights = nanogpt.make_weights(7, 40, 8, layers, out, alpha)
    mask = {"transformer.h.0.attn.bias": np.tril(np.ones((1, 1, 40, 40), np.float32))}
    stored = {f"_orig_mod.{name}": array for name, array in (weights | mask).items()}
    kind = ["--model=regular"] if alpha is None else [f"--block={K}"]
    source = save(tmp_path / f"model{suffix}", stored)
    convert.main([source, str(tmp_path / "run"), "--heads=2", f"--activation={activation}", *kind])
    model, config = load(tmp_path / "run")
    assert config.tie_embeddings == (out is None)
    block, clamped = (None, None) if alpha is None else (K, min(alpha, 1))
    for length in LENGTHS:
        tokens = make_tokens(length)
        same(model(tokens), nanogpt.logits(weights, np.array(tokens), 2, activation, block, clamped))


@pytest.mark.parametrize("positions", ["absolute", "block", "axial", "none"])
def test_a_checkpoint_is_written(tmp_path, positions, kind):
    """Any positions become a table; all PyTorch names and shapes are present; a tied readout matrix is stored twice."""
    model = make_model(kind, positions=positions, history="output", alpha=0.7)
    convert.main([str(write_run(tmp_path / "run", model)), str(tmp_path / "gpt.safetensors")])
    arrays, metadata = mx.load(str(tmp_path / "gpt.safetensors"), return_metadata=True)
    assert metadata == {"format": "pt"}
    weights = {name: np.array(array) for name, array in arrays.items()}
    alpha = 0.7 if kind is RecurrentTransformer else None
    made = nanogpt.make_weights(7, 40, 8, 1, alpha=alpha)
    assert {name: array.shape for name, array in weights.items()} == {name: a.shape for name, a in made.items()}
    tokens = make_tokens(5 * K - 1)
    same(model(tokens), nanogpt.logits(weights, np.array(tokens), 2, "relu", alpha and K, alpha))


def test_conversion_both_ways(tmp_path):
    model = make_model(history="output", layers=2, tie_embeddings=False, out_size=3)
    model.layers[1].alpha = model.layers[0].alpha
    run = str(write_run(tmp_path / "run", model))
    convert.main([run, str(tmp_path / "gpt.npz")])
    convert.main([str(tmp_path / "gpt.npz"), str(tmp_path / "back"), "--heads=2", f"--block={K}", "--activation=relu"])
    assert mx.array_equal(load(tmp_path / "back")[0](make_tokens(19)), model(make_tokens(19)))


def test_a_converted_model_scores_and_generates_text(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abcdefg\n" * 90)
    source = save(tmp_path / "gpt.safetensors", nanogpt.make_weights(8, 16, 8, 1, alpha=0.5))
    data = ["--task=text", f"--data={tmp_path / 'text.txt'}"]
    convert.main([source, str(tmp_path / "run"), "--heads=2", f"--block={K}", *data])
    with pytest.raises(UserError, match="run: already contains a run; name another folder"):
        convert.main([source, str(tmp_path / "run"), "--heads=2"])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["origin"]["file"] == "gpt.safetensors"
    capsys.readouterr()
    evaluate.main([str(tmp_path / "run"), data[1]])
    output = capsys.readouterr().out
    assert "bits_per_character=" in output
    assert "note:" not in output
    generate.main(["--model", str(tmp_path / "run"), "--prompt=abc", "--max-tokens=5"])
    assert len(capsys.readouterr().out) == 6


@pytest.mark.parametrize(
    ("changes", "arguments", "words"),
    [
        ({}, [], "--heads: is missing"),
        ({}, ["--heads=3"], "heads=3 does not divide dim=8"),
        ({"alpha": None}, ["--heads=2"], "alpha: is missing, so this is a regular transformer"),
        ({"transformer.wpe.weight": None}, ["--heads=2"], "transformer.wpe.weight: is missing; this is not a"),
        ({"transformer.h.0.ln_2.weight": None}, ["--heads=2"], "ln_2.weight: is missing"),
        ({"extra": np.ones(2)}, ["--heads=2"], "extra: not in nanoGPT's layout"),
        ({"transformer.ln_f.bias": np.ones(8)}, ["--heads=2"], "ln_f.bias is not zero"),
        ({"transformer.ln_f.weight": np.ones(7)}, ["--heads=2"], "ln_f.weight: has shape (7,)"),
        (
            {"transformer.ln_f.weight": np.full(8, np.nan)},
            ["--heads=2"],
            "ln_f.weight'] contains numbers that are not finite",
        ),
        ({}, ["--heads=2", "--data=text.txt"], "--data text.txt: requires --task text"),
        ({}, ["--heads=2", "--task=text", "--data=text.txt"], "has 3 characters, the model 7"),
    ],
)
def test_invalid_checkpoints(tmp_path, changes, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("ab\n")
    weights = nanogpt.make_weights(7, 40, 8, 1, alpha=0.5) | changes
    save(tmp_path / "gpt.npz", {name: array for name, array in weights.items() if array is not None})
    assert words in complaint(["gpt.npz", "run", *arguments], capsys, monkeypatch, convert.main)
    assert not (tmp_path / "run").exists()


def test_unsupported_files(tmp_path, capsys, monkeypatch):
    for name, words in (
        ("ckpt.pt", "is a pickle, which can run any program; if you trust it, convert it to safetensors: python -c"),
        ("model.gguf", "must be a .safetensors or .npz file"),
        ("gone.npz", "not found"),
        ("cut.npz", "truncated, or not a .npz file"),
        ("cut.safetensors", "truncated, or not a .safetensors file"),
    ):
        if name != "gone.npz":
            (tmp_path / name).write_bytes(b"\x80")
        arguments = [str(tmp_path / name), str(tmp_path / "run"), "--heads=2"]
        output = complaint(arguments, capsys, monkeypatch, convert.main)
        assert words in output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha_kind": "head"}, "alpha_kind='head'"),
        ({"history": "hidden"}, "history='hidden' with an alpha above 0"),
        ({"state_norm": True}, "state_norm=True"),
        ({"qk_norm": True}, "qk_norm=True"),
    ],
)
def test_models_that_the_format_cannot_represent(changes, words):
    with pytest.raises(UserError, match=f"^{words}: not supported by nanoGPT's layout$"):
        to_nanogpt(make_model(**{"history": "output", **changes}))


def test_at_alpha_0_both_readings_are_written():
    weights = {name: np.array(array) for name, array in to_nanogpt(make_model(history="hidden", alpha=0.0)).items()}
    tokens = make_tokens(3 * K + 1)
    expected = nanogpt.logits(weights, np.array(tokens), 2, "relu", K, 0.0)
    same(make_model(history="hidden", alpha=0.0)(tokens), expected)
