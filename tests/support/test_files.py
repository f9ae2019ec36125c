"""Files are complete or absent, reach the disk in the order of writing, and are written by one process at a time."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

from mlx_rtx import UserError
from mlx_rtx.support import files
from mlx_rtx.support.files import open_data, read_json, remove_left_over, write_whole
from mlx_rtx.support.json_lines import append_line
from mlx_rtx.support.locks import alone

import pytest


def test_a_file_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    """A rename that reached the disk before the contents would leave an empty file after a power failure."""
    done, sync, replace = [], os.fsync, os.replace

    def syncing(descriptor):
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append("folder" if folder else f"file of {os.fstat(descriptor).st_size}")
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", syncing)
    monkeypatch.setattr(files.os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    write_whole(tmp_path / "a.json", lambda path: path.write_text("content"))
    assert done == ["file of 7", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "make this place writable")]
)
def test_a_file_that_cannot_be_written_is_reported_with_a_remedy(number, words, tmp_path):
    """Missing permissions were once reported with the advice to free space."""

    def refuse(path):
        path.write_text("half")
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_text("before")
    with pytest.raises(UserError, match=words):
        write_whole(tmp_path / "a", refuse)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "before")]


def test_a_link_in_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("untouched")
    (tmp_path / f".a.{os.getpid()}.tmp.json").symlink_to(tmp_path / "other")
    write_whole(tmp_path / "a.json", lambda path: path.write_text("content"))
    assert (tmp_path / "other").read_text() == "untouched"
    assert not (tmp_path / "a.json").is_symlink()


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    for name in (".a.17.tmp.json", ".mine.json", "b.tmp.json"):
        (tmp_path / name).touch()
    remove_left_over(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.json", "b.tmp.json"]


def test_lines_are_only_appended(tmp_path):
    path = tmp_path / "log"
    append_line(path, "one")
    path.write_bytes(path.read_bytes() + b"tw")  # truncated by a crash
    append_line(path, "three")
    assert path.read_bytes() == b"one\ntw\nthree\n"


def test_only_regular_files_in_the_folder_are_opened(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "file").touch()
    (tmp_path / "in" / "near").symlink_to("file")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "folder").symlink_to(tmp_path / "in")
    for name in ("link", "pipe", "."):
        with pytest.raises(UserError, match=r"link to a file outside its folder|not a regular file"):
            open_data(tmp_path / "in" / name)
    for path in (tmp_path / "in" / "near", tmp_path / "folder" / "file"):
        open_data(path).close()


def test_json_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "a.json").touch()
    os.truncate(tmp_path / "a.json", 2**40)
    with pytest.raises(UserError, match=r"a\.json: is larger than"):
        read_json(tmp_path / "a.json", "restore it")


def test_a_lock_has_one_holder_and_leaves_no_file(tmp_path):
    for _ in range(2):
        with alone(tmp_path / "lock", "it"):
            with pytest.raises(UserError, match="it: another process is using it"), alone(tmp_path / "lock", "it"):
                pass
            assert os.listdir(tmp_path) == ["lock"]
        assert os.listdir(tmp_path) == []


HOLDER = """
import sys, time
from pathlib import Path
from mlx_rtx import UserError
from mlx_rtx.support.json_lines import append_line
from mlx_rtx.support.locks import alone
held = 0
for _ in range(int(sys.argv[2])):
    try:
        with alone(Path(sys.argv[1], "lock"), "it"):
            mark = Path(sys.argv[1], "mark")
            mark.touch(exist_ok=False)  # fails where another is inside
            mark.unlink()
            held += 1
    except UserError:
        time.sleep(0.0001)
print(held)
"""


def test_a_lock_never_has_two_holders(tmp_path):
    """Not even if one process removes the file that another one has just opened."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), "300"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    held = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sum(map(int, held)) > 0
    assert os.listdir(tmp_path) == []


def test_a_lock_of_a_killed_process_is_released(tmp_path):
    (tmp_path / "lock").write_text("")
    with alone(Path(tmp_path / "lock"), "it"):
        pass
