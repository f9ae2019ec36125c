"""``mlx_rtx``: the list of commands, and each command."""

import sys
from importlib.metadata import version
from importlib.resources import files

from mlx_rtx import __main__ as program

import pytest


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["mlx_rtx", *arguments])
    try:
        program.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_it_lists_every_command(arguments, monkeypatch, capsys):
    assert call(monkeypatch, *arguments) == 0
    output = capsys.readouterr().out
    for name in program.COMMANDS:
        assert f"\n      python -m mlx_rtx.{name} " in output


@pytest.mark.parametrize("name", program.COMMANDS)
def test_it_runs_each_command(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    assert f"usage: python -m mlx_rtx.{name} " in capsys.readouterr().out


def test_an_unknown_command(monkeypatch, capsys):
    assert call(monkeypatch, "trian") == 2
    assert capsys.readouterr().err.startswith("error: trian: unknown command; choose one of train, ")


def test_it_prints_its_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"mlx_rtx {version('mlx_rtx')}, mlx {version('mlx')}\n"


def test_the_package_is_typed():
    assert (files("mlx_rtx") / "py.typed").is_file()
