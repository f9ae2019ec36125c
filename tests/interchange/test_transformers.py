"""Exported folders in the unmodified ``transformers``, with PyTorch on the CPU."""

from mlx_rtx import export
from mlx_rtx.generation.decoding import generate

import numpy as np
import pytest

from interchange_runs import CHARACTERS, VARIANTS, write_run
from tiny import LENGTHS, make_model, make_tokens

torch = pytest.importorskip("torch", reason="pip install torch")
transformers = pytest.importorskip("transformers", reason="pip install -e '.[export]'")
pytestmark = pytest.mark.filterwarnings("default")  # for its own warnings


@pytest.fixture(params=VARIANTS)
def pair(request, tmp_path, monkeypatch):
    """Return a model, and its export loaded with ``transformers``."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    ours = make_model(seed=4, **VARIANTS[request.param])
    export.main([str(write_run(tmp_path / "run", ours)), str(tmp_path / request.param), "--format=transformers"])
    folder = str(tmp_path / request.param)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    return ours, theirs.eval(), tokenizer


def test_it_is_the_same_model(pair):
    ours, theirs, tokenizer = pair
    with torch.no_grad():
        for length in LENGTHS:
            tokens = make_tokens(length)
            logits, expected = theirs(torch.tensor(np.array(tokens)).long()).logits.numpy(), ours(tokens, close=False)
            expected = np.array(expected)
            np.testing.assert_allclose(logits[..., :-1], expected, atol=2e-5 * max(1, abs(expected).max()))
            assert (logits[..., -1] < logits[..., :-1].max(axis=-1) - 10).all()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    prompts = ["abcab", "g", "fedcbafedcba"]
    for batch in ([prompts[0]], prompts):
        given = tokenizer(batch, return_tensors="pt", padding=True)
        written = theirs.generate(**given, max_new_tokens=18, do_sample=False)[:, given.input_ids.shape[1] :]
        expected = generate(ours, CHARACTERS, batch, max_tokens=18)
        assert tokenizer.batch_decode(written, skip_special_tokens=True) == expected


@pytest.mark.parametrize("pair", ["gated"], indirect=True)
def test_it_generates_token_by_token_and_can_be_trained(pair, monkeypatch):
    _, theirs, _ = pair
    lengths, forward = [], theirs.forward
    monkeypatch.setattr(theirs, "forward", lambda *a, **b: lengths.append(b["input_ids"].shape[1]) or forward(*a, **b))
    tokens = torch.tensor(np.array(make_tokens(9))).long()
    beams = theirs.generate(input_ids=tokens, max_new_tokens=6, num_beams=2, do_sample=False)
    assert lengths == [9, 1, 1, 1, 1, 1]
    assert beams.shape == (2, 15)
    theirs(input_ids=tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in theirs.parameters())
