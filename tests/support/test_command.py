"""How programs end."""

from mlx_rtx.support.command import run_command

import pytest

ENDED = "[METAL] Command buffer execution failed: "


def raising(error: Exception):
    def main(_: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity).", "docs/mac.md"),
        ("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory).", "--batch"),
    ],
)
def test_what_macos_breaks_off_is_said_in_one_line(reason, remedy, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(raising(RuntimeError(ENDED + reason)))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: macOS ended work on the GPU ({ENDED}{reason})")
    assert "--resume" in said
    assert remedy in said
    assert said.count("\n") == 1


def test_any_other_error_is_a_bug():
    with pytest.raises(RuntimeError, match="no such thing"):
        run_command(raising(RuntimeError("no such thing")))
