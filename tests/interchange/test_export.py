"""The export command: its model card, the measured loss of quantization, and the upload to the hub."""

import base64
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mlx_rtx import RecurrentTransformer, export, load, train
from mlx_rtx.interchange import hub
from mlx_rtx.interchange.quantization import compare_losses
from mlx_rtx.support.errors import UserError
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines

import mlx.core as mx
import numpy as np
import pytest

from interchange_runs import make_run
from tiny import complaint

TEXT = "".join(f"{i} green bottles hanging on the wall,\n" for i in range(60))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A text run of two steps."""
    path = tmp_path_factory.mktemp("text")
    (path / "bottles.txt").write_text(TEXT)
    sizes = [
        "--length=32",
        "--block=8",
        "--dim=32",
        "--heads=2",
        "--samples=64",
        "--batch=32",
        "--sample=0",
        "--lr=1e-2",
    ]
    train.main(["text", "--data", str(path / "bottles.txt"), *sizes, "--alpha=0", "--out", str(path / "run")])
    return path / "run"


def test_the_card_describes_the_run(run, tmp_path, capsys):
    export.main([str(run), str(tmp_path / "card")])
    card = (tmp_path / "card" / "README.md").read_text()
    (final,) = (line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "final")
    assert card.startswith("---\nlibrary_name: mlx\n")
    assert f"| loss, nats per character | {final['loss']:.4f} ± {1.96 * final['loss_se']:.4f} |" in card
    assert f"{final['accuracy']:.2%} ± {1.96 * final['accuracy_se']:.2%}" in card
    config = RunFolder(run).read_config()
    for words in (config["data"]["sha256"], "64 samples of 32 characters", "removed", "no maximum", "2402.14746"):
        assert words in card
    assert "bits to a weight" not in card
    assert f"{tmp_path / 'card' / 'README.md'} " in capsys.readouterr().out


def test_the_card_of_a_converted_model_claims_no_training(tmp_path):
    run = make_run(tmp_path / "run", RecurrentTransformer)
    export.main([str(run), str(tmp_path / "card")])
    card = (tmp_path / "card" / "README.md").read_text()
    assert "Trained elsewhere; converted from `weights.npz`" in card
    assert "It has not been evaluated." in card


@pytest.mark.parametrize("bits", [4, 8])
def test_the_loss_of_quantization_is_measured(run, tmp_path, bits, capsys):
    """The loss before is the run's own, because α is 0; the loss after is that of the weights in the file."""
    out = tmp_path / "out"
    export.main([str(run), str(out), "--bits", str(bits)])
    output = capsys.readouterr().out.splitlines()[0]
    (final,) = (line for line in read_lines(run / "metrics.jsonl") if line["kind"] == "final")
    assert f"loss: {final['loss']:.5f}"[:-1] in output
    card = (out / "README.md").read_text()
    assert f"| increase with {bits} bits | {output.partition('an increase of ')[2].removesuffix(' (95 %)')} |" in card
    config, weights = json.loads((out / "config.json").read_text()), mx.load(str(out / "model.safetensors"))
    assert config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    packed = [weights[f"model.layers.0.up_proj.{name}"] for name in ("weight", "scales", "biases")]
    model, _ = load(run)
    exact = model.layers[0].tau.mlp_in.T
    off = mx.abs(mx.dequantize(*packed, group_size=32, bits=bits) - exact).max().item()
    assert 0 < off < 1.01 * (exact.max() - exact.min()).item() / 2**bits


def test_losses_are_compared_in_pairs():
    rng = np.random.default_rng(0)
    counts, first = np.full(50, 10), rng.normal(20, 3, 50)
    second = first + rng.normal(1, 0.1, 50)
    cost = compare_losses((first, counts), (second, counts))
    assert cost.added.value == pytest.approx(np.mean(second - first) / 10)
    assert cost.added.half_width == pytest.approx(1.96 * np.std(second - first, ddof=1) / math.sqrt(50) / 10)
    assert cost.added.half_width < cost.before.half_width / 10


def test_group_sizes_that_do_not_fit_are_refused(run, tmp_path, capsys, monkeypatch):
    arguments = [str(run), str(tmp_path / "out"), "--bits=4", "--group-size=64"]
    output = complaint(arguments, capsys, monkeypatch, export.main)
    assert "--group-size 64: does not divide the model's dim=32; use 32" in output
    assert not (tmp_path / "out").exists()


class FakeHub(BaseHTTPRequestHandler):
    """The parts of the hub that an upload of small files uses."""

    files: dict = {}  # noqa: RUF012

    def do_POST(self):
        body, here = self.rfile.read(int(self.headers["Content-Length"])), f"http://{self.headers['Host']}/me/model"
        answer: dict = {}
        if self.path == "/api/repos/create":
            answer = {"url": here}
        elif "preupload" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "commit" in self.path:
            values = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
            self.files.update({value["path"]: base64.b64decode(value["content"]) for value in values})
            answer = {"commitUrl": f"{here}/commit/1", "commitOid": "1"}
        self.send_response(200 if "locked" not in str(body) else 403)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_):
        """Print nothing."""


@pytest.mark.filterwarnings("default")
def test_upload_to_the_hub(tmp_path, monkeypatch, capsys):
    constants = pytest.importorskip("huggingface_hub.constants")
    run = str(make_run(tmp_path / "run", RecurrentTransformer))
    web = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=web.serve_forever).start()
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{web.server_port}")
    try:
        export.main([run, str(tmp_path / "model"), "--upload=me/model"])
        assert capsys.readouterr().out.endswith(f"{constants.ENDPOINT}/me/model/commit/1\n")
        assert FakeHub.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        assert FakeHub.files["README.md"].count(b"# model\n") == 1
        for name in ("no name", "me/locked"):
            with pytest.raises(UserError, match=rf"--upload {name}: .*name a repository of yours"):
                hub.upload(tmp_path / "model", name)
    finally:
        web.shutdown()
        web.server_close()
    with pytest.raises(UserError, match=r"--upload me/model: .*refused"):
        hub.upload(tmp_path / "model", "me/model")
