"""Stress tests of files: every byte and value changed, a full disk, missing permissions, several processes at once.

Each part prints how often a damaged file was refused and how often it read the same. Any other outcome is a failure.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections import Counter

from mlx_rtx import RecurrentTransformer, RegularTransformer, load
from mlx_rtx.generation.decoding import Stream, start
from mlx_rtx.generation.saved_state import load_stream, save_stream
from mlx_rtx.support.trees import flat
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import read_lines
from mlx_rtx.training.stored_settings import from_stored
from mlx_rtx.training.trainer import Trainer

import pytest

from damage import ODD, change_at, forge, lines_kept, numbers, places, refused_or_same, rewrite
from tiny import FLAGS, events, fit_until, make_model, make_tokens, make_trainer, same, saved, text_run

pytestmark = pytest.mark.soak
FILES = ("config.json", "tokenizer.json", "model.safetensors", "training.safetensors", "metrics.jsonl")
STATES = {"recurrent.state": RecurrentTransformer, "regular.state": RegularTransformer}


@pytest.fixture
def say(capsys, request):
    """Return a function that prints a line in spite of pytest's capturing."""

    def say(text):
        with capsys.disabled():
            print(f"\n{request.node.name}: {text}")

    return say


class Kept:
    """One file of each kind, its contents, and how it is read."""

    def __init__(self, path):
        self.path, self.config = path, text_run(path, stateful=True)
        fit_until(make_trainer(path / "run", self.config), 9)
        self.folder = RunFolder(path / "run")
        self.data = self.config.task.load()
        self.models = {name: make_model(kind) for name, kind in STATES.items()}
        for name, model in self.models.items():
            _, state = model.step(make_tokens(9, 1), start(model).state)
            save_stream(path / name, model, Stream(state, make_tokens(1, 1)))
        files = [path / "run" / name for name in FILES] + [path / name for name in STATES]
        self.contents = {file.name: (file, file.read_bytes()) for file in files}

    def restore(self):
        for file, content in self.contents.values():
            file.write_bytes(content)

    def read(self, name):
        """Return a file's contents, as far as its readers use them."""
        if name in STATES:
            stream = load_stream(self.path / name, self.models[name])
            return stream.state.position, numbers(flat([stream.state.layers, stream.pending]))
        if name == "config.json":
            return from_stored(self.folder.read_config())[1]
        if name == "tokenizer.json":
            return self.folder.vocabulary().characters
        if name == "model.safetensors":
            return numbers(flat(load(self.folder.path)[0].parameters()))
        if name == "metrics.jsonl":
            return read_lines(self.folder.metrics)
        trainer = Trainer(self.config, self.data, self.folder, resume=True)
        arrays = numbers(flat([trainer.model.parameters(), trainer.train_step.state, trainer._carry]))
        return arrays, trainer.step, trainer.progress.state(), trainer._tally.losses, trainer._tally.reported


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return Kept(tmp_path_factory.mktemp("kept"))


def damages(content, generator):
    """Yield damaged versions: one changed bit per byte (every bit in headers and text), truncations and additions."""
    header = 8 + int.from_bytes(content[:8], "little") if content[8:9] == b"{" else len(content)
    stride = 1 + len(content) // 20_000  # there are many numbers alike
    for at in [*range(header), *range(header, len(content), stride)]:
        for bit in range(8) if at < header and header < 3000 else [generator.randrange(8)]:
            yield content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
    for end in {*range(200), *range(len(content) - 200, len(content)), *range(0, len(content), 61)}:
        if 0 <= end < len(content):
            yield content[:end]
    for extra in (b"\0", b"\n", b"{}", bytes(1000)):
        yield content + extra
        yield extra + content


@pytest.mark.parametrize("name", [*FILES, *STATES])
def test_every_byte(name, kept, say, capsys):
    kept.restore()
    (file, content), expected, found = kept.contents[name], kept.read(name), Counter()
    for harmed in damages(content, random.Random(0)):
        file.write_bytes(harmed)
        if name == "metrics.jsonl":
            told = lines_kept(file, expected)
            assert len(harmed) < len(content) or told >= len(expected) - 2
            found["lines left out" if told < len(expected) else "harmless"] += 1
        else:
            found["refused" if refused_or_same(file, lambda: kept.read(name), expected) else "harmless"] += 1
        capsys.readouterr()
    kept.restore()
    say(f"{len(content):,} bytes, {found.total():,} times harmed: {dict(found)}")


@pytest.mark.parametrize("part", ["config", "counters"])
def test_every_value(part, kept, say):
    """With a correct sha256: any value at any place is read or refused without a traceback."""
    kept.restore()
    name = "config.json" if part == "config" else "training.safetensors"
    stored = kept.folder.read_config() if part == "config" else saved(kept.folder.path)[1]
    found, readers = Counter(), ("config.json", "tokenizer.json", "model.safetensors", "training.safetensors")
    for place in places(stored):
        for value in ODD:
            kept.restore()
            forge(kept.folder, part, change_at(stored, place, value))
            refused = refused_or_same(kept.folder.path / name, lambda: all(map(kept.read, readers)), True, *readers)
            found["refused" if refused else "read"] += 1
    kept.restore()
    say(f"{found.total():,} values: {dict(found)}")


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", *STATES])
def test_every_entry_of_a_header(name, kept, say):
    kept.restore()
    (file, content), found, header = kept.contents[name], Counter(), {}
    expected = kept.read(name)
    rewrite(file, lambda before, data: header.update(before) or (before, data))
    for place in places(header):
        for value in ODD:
            if change_at(header, place, value) == header:
                continue
            file.write_bytes(content)
            rewrite(file, lambda before, data, place=place, value=value: (change_at(before, place, value), data))
            refused = refused_or_same(file, lambda: kept.read(name), expected)
            found["refused" if refused else "harmless"] += 1
    kept.restore()
    assert not found["harmless"]
    say(f"{found.total():,} entries: {dict(found)}")


LONG = "--samples=16000"
PLAIN_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]  # root without privileges


def train(path, *flags, prefix=()):
    """Run the command on the tiny run of `tiny.FLAGS`; return its exit code and output."""
    command = [*prefix, sys.executable, "-m", "mlx_rtx.train", *FLAGS, "--out", str(path), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 2:
        assert done.stderr.count("error: ") == 1, done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert train(path)[0] == 0
    return path


def test_several_processes_in_one_folder(tmp_path, say):
    """Only one of several processes works on a run at a time; whichever is killed, the finished run is the same."""
    found, generator, path = Counter(), random.Random(0), tmp_path / "run"
    command = [sys.executable, "-m", "mlx_rtx.train", *FLAGS, LONG, "--out", str(path)]
    for _ in range(20):
        again = ["--resume"] if (path / "config.json").exists() else []
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        several = [subprocess.Popen([*command, *again], **pipes) for _ in range(3)]
        for process in generator.sample(several, 3):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3 * generator.random())
            process.kill()
            output = process.communicate()[1].decode()
            assert "Traceback" not in output, output
            assert "free some space" not in output
            busy = "another process" in output or "already holds a run" in output
            found["refused" if busy else {0: "ended", 2: output}.get(process.returncode, "killed")] += 1
    code, output = train(path, LONG, "--resume")
    assert code == 0, output
    assert train(tmp_path / "whole", LONG)[0] == 0
    same(saved(path), saved(tmp_path / "whole"))
    for kind in ("validation", "stage", "final"):
        assert events(path, kind) == events(tmp_path / "whole", kind)
    assert set(found) <= {"refused", "ended", "killed"}
    say(f"{found.total()} processes: {dict(found)}; {len(events(path, 'resume'))} times gone on")


def test_a_small_disk(tmp_path, whole, say):
    """A run that fills the disk ends with one line, and resumes bit-exactly once there is space."""
    disk, found = tmp_path / "disk", Counter()
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        for size in [*range(16, 400, 8), 2048]:
            subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
            again = ["--resume"] if (disk / "run" / "config.json").exists() else []
            code, output = train(disk / "run", *again)
            assert code == 0 or (code == 2 and "free some space" in output), output
            found["ended" if code == 0 else "refused"] += 1
            if code == 0:
                break
        same(saved(disk / "run"), saved(whole))
    finally:
        subprocess.run(["umount", disk], check=True)
    say(f"{found.total()} sizes: {dict(found)}")


def test_missing_permissions(tmp_path, whole, say):
    """For each file and the folder: one line, and nothing changes."""
    prefix, found = PLAIN_ROOT if os.geteuid() == 0 else [], Counter()
    if prefix and (
        shutil.which(prefix[0]) is None or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("root cannot give up its rights here")
    for mode in (0o000, 0o200, 0o400, 0o500):
        for name in ["", *(file.name for file in whole.iterdir())]:
            run = tmp_path / f"{mode}-{name}"
            shutil.copytree(whole, run)
            before = {file.name: file.read_bytes() for file in run.iterdir()}
            for command in (["--resume", "--samples=800"], []):
                (run / name).chmod(mode)
                code, output = train(run, *command, prefix=prefix)
                assert code in (0, 2), output
                (run / name).chmod(0o700)
                found["refused" if code else "went on"] += 1
                after = {file.name: file.read_bytes() for file in run.iterdir()}
                assert not code or before == after, (oct(mode), name, output)
                before = after
    say(f"{found.total()} calls: {dict(found)}")
