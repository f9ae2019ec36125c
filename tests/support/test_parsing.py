"""Command lines and configuration files become settings, or one line that says what is wrong."""

import contextlib

from mlx_rtx import evaluate, generate, plan, plot, train
from mlx_rtx.support.errors import UserError
from mlx_rtx.support.parsing import parse, read_config_file

import pytest
from hypothesis import given
from hypothesis import strategies as st

PARSERS = {
    "train": train.read_command,
    "evaluate": lambda words: parse(evaluate.EvaluateCommand, words, "evaluate"),
    "generate": lambda words: parse(generate.GenerateCommand, words, "generate"),
    "plot": lambda words: parse(plot.PlotCommand, words, "plot"),
}
FLAGS = st.sampled_from(
    ["--noise", "--dim", "--lr", "--out", "--data", "--seed", "--segment", "--resume", "--batch", "--prompt", "--top-p",
     "--alpha-kind", "--no-train-alpha", "--config", "--model", "--samples", "--json", "--bogus", "--", "-x"]
)  # fmt: skip
NUMBERS = st.one_of(st.integers().map(str), st.floats().map(str), st.just("9" * 5000))
WORDS = st.one_of(FLAGS, NUMBERS, st.text(max_size=12), st.sampled_from(["copy", "text", "None", "a" * 300]))


@given(st.sampled_from(sorted(PARSERS)), st.lists(WORDS, max_size=6), st.booleans())
def test_any_arguments_give_settings_or_one_line(program, words, with_task):
    if "-h" not in words and "--help" not in words:
        with contextlib.suppress(UserError):
            PARSERS[program](["copy"] * with_task + words)


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_file_gives_flags_or_one_line(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert all(isinstance(word, str) for word in read_config_file(path))


@pytest.mark.parametrize(
    "content", [b"x = " + b"[" * 100_000, b'data = "caf\xe9"', b"noise = " + b"9" * 5000, b"\xff\xfe", b"a" * 10_000]
)
def test_invalid_configuration_files(content, tmp_path):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError, match="invalid TOML"):
        read_config_file(tmp_path / "c.toml")


def test_a_nul_character_is_refused(tmp_path):
    """A shell cannot pass one, but a configuration file can."""
    (tmp_path / "c.toml").write_text('data = "a\\u0000b"')
    with pytest.raises(UserError, match="contains a NUL character"):
        train.read_command(["text", "--config", str(tmp_path / "c.toml")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["copy", "--noise", "many"], "--noise 'many': must be a whole number"),
        (["copy", "--lr", "fast"], "--lr 'fast': must be a number"),
        (["copy", "--lr", "nan"], "lr.nan: must be a finite number"),
        (["copy", "--clip", "inf"], "clip.inf: must be a finite number"),
        (["copy", "--segment", "x"], "--segment 'x': must be None or INT"),
        (["copy", "--noise", "9" * 5000], "--noise: has too many digits"),
        (["copy", "--validate-every", "9" * 30], "validate_every=a number of 100 bits: must be a whole number"),
        (["copy", "--data", "x"], "it is a flag of image, text, mixture: put it after the subcommand"),
        (["--noise", "5", "copy"], "it is a flag of copy, selective-copy, induction: put it after the subcommand"),
        (["copy", "--nosie", "5"], "did you mean --noise"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_error_messages(words, message):
    with pytest.raises(UserError, match=message):
        train.read_command(words)


def test_help_names_the_subcommands(capsys):
    for main, program in ((train.main, "train"), (plan.main, "plan")):
        with pytest.raises(SystemExit):
            main(["--help"])
        assert f"python -m mlx_rtx.{program} copy --help" in capsys.readouterr().out
