"""The commands on text and images from the command line: train, evaluate, generate, and wrong input."""

import io
import json
import subprocess
import sys

from mlx_rtx import evaluate, generate, load, load_vocabulary, make_sampler, stream_generate, train
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks import cifar

import numpy as np
import pytest

from tiny import complaint

SMALL = ["--dim=16", "--heads=2", "--samples=64", "--batch=8", "--validate-every=4", "--report-every=4"]
TEXT = "".join(f"{i} green bottles hanging on the wall,\n" for i in range(60))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A short text, and runs trained on it."""
    path = tmp_path_factory.mktemp("text")
    (path / "bottles.txt").write_text(TEXT)
    common = ["text", "--data", str(path / "bottles.txt"), "--length=32", "--block=8", "--sample=5", *SMALL]
    train.main([*common, "--out", str(path / "block")])
    train.main([*common, "--out", str(path / "absolute"), "--positions=absolute"])
    train.main([*common, "--out", str(path / "regular"), "--model=regular", "--layers=2"])
    return path


def run(path, *arguments, name="block"):
    generate.main(["--model", str(path / name), *arguments])


@pytest.mark.parametrize("name", ["block", "absolute", "regular"])
def test_text_goes_to_stdout_and_figures_to_stderr(text, name, capsys):
    run(text, "--prompt", "7 green", "--max-tokens", "20", name=name)
    printed = capsys.readouterr()
    model, vocabulary = load(text / name)[0], load_vocabulary(text / name)
    sampler = make_sampler(temp=0.8)
    responses = stream_generate(model, vocabulary, "7 green", max_tokens=20, sampler=sampler)
    assert printed.out == "".join(response.text for response in responses) + "\n"
    assert len(printed.out) == 21
    assert printed.err.splitlines()[0].startswith("prompt: 7 tokens, ")
    assert printed.err.splitlines()[1].startswith("generation: 20 tokens, ")
    assert printed.err.splitlines()[2].startswith("peak memory: ")


def test_a_prompt_from_standard_input(text, capsys, monkeypatch):
    run(text, "--prompt", "9 green\n", "--max-tokens=9")
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("9 green\n"))
    run(text, "--prompt", "-", "--max-tokens=9")
    assert capsys.readouterr().out == expected


def test_several_prompts(text, capsys):
    run(text, "--prompt", "1 green", "on the wall", "--max-tokens=15", "--seed=3")
    both = capsys.readouterr().out
    run(text, "--prompt", "on the wall", "--max-tokens=15", "--seed=4")
    assert both.startswith("--- 1: '1 green'\n")
    assert both.endswith("--- 2: 'on the wall'\n" + capsys.readouterr().out)


def test_a_text_generated_in_two_calls(text, tmp_path, capsys):
    state = ["--state-file", str(tmp_path / "s.state")]
    run(text, "--prompt", "5 green", "--max-tokens=30")
    whole = capsys.readouterr().out
    run(text, "--prompt", "5 green", "--max-tokens=12", *state)
    first = capsys.readouterr().out
    run(text, "--max-tokens=18", *state)
    assert first[:-1] + capsys.readouterr().out == whole


def test_the_end_of_positions_is_reported(text, capsys):
    run(text, "--prompt", "5", "--max-tokens=100", name="absolute")
    printed = capsys.readouterr()
    assert len(printed.out) == 33
    assert "ended early: this model has absolute positions for 32 tokens" in printed.err
    assert "--positions block has no limit" in printed.err
    run(text, "--prompt", "5", "--max-tokens=100")
    assert "ended early" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--model"]),
        (["--model", "nowhere", "--prompt", "a"], ["nowhere", "no such run folder"]),
        (["--model", "RUN"], ["--prompt: nothing to begin with"]),
        (["--model", "RUN", "--prompt", ""], ["--prompt: nothing to begin with"]),
        (["--model", "RUN", "--prompt", "a€b"], ["prompt: '€' is not among"]),
        (["--model", "RUN", "--prompt", "a", "--max-tokens", "0"], ["max_tokens=0"]),
        (["--model", "RUN", "--prompt", "a", "--temp", "-1"], ["temp=-1"]),
        (["--model", "RUN", "--prompt", "a", "--top-p", "2"], ["top_p=2"]),
        (["--model", "RUN", "--prompt", "a", "--seed", "-1"], ["seed=-1"]),
        (["--model", "RUN", "--prompt", "-", "-"], ["can be read once"]),
        (["--model", "RUN", "--prompt", "a", "b", "--state-file", "s"], ["--state-file s", "one prompt"]),
        (["--model", "RUN", "--prompt", "a", "--state-file", "no/s"], ["--state-file no/s", "no such folder"]),
        (["--model", "RUN", "--prompt", "a", "--state-file", "."], ["--state-file .", "is a folder"]),
        (["--model", "RUN", "--prompt", "a", "--state-file", "s" * 300], ["s" * 300, "too long"]),
        (["--model", "RUN", "--prompt", "a", "--state-file", "bottles.txt"], ["bottles.txt: truncated or not"]),
        (["--model", "absolute", "--prompt", "a" * 33], ["ends at 33 tokens", "--positions block"]),
    ],
)
def test_wrong_input(arguments, words, text, capsys, monkeypatch):
    monkeypatch.chdir(text)
    arguments = ["block" if argument == "RUN" else argument for argument in arguments]
    output = complaint(arguments, capsys, monkeypatch, generate.main)
    for word in words:
        assert word in output


def test_a_closed_pipe_ends_generation(text):
    command = [sys.executable, "-m", "mlx_rtx.generate", "--model", str(text / "block"), "--prompt", "a"]
    with subprocess.Popen([*command, "--max-tokens=100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert len(run.stdout.read(10)) == 10
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 141


def test_standard_input_that_is_not_text(text, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    output = complaint(["--model", str(text / "block"), "--prompt", "-"], capsys, monkeypatch, generate.main)
    assert "--prompt -: is not UTF-8" in output


def test_evaluate_scores_all_held_out_text(text, capsys):
    evaluate.main([str(text / "block")])
    output = capsys.readouterr().out
    held_out = len(TEXT) - int(0.9 * len(TEXT))
    assert f"validation={held_out}" in output
    assert "bits_per_character=" in output
    assert f"sequences={-(-(held_out - 1) // 32)}" in output
    assert "note:" not in output
    evaluate.main([str(text / "block"), "--split", "stream"])
    assert "sequences=1\n" in capsys.readouterr().out


def test_evaluate_reports_a_different_text(text, tmp_path, capsys):
    (tmp_path / "other.txt").write_text(TEXT[:1000])
    evaluate.main([str(text / "block"), "--data", str(tmp_path / "other.txt")])
    assert "note: this data differs from the run's training data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [("absolute", ["longer than the position table", "max_len=32"]), ("regular", ["--split stream", "square"])],
)
def test_a_model_that_cannot_read_a_stream_is_refused(name, words, text, capsys, monkeypatch):
    output = complaint([str(text / name), "--split", "stream"], capsys, monkeypatch, evaluate.main)
    for word in words:
        assert word in output


def test_text_with_other_characters_is_refused(text, tmp_path, capsys, monkeypatch):
    (tmp_path / "other.txt").write_text(TEXT + "ÄÖÜ")
    before = (text / "block" / "config.json").read_bytes()
    for main, arguments in (
        (evaluate.main, [str(text / "block")]),
        (train.main, ["text", "--out", str(text / "block"), "--resume"]),
    ):
        output = complaint([*arguments, "--data", str(tmp_path / "other.txt")], capsys, monkeypatch, main)
        assert "'Ä', 'Ö', 'Ü' is not among" in output
    (tmp_path / "other.txt").write_text(TEXT[::-1])
    arguments = ["text", "--out", str(text / "block"), "--resume", "--data", str(tmp_path / "other.txt")]
    assert "was trained on other data" in complaint(arguments, capsys, monkeypatch)
    assert (text / "block" / "config.json").read_bytes() == before


def test_a_run_resumes_with_a_moved_text(text, tmp_path, capsys):
    (tmp_path / "moved.txt").write_text(TEXT)
    out = ["--out", str(text / "regular")]
    train.main(["text", *out, "--resume", "--data", str(tmp_path / "moved.txt"), "--samples", "128"])
    assert "resumed at step 8" in capsys.readouterr().out


def test_settings_that_train_badly_are_warned_about(text, tmp_path, capsys):
    arguments = ["text", "--data", str(text / "bottles.txt"), "--length=32", "--block=8", "--stateful", *SMALL]
    train.main([*arguments, "--out", str(tmp_path / "half")])
    assert "advice: with --stateful an alpha of 0.5 may grow to 1" in capsys.readouterr().out
    train.main([*arguments, "--out", str(tmp_path / "none"), "--alpha=0"])
    assert "advice: with" not in capsys.readouterr().out
    train.main([*arguments[:5], *SMALL, "--model=regular", "--out", str(tmp_path / "regular")])
    assert "advice: with --positions block a regular transformer cannot tell blocks apart" in capsys.readouterr().out


@pytest.fixture
def images(monkeypatch, tmp_path):
    """Small images in CIFAR-10's format whose class is their brightness."""
    labels = {name: np.arange(count, dtype=np.uint8) % 10 for name, count in (("train", 200), ("test", 50))}
    pixels = {name: np.repeat(20 + 22 * of[:, None], 1024, axis=1) for name, of in labels.items()}
    monkeypatch.setattr(cifar, "COUNTS", {name: len(of) for name, of in labels.items()})
    monkeypatch.setattr(cifar, "LABELS", {name: sha256(of) for name, of in labels.items()})
    monkeypatch.setattr(cifar, "GREY", {name: of.mean() for name, of in pixels.items()})
    arrays = {f"{name}_images": of for name, of in pixels.items()} | {
        f"{name}_labels": of for name, of in labels.items()
    }
    np.savez(tmp_path / "cifar10_gray.npz", **arrays)
    return tmp_path


@pytest.mark.parametrize("model", ["recurrent", "regular"])
def test_images_train_and_are_evaluated(images, model, capsys):
    out = images / "run"
    train.main(["image", "--data", str(images), "--model", model, "--block=64", "--out", str(out), *SMALL])
    output = capsys.readouterr().out
    assert "train=180 validation=20" in output
    assert "final loss=" in output
    assert json.loads((out / "config.json").read_text())["model"]["kind"] == model
    evaluate.main([str(out), "--data", str(images / "cifar10_gray.npz")])
    output = capsys.readouterr().out
    assert "task=image split=test" in output
    assert "sequences=50" in output
    assert " of 50 right, " in output


def test_an_image_model_generates_no_text(images, capsys, monkeypatch):
    out = images / "run"
    train.main(["image", "--data", str(images), "--block=64", "--out", str(out), *SMALL])
    capsys.readouterr()
    output = complaint(["--model", str(out), "--prompt", "a"], capsys, monkeypatch, generate.main)
    assert "has no tokenizer.json, so it is not a text model" in output
    output = complaint([str(out), "--noise", "9"], capsys, monkeypatch, evaluate.main)
    assert "only the copy tasks have noise" in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["image", "--data", "missing.npz"], ["--data missing.npz: not found"]),
        (["text", "--data", "missing.txt"], ["--data missing.txt: not found"]),
        (["text", "--data", "short.txt"], ["5 characters are too few"]),
        (["text", "--data", "latin.txt"], ["is not UTF-8", "iconv"]),
        (["image", "--data", "short.txt"], ["short.txt: truncated, or without train_images"]),
    ],
)
def test_wrong_data(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("abcde")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 500)
    output = complaint([*arguments, "--out", "run"], capsys, monkeypatch)
    for word in words:
        assert word in output
    assert not (tmp_path / "run").exists()
