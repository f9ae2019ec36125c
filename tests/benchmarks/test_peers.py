"""The PyTorch model has the same outputs and gradients; the benchmark that times it works from end to end."""

import importlib.util
import json
import sys
from dataclasses import replace

from mlx_rtx import RecurrentTransformer, RegularTransformer, loss_and_grad
from mlx_rtx.model.config import Architecture
from mlx_rtx.support.trees import flat
from mlx_rtx.tasks import Shape

import numpy as np
import pytest

from lib import sweep
from tiny import HISTORIES, K, complaint, make_model, make_tokens

torch = pytest.importorskip("torch")

import peers  # noqa: E402
from lib import (  # noqa: E402
    contender,
    torch_model,
    torch_peer,
)

POSITIONS = ["absolute", "block", "none"]
VARIANTS = [(RecurrentTransformer, {"history": h, "positions": p}) for h in HISTORIES for p in POSITIONS]
VARIANTS += [(RegularTransformer, {"layers": 2}), (RegularTransformer, {"positions": "block"})]
VARIANTS += [(RecurrentTransformer, {"layers": 2, "tie_embeddings": False, "out_size": 5, "activation": "gelu"})]


TINY = {
    "image": sweep.Subject(
        Architecture(dim=8, heads=2, block=8, tie_embeddings=False), Shape(16, 32, 1, out_size=4), regular=(1, 4)
    ),
    "copy": sweep.Subject(Architecture(dim=8, heads=2, block=8, dropout=0.1), Shape(16, 40, 4)),
}


def numpy_of(tree) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in flat(tree).items()}


def both(kind, **changes):
    """Return our model, and PyTorch's with the same weights."""
    ours = make_model(kind, **changes)
    theirs = torch_model.MODELS["regular" if kind is RegularTransformer else "recurrent"](ours.config).eval()
    theirs.load_state_dict(torch_model.translate(numpy_of(ours.parameters())))
    return ours, theirs


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
@pytest.mark.parametrize("length", [K - 1, 3 * K, 5 * K - 1])
@pytest.mark.parametrize("last", [None, 2])
def test_the_same_weights_give_the_same_logits(kind, changes, length, last):
    ours, theirs = both(kind, **changes)
    tokens = make_tokens(length)
    logits = theirs(torch.tensor(np.array(tokens)), last=last).detach().numpy()
    assert np.allclose(logits, np.array(ours(tokens, last=last)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_the_same_weights_give_the_same_gradient(kind, changes):
    """Each gradient agrees to 1e-4 of its largest entry; MLX computes it in segments, PyTorch as a whole."""
    ours, theirs = both(kind, **changes)
    tokens = make_tokens(4 * K)
    targets = tokens[:, :3] % ours.config.outputs
    loss, gradients = loss_and_grad(ours, tokens, targets, segment=2)
    theirs_loss = torch_peer.loss_of(theirs, *(torch.tensor(np.array(a), dtype=torch.long) for a in (tokens, targets)))
    theirs_loss.backward()
    assert theirs_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    expected = torch_model.translate(numpy_of(gradients))
    found = {name: weight.grad for name, weight in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=1e-4 * gradient.abs().max().item()), name


@pytest.mark.parametrize(("name", "value"), [("state_norm", True), ("positions", "axial")])
def test_a_model_that_is_not_in_the_paper_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        torch_model.RecurrentTransformer(make_model(**{name: value}).config)


def test_a_frozen_alpha_is_frozen():
    model = torch_model.RecurrentTransformer(make_model(train_alpha=False).config)
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["layers.0.alpha"]


@pytest.fixture
def tiny(monkeypatch):
    """Shapes that take milliseconds, run in this process, without a compiler."""

    def no_compiler(self, **options):
        raise RuntimeError("no compiler\n  on this machine")

    monkeypatch.setattr(sweep, "SUBJECTS", TINY)
    monkeypatch.setattr(contender, "call", contender.run)
    monkeypatch.setattr(torch.nn.Module, "compile", no_compiler)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch_peer, "find_device", lambda gpu: "cpu")
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")


def test_peers_from_end_to_end(tiny, tmp_path, capsys):
    """A contender that cannot run is reported in one line, and the others run."""
    peers.main(["--shapes", "image", "copy", "--batch", "3", "--repeats", "2", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    for words in (
        "copy recurrent, training, batch 3: mlx takes ",
        " times torch eager's time",
        "  round 2, torch eager: ",
        "  round 1, torch compile: left out (RuntimeError: no compiler on this machine)\n",
        "torch eager: torch_model, eager; torch ",
    ):
        assert words in output
    assert output.count("no compiler") == output.count("CUDA graphs need a CUDA device") == 4
    answer, report = json.loads(output.splitlines()[-1]), json.loads((tmp_path / "peers.json").read_text())
    assert report["answer"] == answer
    assert "environment" in report
    assert len(answer) == len(report["races"]) == 4
    for run in report["races"]:
        assert [len(run["rounds"][name]) for name in peers.CONTENDERS] == [2, 2, 1, 1]
        eager = run["rounds"]["torch eager"][0]
        assert 0 < eager["fastest"] <= eager["seconds"] <= eager["slowest"]
        assert 0 < eager["loss"] < 10
    assert all(timings.keys() == {"mlx", "torch eager"} for timings in answer.values())


def test_the_faster_round_counts():
    slow, fast = (contender.ContenderTiming(s, s, s, 1.0, gb, "", None, "") for s, gb in ((0.2, 4.0), (0.1, 4.0)))
    theirs = contender.ContenderTiming(0.4, 0.4, 0.4, 30.0, 8.0, "", None, "")
    group = sweep.Group("copy", "recurrent", 1, "training")
    run = peers.Race(group, 64, {"mlx": [slow, fast], "torch eager": [theirs, "it died"], "torch graphs": ["no"]})
    assert peers.words(run) == (
        "copy recurrent, training, batch 64: mlx takes 0.25 times torch eager's time and 0.50 times its memory"
    )
    assert peers.table(run).splitlines()[2].split() == ["torch", "eager", "400.0", "4.00", "8.000", "2.00", "30.00"]
    assert "nothing to compare" in peers.words(peers.Race(group, 64, {"mlx": ["no"], "torch eager": [theirs]}))


def test_both_sides_get_the_same_request(tiny):
    group = sweep.Group("image", "regular", 4, "forward")
    request = peers.request_for("torch eager", group, 5, peers.Peers(tf32=True))
    assert (request.batch, request.length, request.targets, request.tf32) == (5, 32, 1, True)
    assert request.config["layers"] == 4
    assert request.config["out_size"] == 4


def test_a_crashed_process_loses_its_own_contender(tmp_path, monkeypatch):
    request = peers.request_for("mlx", sweep.Group("copy", "recurrent", 1, "forward"), 1, peers.Peers())
    assert contender.call(replace(request, config={})).startswith("TypeError: ")  # reported by the process itself
    for printed, reason in (("at first\nout of memory", "out of memory"), ("", "no message")):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\nprintf '{printed}' >&2\nexit 7\n")
        python.chmod(0o755)
        monkeypatch.setattr(contender, "WORKER", [str(python)])
        assert contender.call(request) == f"its process ended with 7: {reason}"


def test_pytorch_missing_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert importlib.util.find_spec("torch") is None
    output = complaint([], capsys, monkeypatch, peers.main)
    assert output == "error: peers: needs torch; pip install 'mlx-rtx[peers]'\n"


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--repeats", "0"], ["--shapes", "video"], ["--models"]])
def test_wrong_flags_of_peers(wrong, capsys, monkeypatch):
    assert wrong[0].strip("-") in complaint(wrong, capsys, monkeypatch, peers.main)


def test_a_model_that_a_shape_lacks(capsys, monkeypatch):
    output = complaint(["--shapes", "copy", "--models", "regular"], capsys, monkeypatch, peers.main)
    assert "models=('regular',)" in output
