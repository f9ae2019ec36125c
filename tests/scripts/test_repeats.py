"""Every passage of a text occurs a second time, at the requested distance."""

import random

import pytest

import repeats
from tiny import complaint


@pytest.mark.parametrize(("passage", "after"), [(1, 1), (1, 3), (5, 15), (4, 36)])
def test_every_passage_occurs_twice(passage, after):
    text = "".join(random.Random(0).choices("abcdefgh", k=997))
    woven = repeats.repeated(text, passage, after)
    passages = [woven[start : start + passage] for start in range(0, len(woven), passage)]
    distance, behind = after // passage, (after // passage - 1) // 2
    second = [i for i in range(2 * behind + 1, len(passages)) if (i - behind) % 2]  # they alternate with new ones
    assert all(passages[i] == passages[i - distance] for i in second if i - distance >= behind)
    fresh = [p for i, p in enumerate(passages) if i < behind or (i - behind) % 2 == 0]
    assert "".join(fresh) == text[: len(text) // passage * passage]


def test_from_file_to_file(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("abcdef" * 100)
    repeats.main([str(tmp_path / "text.txt"), str(tmp_path / "out.txt"), "--passage", "3", "--after", "9"])
    assert (tmp_path / "out.txt").read_text() == repeats.repeated("abcdef" * 100, 3, 9)
    assert "1,197 characters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.txt", "TEXT {}: not found"), ("folder", "TEXT {}: this folder")]
)
def test_messages_name_the_argument(name, reason, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    text = str(tmp_path / name)
    output = complaint([text, str(tmp_path / "out.txt")], capsys, monkeypatch, repeats.main)
    assert reason.format(text) in output
    assert "--data" not in output


@pytest.mark.parametrize("wrong", [["--passage", "0"], ["--after", "2048", "--passage", "256"]])
def test_wrong_flags(wrong, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text("abcdef")
    arguments = [str(tmp_path / "text.txt"), str(tmp_path / "out.txt"), *wrong]
    output = complaint(arguments, capsys, monkeypatch, repeats.main)
    assert wrong[0].strip("-") in output
