"""Files of a run folder are checked: they must be intact, belong to the run, and have possible values."""

import json
import os
import tracemalloc
from dataclasses import replace

from mlx_rtx import UserError, evaluate, load
from mlx_rtx.support.trees import flat
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.stored_settings import from_stored
from mlx_rtx.training.trainer import Trainer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from damage import ODD, change_at, damages, forge, lines_kept, numbers, places, refused_or_same, rewrite
from tiny import complaint, fit_until, make_trainer, saved, text_run

FILES = ("config.json", "tokenizer.json", "model.safetensors", "training.safetensors")
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a text run that was stopped during a report, and the contents of its files."""
    path = tmp_path_factory.mktemp("text")
    config = text_run(path, stateful=True)
    fit_until(make_trainer(path / "run", config), 9)
    return path / "run", config, {name: (path / "run" / name).read_bytes() for name in (*FILES, "metrics.jsonl")}


@pytest.fixture
def run(written):
    """Restore the folder to its original contents."""
    restore(written)
    yield written[0]
    restore(written)


def restore(written):
    path, _, contents = written
    for file in path.iterdir():
        file.unlink()
    for name, content in contents.items():
        (path / name).write_bytes(content)


def read_all(written):
    """Return everything that a resume, evaluation or generation reads from a run folder."""
    path, config, _ = written
    folder = RunFolder(path)
    trainer = Trainer(config, config.task.load(), folder, resume=True)
    model, _ = load(path)
    return (
        numbers(flat(model.parameters())),
        numbers(flat([trainer.model.parameters(), trainer.train_step.state, trainer._carry])),
        (trainer.step, trainer.progress.state(), trainer._tally.losses, trainer._tally.reported),
        (from_stored(folder.read_config())[1], folder.vocabulary().characters),
    )


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_unchanged(name, data, written):
    """Regression test: any of 1,080 bytes of weights could be changed without an error."""
    restore(written)
    expected, path = read_all(written), written[0] / name
    content = written[2][name]
    path.write_bytes(data.draw(damages(len(content)))(content))
    refused_or_same(path, lambda: read_all(written), expected)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_every_changed_number_is_noticed(name, run, written):
    content, generator = written[2][name], np.random.default_rng(0)
    begin = 8 + int.from_bytes(content[:8], "little")
    for at in generator.integers(begin, len(content), 100):
        changed = bytearray(content)
        changed[at] ^= 1 << int(generator.integers(8))
        (run / name).write_bytes(changed)
        with pytest.raises(UserError, match=f"{name}: is not what was written"):
            read_all(written)


@given(data=st.data())
def test_a_damaged_log_loses_no_other_line(data, written):
    restore(written)
    log, content = written[0] / "metrics.jsonl", written[2]["metrics.jsonl"]
    before = read_lines(log)
    log.write_bytes(data.draw(damages(len(content)))(content))
    told, cut = lines_kept(log, before), len(log.read_bytes()) < len(content)
    assert cut or told >= len(before) - 2  # a lost line break joins two lines


def test_numbers_that_are_not_finite_are_refused(run, capsys, monkeypatch):
    """Regression test: such weights were scored with loss=nan and exit code 0."""
    folder, model = RunFolder(run), load(run)[0]
    model.embedding.tokens = model.embedding.tokens * np.nan
    folder.write_model(model)
    output = complaint([str(run)], capsys, monkeypatch, evaluate.main)
    assert "model.safetensors: embedding.tokens holds numbers that are not finite" in output


def retyped(header, data):
    """Halve the bits per element, so that the same bytes hold twice as many elements."""
    entry = header["embedding.tokens"]
    entry["dtype"], entry["shape"] = "F16", [entry["shape"][0], 2 * entry["shape"][1]]
    return header, data


def renamed(header, data):
    return {name.replace("qkv", "kqv"): entry for name, entry in header.items()}, data


def swapped(header, data):
    """Swap the names of two arrays of the same shape."""
    first, second = "layers.0.tau.attention_norm.weight", "layers.0.tau.mlp_norm.weight"
    return header | {first: header[second], second: header[first]}, data


def undigested(header, data):
    """Remove the sha256, which older formats lack, but keep the newer format."""
    del header["__metadata__"]["sha256"]
    return header, data


@pytest.mark.parametrize("change", [retyped, renamed, swapped, undigested])
def test_arrays_of_other_names_or_types_are_refused(change, run):
    rewrite(run / "model.safetensors", change)
    with pytest.raises(UserError, match=r"model\.safetensors: .*(belongs to another run|is not what was written)"):
        load(run)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("config.json", '"heads": 2', '"heads": 4'),
        ("config.json", '"lr": 0.01', '"lr": 0.02'),
        ("config.json", '"sha256"', '"sha265"'),
        ("tokenizer.json", '"type": "Fuse"', '"type": "Else"'),
    ],
)
def test_modified_settings_are_refused(name, before, after, run, written):
    """Even if the weights fit: their shapes do not depend on the number of heads."""
    begin, _, end = (run / name).read_text().rpartition(before)
    (run / name).write_text(begin + after + end)
    with pytest.raises(UserError, match=rf"{name}: is not what was written"):
        read_all(written)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors"])
def test_a_file_of_another_run_is_refused(name, run, written, tmp_path):
    """With the same settings and sizes, only the run's identifier differs."""
    fit_until(make_trainer(tmp_path / "other", written[1]), 9)
    (run / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(UserError, match=f"{name}: belongs to another run"):
        read_all(written)


def test_files_of_earlier_versions_are_read(run, written):
    """They have no sha256, no run identifier, and fewer counters."""
    expected = read_all(written)

    def older(header, data):
        about = {"format": "mlx_rtx-1"}
        if "counters" in header["__metadata__"]:
            counters = json.loads(header["__metadata__"]["counters"])
            about["counters"] = json.dumps({name: counters[name] for name in ("step", "finished", "progress")})
        return {**header, "__metadata__": about}, data

    for name in ("model.safetensors", "training.safetensors"):
        rewrite(run / name, older)
    config = json.loads((run / "config.json").read_text())
    for name in ("sha256", "run", "files"):
        del config[name]
    (run / "config.json").write_text(json.dumps({**config, "format": "mlx_rtx-1"}))
    found = read_all(written)
    assert (found[:2], found[3]) == (expected[:2], expected[3])
    assert found[2][:2] == expected[2][:2]


def test_a_vocabulary_of_another_size_is_refused(run):
    """If config.json lacks the vocabulary's sha256, as in older versions."""
    folder = RunFolder(run)
    folder.write_config({**folder.read_config(), "files": {}})
    other = folder.vocabulary().characters[:-1]
    type(folder.vocabulary())(other).save(folder.tokenizer)
    with pytest.raises(UserError, match=rf"tokenizer.json: has {len(other)} characters, its model {len(other) + 1}"):
        folder.vocabulary()


@pytest.mark.parametrize("where", ["outside", "fifo", "device", "itself"])
@pytest.mark.parametrize("name", [*FILES, "metrics.jsonl"])
def test_nothing_outside_its_folder_is_read(name, where, run, written, tmp_path):
    """Symbolic links, pipes that would block, devices that would never end."""
    file = run / name
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    if where == "fifo":
        os.mkfifo(file)
    else:
        file.symlink_to({"outside": tmp_path / "elsewhere", "device": "/dev/zero", "itself": file}[where])
    with pytest.raises(UserError, match=rf"{name}: (is a link to a file outside|not a regular file|cannot be read)"):
        read_all(written)
    assert (tmp_path / "elsewhere").read_bytes() == written[2][name]


def test_nothing_outside_its_folder_is_written(run, written, tmp_path):
    """If symbolic links replace files that a run writes."""
    trainer = make_trainer(run, replace(written[1], training=replace(written[1].training, seed=1)))
    for name in ("metrics.jsonl", "model.safetensors", f".training.{os.getpid()}.tmp.safetensors"):
        (tmp_path / name).write_text("elsewhere")
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(tmp_path / name)
    trainer.save()
    trainer.folder.write_model(trainer.model)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        trainer.log.note("train", step=1)
    assert {path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"elsewhere"}


def long_header(content):
    return (2**60).to_bytes(8, "little") + content[8:]


def deep_header(content):
    return len(DEEP).to_bytes(8, "little") + DEEP


def large_header(content):
    return (2**30).to_bytes(8, "little") + content[8:]


@pytest.mark.parametrize("size", [None, 2**40])
@pytest.mark.parametrize("change", [bytes, long_header, large_header, deep_header])
def test_impossible_sizes_are_refused_before_memory_is_taken(change, size, run, written):
    """For example a terabyte, of which nothing is on disk."""
    file = run / "model.safetensors"
    file.write_bytes(change(written[2]["model.safetensors"]))
    os.truncate(file, size or len(written[2]["model.safetensors"]) - 1)
    refused_without_memory(run)


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [2**31 - 1] * 8}, {"shape": [2**40, 2**40]}, {"shape": [-1, -8]}, {"shape": [10**30]},
        {"shape": [1] * 9}, {"shape": [True]}, {"shape": "16"}, {"shape": None}, {"dtype": "F64"}, {"dtype": ["F32"]},
        {"data_offsets": [0, 2**62]}, {"data_offsets": [-8, 0]}, {"data_offsets": []}, {"data_offsets": [0.0, 64.0]},
        {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_entries_are_refused(entry, run):
    def change(header, data):
        header["layers.0.alpha"] |= entry
        return header, data

    rewrite(run / "model.safetensors", change)
    refused_without_memory(run)


def refused_without_memory(run):
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"model\.safetensors: truncated or not a safetensors file"):
            load(run)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content", [DEEP, b'{"a": ' * 100_000, b"\xff\xfe{}", b"[" + b"9" * 5000 + b"]", b"null", b"[]"]
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_foreign_json_is_refused_in_one_line(name, content, run, written):
    if name == "tokenizer.json":
        folder = RunFolder(run)
        folder.write_config({**folder.read_config(), "files": {}})
    (run / name).write_bytes(content)
    assert refused_or_same(run / name, lambda: read_all(written), None)


@pytest.mark.parametrize("part", ["config", "counters"])
@given(data=st.data())
def test_invalid_values_are_refused_in_one_line(part, data, written):
    """Even with a matching sha256: missing values, other types, more than 64 bits."""
    restore(written)
    path = written[0]
    where = path / ("config.json" if part == "config" else "training.safetensors")
    stored = RunFolder(path).read_config() if part == "config" else saved(path)[1]
    at, value = data.draw(st.sampled_from(list(places(stored)))), data.draw(st.sampled_from(ODD))
    forge(RunFolder(path), part, change_at(stored, at, value))
    refused_or_same(where, lambda: bool(read_all(written)), True, *FILES)
