"""Exported folders in the unmodified mlx-lm: it generates the same text, and its tools work."""

import json
import math
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

from mlx_rtx import RecurrentTransformer, RegularTransformer, export, load
from mlx_rtx.generation.decoding import generate

import mlx.core as mx
import mlx.nn as nn
import pytest

from interchange_runs import CHARACTERS, VARIANTS, make_run
from tiny import make_tokens

pytest.importorskip("mlx_lm", reason="pip install -e '.[export]'")
pytestmark = pytest.mark.filterwarnings("default")  # for mlx-lm's own warnings

import mlx_lm  # noqa: E402
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache  # noqa: E402
from mlx_lm.perplexity import eval_ppl  # noqa: E402


def make_export(path, kind=RecurrentTransformer, **changes):
    """Train a run and export it."""
    run = make_run(path / "run", kind, **changes)
    export.main([str(run), str(path / "exported")])
    return run, str(path / "exported")


def run_tool(name, monkeypatch, *arguments):
    """Call a tool of mlx-lm as from its command line."""
    module = __import__(f"mlx_lm.{name}", fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a model in which batches, caches and weights all affect the text."""
    return make_export(tmp_path_factory.mktemp("one"), positions="block", history="output", dim=32, block=4)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        *((RecurrentTransformer, name) for name in VARIANTS),
        (RegularTransformer, "axial"),
        (RegularTransformer, "plain"),
    ],
)
def test_its_text_is_the_same(kind, variant, tmp_path):
    """Alone and in a batch of several lengths, up to the end of positions."""
    run, folder = make_export(tmp_path, kind, seed=4, **VARIANTS[variant])  # with this seed all texts are varied
    ours, prompts = load(run)[0], ["abcab", "g", "fedcbafedcba"]
    model, tokenizer = mlx_lm.load(folder, trust_remote_code=True)
    expected = [generate(ours, CHARACTERS, prompt, max_tokens=50)[0] for prompt in prompts]
    assert mlx_lm.generate(model, tokenizer, prompts[0], max_tokens=50) == expected[0]
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    chat = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "abcde"
    assert mlx_lm.batch_generate(model, tokenizer, tokens, max_tokens=50, prefill_step_size=3).texts == expected
    assert (len(expected[2]) < 50) == (ours.limit is not None)


def test_a_prompt_cache_is_reused(exported, tmp_path):
    run, folder = exported
    model, tokenizer = mlx_lm.load(folder, trust_remote_code=True)
    cache = make_prompt_cache(model)
    model(mx.array([tokenizer.encode("abcabc")]), cache)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    cache = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    output = mlx_lm.generate(model, tokenizer, "dad", max_tokens=20, prompt_cache=cache)
    assert output == generate(load(run)[0], CHARACTERS, "abcabcdad", max_tokens=20)[0]


def test_it_is_quantized_or_refused(exported, tmp_path, monkeypatch):
    _, folder = exported
    run_tool("convert", monkeypatch, "--hf-path", folder, "--mlx-path", tmp_path / "q", "-q", "--q-group-size=32",
             "--q-bits=8", "--trust-remote-code")  # fmt: skip
    model = mlx_lm.load(str(tmp_path / "q"), trust_remote_code=True)[0]
    full = mlx_lm.load(folder, trust_remote_code=True)[0]
    assert "scales" in model.layers[0].up_proj
    tokens = mx.array([[1, 2, 3, 4, 5, 6, 0]])
    assert 0 < mx.abs(model(tokens) - full(tokens)).max().item() < 1
    run_tool("convert", monkeypatch, "--hf-path", folder, "--mlx-path", tmp_path / "half", "--dtype=bfloat16",
             "--trust-remote-code")  # fmt: skip
    model = mlx_lm.load(str(tmp_path / "half"), trust_remote_code=True)[0]
    logits = model(tokens, cache := make_prompt_cache(model))
    assert logits.dtype == cache[0][1].dtype == mx.bfloat16
    assert 0 < mx.abs(logits - full(tokens)).max().item() < 0.5
    with pytest.raises(ValueError, match="use --q-group-size 32"):
        run_tool("convert", monkeypatch, "--hf-path", folder, "--mlx-path", tmp_path / "no", "-q", "--q-group-size=64",
                 "--trust-remote-code")  # fmt: skip


def test_lora_training_and_fusing(exported, tmp_path, monkeypatch):
    _, folder = exported
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": "abcdefg" * 3}) + "\n")
    monkeypatch.setattr(mx, "compile", lambda function, **_: function)  # compiling takes long on a CPU
    run_tool("lora", monkeypatch, "--model", folder, "--train", "--data", tmp_path, "--iters=30", "--batch-size=1",
             "--num-layers=1", "--adapter-path", tmp_path / "adapters", "--learning-rate=3e-2",
             "--trust-remote-code")  # fmt: skip
    run_tool("fuse", monkeypatch, "--model", folder, "--adapter-path", tmp_path / "adapters", "--save-path",
             tmp_path / "fused", "--trust-remote-code")  # fmt: skip
    tokens = mx.array([CHARACTERS.encode("abcdefg" * 3).tolist()])
    losses = []
    for at in (folder, str(tmp_path / "fused")):
        logits = mlx_lm.load(at, trust_remote_code=True)[0](tokens)
        losses.append(nn.losses.cross_entropy(logits[:, :-1], tokens[:, 1:]).mean().item())
    assert losses[1] < 0.7 * losses[0]


def test_its_other_tools(exported, tmp_path, monkeypatch, capsys):
    run, folder = exported
    run_tool("benchmark", monkeypatch, "--model", folder, "-p", 20, "-g", 5, "-b", 4, "-n", 1, "--trust-remote-code")
    assert "generation_tps=" in capsys.readouterr().out
    run_tool("cache_prompt", monkeypatch, "--model", folder, "--prompt", "abc", "--trust-remote-code",
             "--prompt-cache-file", tmp_path / "cache.safetensors")  # fmt: skip
    assert (tmp_path / "cache.safetensors").exists()
    run_tool("generate", monkeypatch, "--model", folder, "--prompt", "abc", "--max-tokens=5", "--trust-remote-code")
    assert "Generation: 5 tokens" in capsys.readouterr().out
    tokens = make_tokens(13)
    perplexity, _ = eval_ppl(mlx_lm.load(folder, trust_remote_code=True)[0], tokens)
    losses = nn.losses.cross_entropy(load(run)[0](tokens[:, :-1], close=False), tokens[:, 1:])
    assert perplexity == pytest.approx(math.exp(losses.mean().item()), rel=1e-4)


def test_it_is_served(exported, monkeypatch):
    """Completions and chat, several at a time, with a prompt cache."""
    from mlx_lm import server

    (run, folder), providers = exported, []
    monkeypatch.setattr(server, "run", lambda host, port, provider, **_: providers.append(provider))
    run_tool("server", monkeypatch, "--model", folder, "--trust-remote-code")
    generator = server.ResponseGenerator(providers[0], server.LRUPromptCache(10))
    web = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: server.APIHandler(generator, *a, system_fingerprint=""))
    threading.Thread(target=web.serve_forever).start()

    def ask(what, **body):
        body = {**body, "max_tokens": 12, "temperature": 0}
        request = urllib.request.Request(f"http://127.0.0.1:{web.server_port}/v1/{what}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    try:
        prompts = ["abcab", "gfe", "dcbag"]
        expected = [generate(load(run)[0], CHARACTERS, prompt, max_tokens=12)[0] for prompt in prompts]
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda prompt: ask("completions", prompt=prompt), prompts))
        assert [answer["choices"][0]["text"] for answer in answers] == expected
        answer = ask("chat/completions", messages=[{"role": "user", "content": "abcab"}])
        assert answer["choices"][0]["message"]["content"] == expected[0]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    finally:
        web.shutdown()
        web.server_close()
        generator.stop_and_join()
