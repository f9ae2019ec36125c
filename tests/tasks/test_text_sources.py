"""Sources of text: files, folders, patterns, JSON lines and data sets; held-out text; cached tokens."""

import json
import math

from mlx_rtx import UserError, evaluate, export, generate, load_vocabulary, train
from mlx_rtx.tasks import TextTask, encoding, text_file, windows
from mlx_rtx.tasks.subwords import Subwords, train_tokenizer
from mlx_rtx.tasks.vocabulary import Characters
from mlx_rtx.tasks.windows import Windows

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer

from tiny import complaint, events

TEXTS = [f"{i} grüne Flaschen hängen an der Wand,\n" * 8 for i in range(20)]
SIZES = ["--length=16", "--block=4", "--dim=8", "--heads=2", "--samples=24", "--batch=8", "--sample=6", "--seed=3"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLX_RTX_DATA", raising=False)
    return tmp_path / "cache" / "mlx_rtx"


@pytest.fixture
def folder(tmp_path):
    """Return a folder with the texts as files, as JSON lines, and an unrelated file."""
    path = tmp_path / "data"
    (path / "more").mkdir(parents=True)
    for i, text in enumerate(TEXTS):
        (path / "more" / f"{i:02}.txt").write_text(text)
    (path / "readme.md").write_text("no text")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return path


def load_text(data, **settings):
    return TextTask(data=str(data), length=16, **settings).load()


def scored(data):
    """Return the text of all targets, and the number of bytes stated for them."""
    parts = list(data.held_out("validation", None, 3, mx.random.key(0)))
    rows = [row for part in parts for row in np.array(part.targets)]
    return data.vocabulary.decode(np.concatenate(rows)), int(sum(part.sizes.sum() for part in parts))


def test_files_are_joined_in_order_and_the_last_tenth_is_held_out(folder, tmp_path):
    whole = "\n".join(TEXTS)
    for data in (folder, folder / "more", f"{folder}/**/*.txt"):
        found = load_text(data)
        text, size = scored(found)
        assert whole.endswith(text)
        assert abs(len(text) - len(whole) / 10) < 3
        assert size == len(text.encode()) - text.count("\n\n")  # separators between files count no bytes
        assert found.describe()["source"] == str(data)
    assert load_text(tmp_path / "lines.jsonl", column="body").fingerprint == found.fingerprint
    assert load_text(tmp_path / "lines.jsonl", column="body", documents=9).fingerprint != found.fingerprint


def test_subwords_separate_documents_and_have_the_same_held_out_text(folder):
    characters, subwords = (scored(load_text(folder, vocab_size=size)) for size in (None, 300))
    assert subwords[0].replace("<|endoftext|>", "\n")[-200:] == characters[0][-200:]
    assert abs(subwords[1] - characters[1]) < 20  # the first token is not scored, and is longer
    assert "<|endoftext|>" in subwords[0]
    with pytest.raises(UserError, match="tokens are too few for sequences of 16"):
        load_text(folder / "more" / "00.txt", vocab_size=300, characters=None, validation=0.95)


@pytest.mark.parametrize("wrong", [0.0, 1.0, "no.txt"])
def test_the_held_out_text_can_be_a_fraction_or_another_text(folder, tmp_path, wrong):
    half, tenth = (len(scored(load_text(folder, validation=share))[0]) for share in (0.5, 0.1))
    assert half == pytest.approx(5 * tenth, rel=0.02)
    hashes = {load_text(folder, validation=share).fingerprint for share in (0.1, 0.2, 0.5)}
    assert len(hashes) == 3  # a resumed run may rename its data, but not train on other parts
    (tmp_path / "other.txt").write_text("7 grüne Äpfel")
    other = load_text(folder, validation=str(tmp_path / "other.txt"))
    assert scored(other) == (" grüne Äpfel", 14)
    assert other.describe()["train"] == len("\n".join(TEXTS))
    assert other.fingerprint != load_text(folder).fingerprint
    with pytest.raises(UserError, match=r"validation=|--validation no\.txt: not found"):
        load_text(folder, validation=wrong)


def test_data_sets_are_read_once_by_split_and_column(folder, tmp_path, cache, capsys):
    """A local data set, which `datasets` reads like one of the hub."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for split, texts in (("train", TEXTS), ("validation", TEXTS[:2])):
        (mine / f"{split}.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    found = load_text(f"hf:{mine}", column="body", validation="validation")
    assert scored(found)[0] == "\n".join(TEXTS[:2])[1:]
    assert found.describe()["train"] == len("\n".join(TEXTS))
    kept = {path: path.stat().st_mtime_ns for path in cache.glob("*.jsonl")}
    assert len(kept) == 2
    assert load_text(f"hf:{mine}", column="body", validation="validation").fingerprint == found.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.jsonl")} == kept
    with pytest.raises(UserError, match=r"--column text: is not text in .*mine, which has body"):
        load_text(f"hf:{mine}")
    with pytest.raises(UserError, match="could not be loaded"):
        load_text(f"hf:{mine}", column="body", validation="test")
    with pytest.raises(UserError, match="--data hf:: names no data set"):
        load_text("hf:")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n\n{"text": 1}\n', r"a\.jsonl: line 2 is not like .*see --column"),
        ("a.jsonl", "[]\n", r"a\.jsonl: line 1 is not like"),
        pytest.param("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl: line 1 is not like", id="deep"),
        ("*.txt", None, r"\*\.txt: matches no file"),
    ],
)
def test_data_that_cannot_be_read(tmp_path, name, content, words):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words):
        load_text(tmp_path / name)


def test_invalid_utf8_is_reported_with_its_position(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "BLOCK", 16)
    (tmp_path / "a.txt").write_bytes("grüne Flaschen\n".encode() * 5 + b"\xff")
    with pytest.raises(UserError, match=r"byte 0xff at 80"):
        load_text(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("grüne Flaschen\n".encode() * 5 + b"\xc3")
    with pytest.raises(UserError, match=r"byte 0xc3 at 80"):
        load_text(tmp_path / "a.txt")


def test_reading_in_pieces_changes_nothing(folder, monkeypatch):
    expected = [load_text(folder, vocab_size=size) for size in (None, 300)]
    monkeypatch.setattr(text_file, "BLOCK", 50)
    monkeypatch.setattr(encoding, "PIECE", 70)
    monkeypatch.setattr(encoding, "BATCH", 300)
    for one, size in zip(expected, (None, 300), strict=True):
        again = load_text(folder, vocab_size=size, tokenizer=None)
        assert again.fingerprint == one.fingerprint
        assert scored(again) == scored(one)
        assert mx.array_equal(again.batch(0, 0, 8).tokens, one.batch(0, 0, 8).tokens)


def test_large_texts_are_encoded_once_and_memory_mapped(folder, cache, monkeypatch):
    small = load_text(folder, vocab_size=300)
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    first = load_text(folder, vocab_size=300)
    files = {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()}
    assert sorted(path.suffix for path in files) == [".sizes", ".tokens", ".tokens"]
    again = load_text(folder, vocab_size=300)
    assert {path: path.stat().st_mtime_ns for path in (cache / "tokens").iterdir()} == files
    for large in (first, again):
        assert isinstance(large._tokens, np.memmap)
        assert scored(large) == scored(small)
        assert mx.array_equal(large.batch(0, 5, 8).tokens, small.batch(0, 5, 8).tokens)
    load_text(folder, vocab_size=280)
    assert len(list((cache / "tokens").iterdir())) == 6


def test_modified_tokens_in_the_cache_are_refused(folder, cache, monkeypatch):
    """They would index beyond the model's embedding tables."""
    monkeypatch.setattr(encoding, "IN_MEMORY", 10)
    load_text(folder, vocab_size=300)
    for path in (cache / "tokens").glob("*.tokens"):
        tokens = np.memmap(path, np.uint16, "r+")
        tokens[-1] = 300
        tokens.flush()
    with pytest.raises(UserError, match=r"\.tokens: holds tokens outside the vocabulary; delete it"):
        load_text(folder, vocab_size=300)


@pytest.mark.parametrize("reading", ["drawn", "without_replacement", "contiguous"])
def test_texts_too_large_for_the_device_give_the_same_batches(reading, monkeypatch):
    tokens = np.arange(16 * 20 + 5, dtype=np.uint16)
    small = Windows(tokens, 16, reading)
    monkeypatch.setattr(windows, "ON_DEVICE", 100)
    large = Windows(tokens, 16, reading)
    begins = []
    for step in range(60):
        batch = large.batch(5, step, 4)
        assert mx.array_equal(batch.targets, batch.tokens + 1)
        assert batch.tokens.dtype == mx.int32
        begins += batch.tokens[:, 0].tolist()
        if reading != "drawn":  # positions are computed in the same way
            assert mx.array_equal(batch.tokens, small.batch(5, step, 4).tokens)
            assert batch.continues == small.batch(5, step, 4).continues
    assert min(begins) < 20
    assert max(begins) > 270
    huge = Windows(np.broadcast_to(np.uint16(0), 2**40), 16)
    places = np.array(huge._places(2**40, 2000, mx.random.key(0)))
    assert 0.48 < places.mean() / 2**40 < 0.52
    assert len(np.unique(places % 2**20)) > 1990


def test_commands_on_subwords(folder, tmp_path, capsys):
    """Train with a tokenizer from a file; resume, evaluate on another text, generate and export without that file."""
    train_tokenizer(TEXTS, 280).save(tmp_path / "t.json")
    run = tmp_path / "run"
    common = ["text", "--data", str(folder), *SIZES, "--validate-every=2", "--out", str(run)]
    train.main([*common, "--tokenizer", str(tmp_path / "t.json")])
    output = capsys.readouterr().out
    (final,) = events(run, "final")
    assert f"bits_per_byte={final['bits_per_byte']:.4g}" in output.splitlines()[-2]
    assert final["bits_per_byte"] == final["loss"] * final["targets"] / final["bytes"] / math.log(2)
    (tmp_path / "t.json").unlink()
    train.main(["text", "--out", str(run), "--resume", "--samples=32"])
    assert isinstance(load_vocabulary(run), Subwords)
    (tmp_path / "other.txt").write_text("中文 and ASCII\n" * 30)
    for flags in (["--data", str(tmp_path / "other.txt")], ["--validation", str(tmp_path / "other.txt")]):
        evaluate.main([str(run), *flags, "--json", str(tmp_path / "s.json")])
        scores = json.loads((tmp_path / "s.json").read_text())["scores"]
        assert scores["bytes"] == pytest.approx(
            len("中文 and ASCII\n".encode()) * (3 if "--data" in flags else 30), abs=3
        )
    capsys.readouterr()
    generate.main(["--model", str(run), "--prompt", "中", "--max-tokens=40", "--temp=1.5"])
    assert "\ufffd" not in capsys.readouterr().out.rstrip()[-1:]  # no incomplete character at the end
    export.main([str(run), str(tmp_path / "out")])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert config["eos_token_id"] == [0, 280]
    assert tokenizer.encode("7 grüne").ids == load_vocabulary(run).encode("7 grüne").tolist()
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 281
    assert "bits per byte of text" in (tmp_path / "out" / "README.md").read_text()
    export.main([str(run), str(tmp_path / "graph"), "--format=mlxfn"])
    assert (tmp_path / "graph" / "tokenizer.json").exists()


def test_a_tokenizer_is_trained_on_the_training_text_only(folder, tmp_path):
    data = load_text(folder, vocab_size=290)
    train_part = "".join(TEXTS)[: int(0.9 * len("".join(TEXTS)))]
    assert data.describe()["tokens"] == 290
    assert data.vocabulary.tokenizer.to_str() == train_tokenizer([train_part], 290).tokenizer.to_str()
    assert isinstance(load_text(folder).vocabulary, Characters)


def test_both_kinds_of_subwords_at_once_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    output = complaint(["text", "--tokenizer=a/b", "--vocab-size=300"], capsys, monkeypatch)
    assert "vocab_size=300: is for a tokenizer that is trained here; drop it, or --tokenizer" in output
