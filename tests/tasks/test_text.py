"""Text: loading from every kind of source, windows, and stateful batches."""

import functools
import http.server
import sys
import threading
from pathlib import Path

from mlx_rtx import Characters, UserError
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks import TextTask, text_file
from mlx_rtx.tasks.windows import Windows

import mlx.core as mx
import numpy as np
import pytest

TEXT = "".join(f"The quick brown fox, no. {i},\njumps over the lazy dog.\n\n" for i in range(20)) + "end"


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Replace tiny Shakespeare by a short text, and use a temporary cache."""
    monkeypatch.setattr(text_file, "SHA256", sha256(TEXT.encode()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLX_RTX_DATA", raising=False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_bytes(TEXT.encode())
    return path


def load(file, **settings):
    return TextTask(data=str(file), **{"length": 16, **settings}).load()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Run a local server that has the text at the expected address, which is another one in each test."""
    path = tmp_path / "input.txt"
    path.write_bytes(TEXT.encode())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setattr(text_file, "URL", f"http://127.0.0.1:{running.server_port}/{tmp_path.name}/input.txt")
        yield path
        running.shutdown()
        thread.join()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_from_the_server_once(server):
    assert text_file.load(None)[0] == TEXT
    server.unlink()
    assert text_file.load(None)[0] == TEXT  # cached


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_another_text_from_the_server_is_refused(server, tmp_path):
    server.write_bytes(TEXT.encode()[:-1])
    with pytest.raises(UserError, match=r"input\.txt: is not tiny Shakespeare"):
        text_file.load(None)
    assert not list((tmp_path / "cache" / "mlx_rtx").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_no_server(monkeypatch):
    monkeypatch.setattr(text_file, "URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/input\.txt: could not be loaded .*--data"):
        text_file.load(None)


def test_no_datasets_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets .*--data"):
        text_file.load(None)


def test_from_a_file_every_character_is_kept(file):
    text = TEXT + "\r\n\r\u2028 é"
    file.write_bytes(text.encode())
    assert text_file.load(str(file))[0] == text


def test_a_file_of_that_name_must_be_tiny_shakespeare(file, monkeypatch):
    named = file.rename(file.with_name("tinyshakespeare.txt"))
    assert text_file.load(str(named.parent))[0] == TEXT
    monkeypatch.setenv("MLX_RTX_DATA", str(named.parent))
    assert text_file.load(None)[0] == TEXT
    other = named.with_name("other.txt")
    other.write_text("something else")
    assert text_file.load(str(other))[0] == "something else"  # --data takes precedence over the variable
    named.write_bytes(TEXT.encode() + b"!")
    with pytest.raises(UserError, match=r"is not tiny Shakespeare .*rename it"):
        text_file.load(None)


def test_a_missing_name_is_looked_for_in_the_folder_of_the_variable(file, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(UserError, match="not found"):
        text_file.load(file.name)
    monkeypatch.setenv("MLX_RTX_DATA", str(file.parent))
    assert text_file.load(file.name) == (TEXT, file)
    task = TextTask(data=file.name).with_absolute_paths()
    assert task.data == file.name  # the stored name does not depend on the machine
    Path(file.name).write_text("what lies here goes before it")
    assert text_file.load(file.name)[0] == "what lies here goes before it"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9 " * 100, r"is not UTF-8 \(byte 0xe9 at 3\).*iconv"),
        (b"", "is empty; give a text"),
        (b"short", "5 characters are too few for sequences of 16.*smaller --length"),
    ],
)
def test_files_unsuitable_for_training(file, content, words):
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        load(file)


def test_no_file():
    with pytest.raises(UserError, match="not found"):
        load("nowhere.txt")


def test_a_text_with_characters_the_model_does_not_know(file):
    with pytest.raises(UserError, match=r"a text\.txt: .* is not among the 3 characters the model knows"):
        TextTask(data=str(file)).load(Characters("abc"))


def test_batches_come_from_the_first_nine_tenths(file):
    data, train = load(file), TEXT[: int(0.9 * len(TEXT))]
    tokens, targets = (np.array(a) for a in data.draw(mx.random.key(0), 20_000))
    assert tokens.shape == targets.shape == (20_000, 16)
    windows = {data.vocabulary.decode([*row, target[-1]]) for row, target in zip(tokens, targets, strict=True)}
    assert windows == {train[i : i + 17] for i in range(len(train) - 16)}
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


@pytest.fixture
def counting(tmp_path):
    """Return a text of 200 distinct characters, so that each shows its position; 180 are for training."""
    path = tmp_path / "counting.txt"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 200))))
    return path


@pytest.mark.parametrize("length", [1, 16, 179])
def test_batches_begin_at_every_position_with_room_for_a_window_and_its_last_target(counting, length):
    tokens, targets = (np.array(a) for a in load(counting, length=length).draw(mx.random.key(0), 5000))
    begins = tokens[:, 0]
    assert set(begins) == set(range(180 - length))  # the last target is the last training character
    assert np.array_equal(tokens, begins[:, None] + np.arange(length))
    assert np.array_equal(targets, tokens + 1)


@pytest.mark.parametrize("reading", [{"stateful": True}, {"without_replacement": True}], ids=str)
def test_each_epoch_begins_at_a_random_offset(counting, reading):
    """179 characters have a successor: 11 windows of 16 and 3 left over, so an epoch can begin at 4 positions."""
    data = load(counting, **reading)
    turns = [data.batch(5, turn, 11) for turn in range(60)]  # of one batch each
    assert {int(turn.tokens[:, 0].min()) for turn in turns} == {0, 1, 2, 3}
    for turn in turns:
        read = np.sort(np.array(turn.tokens), axis=None)
        assert np.array_equal(read, read[0] + np.arange(11 * 16))
        assert mx.array_equal(turn.targets, turn.tokens + 1)


@pytest.mark.parametrize("length", [7, 16, 53, 500])
@pytest.mark.parametrize("split", ["validation", "stream"])
def test_every_held_out_character_is_scored_once(file, split, length):
    """All except the first, each after its preceding characters."""
    data, held_out = load(file, length=length), TEXT[int(0.9 * len(TEXT)) :]
    scored = ""
    for part in data.held_out(split, None, 3, mx.random.key(0)):
        rows, targets = np.array(part.read_tokens(0, part.length)), np.array(part.targets)
        assert part.length <= (len(held_out) if split == "stream" else length)
        for row, target in zip(rows, targets, strict=True):
            seen, after = data.vocabulary.decode(row), data.vocabulary.decode(target)
            assert seen + after[-1] in held_out
            assert (seen + after[-1]).endswith(after)
            scored += after
    assert scored == held_out[1:]


def test_fewer_windows_are_spread_over_the_text(file):
    data, held_out = load(file, length=10), TEXT[int(0.9 * len(TEXT)) :]
    (part,) = data.held_out("validation", 3, 8, mx.random.key(0))
    rows, whole = [data.vocabulary.decode(row) for row in np.array(part.read_tokens(0, 10))], (len(held_out) - 1) // 10
    assert rows == [held_out[10 * i : 10 * i + 10] for i in (0, round((whole - 1) / 2), whole - 1)]


def test_a_stateful_run_reads_consecutive_windows(file):
    data, train = load(file, stateful=True), TEXT[: int(0.9 * len(TEXT))]
    rows, turns = ["", "", ""], []
    for step in range(40):
        tokens, targets, continues = data.batch(5, step, 3)
        if not continues:
            turns.append(step)
            rows = ["", "", ""]
        for i, (row, target) in enumerate(zip(np.array(tokens), np.array(targets), strict=True)):
            rows[i] += data.vocabulary.decode(row)
            assert rows[i] + data.vocabulary.decode(target[-1:]) in train
    chunks = (len(train) - 1) // (3 * 16)
    assert turns == list(range(0, 40, chunks))
    first = [data.batch(5, step, 3).tokens for step in range(chunks)]
    read = "".join(data.vocabulary.decode(row) for row in np.array(mx.concatenate(first, axis=1)))
    assert read in train  # rows do not overlap
    assert len(read) == 3 * 16 * chunks
    with pytest.raises(UserError, match="batch=500: the text is too short"):
        data.batch(5, 0, 500)


def test_each_window_occurs_once_per_epoch(file):
    data = load(file, without_replacement=True)
    data._windows = Windows(np.arange(16 * 20 + 5), 16, "without_replacement")  # so that a token shows its position
    batches = 20 // 3
    turns = [[data.batch(5, turn * batches + i, 3)[:2] for i in range(batches)] for turn in range(3)]
    for turn in turns:
        tokens, targets = (np.array(mx.concatenate(part)) for part in zip(*turn, strict=True))
        begins = tokens[:, 0]
        assert np.array_equal(tokens, begins[:, None] + np.arange(16))
        assert np.array_equal(targets, tokens + 1)
        assert len(set(begins)) == len(begins) == 18
        assert len(set(begins % 16)) == 1
        assert list(begins) != sorted(begins)
    assert not mx.array_equal(turns[0][0][0], turns[1][0][0])
    assert mx.array_equal(data.batch(5, 7, 3).tokens, turns[1][1][0])
    with pytest.raises(UserError, match="batch=500: the text has fewer windows of 16"):
        data.batch(5, 0, 500)


def test_training_on_fewer_characters_does_not_change_the_held_out_text(file):
    whole, part = load(file), load(file, characters=100)
    assert part.describe()["train"] == 100
    assert part.describe()["validation"] == whole.describe()["validation"]
    with pytest.raises(UserError, match=r"characters=5000: .* has only .* for training"):
        load(file, characters=5000)
    with pytest.raises(UserError, match="characters=10: too few for sequences of 16"):
        load(file, characters=10)


def test_training_on_fewer_characters_uses_the_first_ones(counting):
    tokens, targets = (np.array(a) for a in load(counting, characters=50).draw(mx.random.key(0), 5000))
    assert set(tokens.ravel()) == set(range(49))
    assert targets.max() == 49


def test_a_stateful_run_validates_in_long_windows(file):
    (part, *rest) = load(file, stateful=True).held_out("validation", None, 4, mx.random.key(0))
    assert part.length == -(-(len(TEXT) - int(0.9 * len(TEXT)) - 1) // 4)
    assert sum(len(p.targets) for p in (part, *rest)) == 4


@pytest.mark.parametrize("wrong", [{"length": 0}, {"sample": -1}, {"without_replacement": True, "stateful": True}])
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        TextTask(**wrong)
