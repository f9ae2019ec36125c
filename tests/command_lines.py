"""Random command lines, valid and invalid, for every program of the project.

The flags and the types of their values are read from ``--help``, so a new flag is tested as soon as it exists. A line
starts with flags that keep the work small, followed by one to four random flags with random values.
"""

import contextlib
import importlib
import io
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

SMALL = ("--dim=8", "--heads=2", "--block=4", "--samples=32", "--batch=8", "--report-every=2", "--validate-every=2")


class Program(NamedTuple):
    """A program or one of its subcommands, and arguments with which it runs quickly."""

    module: str
    words: tuple[str, ...] = ()  # subcommand
    small: tuple[str, ...] = ()  # flags that keep the work small
    needed: tuple[str, ...] = ()  # valid positional arguments


RETRIEVAL = (*SMALL, "--validate-samples=4", "--test-samples=4", "--out=new")
COPY = ("--noise=8", *RETRIEVAL)
BENCHMARK = ("--seconds=1", "--out=new")
PROGRAMS = [
    Program("mlx_rtx.train", ("copy",), COPY),
    Program("mlx_rtx.train", ("mqar",), (*RETRIEVAL, "--length=16", "--pairs=2")),
    Program("mlx_rtx.train", ("induction",), (*RETRIEVAL, "--noise=8")),
    Program("mlx_rtx.train", ("recall",), (*RETRIEVAL, "--length=32")),
    Program("mlx_rtx.train", ("memorization",), (*RETRIEVAL, "--length=8")),
    Program("mlx_rtx.train", ("mixture",), (*RETRIEVAL, "--length=16", "--payload=2", "--data=text.txt")),
    Program("mlx_rtx.train", ("copy",), ("--out=run/copy", "--resume")),
    Program("mlx_rtx.train", ("selective-copy",), COPY),
    Program("mlx_rtx.train", ("image",), (*SMALL, "--block=128", "--samples=8", "--data=text.txt", "--out=new")),
    Program("mlx_rtx.train", ("text",), (*SMALL, "--length=16", "--data=text.txt", "--sample=4", "--out=new")),
    Program("mlx_rtx.train", ("text",), ("--data=text.txt", "--out=run/text", "--resume")),
    Program("mlx_rtx.train"),
    Program("mlx_rtx.evaluate", (), ("--samples=4", "--noise=8"), ("run/copy",)),
    Program("mlx_rtx.evaluate", (), ("--samples=4",), ("run/text",)),
    Program("mlx_rtx.evaluate", (), ()),
    Program("mlx_rtx.generate", (), ("--model=run/text", "--prompt=a", "--max-tokens=3")),
    Program("mlx_rtx.generate", (), ("--model=run/text", "--max-tokens=3")),
    Program("mlx_rtx.export", (), ("--samples=2",), ("run/text", "exported")),
    Program("mlx_rtx.convert", (), ("--block=4",), ("run/text", "converted.npz")),
    Program("mlx_rtx.convert", (), ("--block=4", "--heads=2"), ("binary.npz", "new")),
    Program("mlx_rtx.__main__", ("evaluate", "run/copy"), ("--samples=4",)),
    Program("mlx_rtx.__main__"),
    Program("mlx_rtx.kernel_check.__main__", ("copy",), COPY[:-1]),
    Program("mlx_rtx.plot", (), (), ("run/copy",)),
    Program("mlx_rtx.plan", ("copy",), (*COPY[:-1], "--memory=1GB")),
    Program("mlx_rtx.plan", ("copy",), ("--machine=m4",)),
    Program("mlx_rtx.plan", ("selective-copy",), (*COPY[:-1], "--machine=m4")),
    Program("mlx_rtx.plan", ("text",), (*SMALL, "--length=16", "--machine=m4")),
    Program("mlx_rtx.plan", ("image",), ("--machine=m4",)),
    Program("mlx_rtx.scaling.__main__", ("theory",)),
    Program("mlx_rtx.scaling.__main__", ("count",), ("--no-made", "--starts=2", "--out=new"), ("text.txt",)),
    Program("mlx_rtx.scaling.__main__", ("count",), ("--size=2000", "--starts=2", "--lengths", "1", "2", "--out=new")),
    Program(
        "mlx_rtx.scaling.__main__", ("train",), ("--dims", "4", "--halvings=0", "--models=recurrent", "--out=new"),
        ("text.txt",),
    ),
    Program("mlx_rtx.scaling.__main__", ("fit",), ("--losses=losses.jsonl", "--resamples=20", "--out=new")),
    Program("scripts.reproduce", (), ("--quick", "--dry-run", "--results=new", "--runs=work"), ("table2", "figures")),
    Program("benchmarks.ops_vs_wallclock", (), ("--quick", "--shapes=copy", "--models=recurrent", *BENCHMARK)),
    Program("benchmarks.data_parallel", (), ("--quick", "--tasks=copy", "--ranks=1", *BENCHMARK)),
    Program("benchmarks.model_cost", (), ("--contexts=8", "--repeats=1", *BENCHMARK), (f"copy {' '.join(COPY[:-1])}",)),
    Program("benchmarks.growth", (), ("--lengths=128", "--widths=48", *BENCHMARK)),
    Program("benchmarks.generation", (), ("--contexts=8", "--batches=1", *BENCHMARK)),
    Program("benchmarks.generation_length", (), ("--model=run/text", "--tokens=1000", "--out=new")),
    Program("benchmarks.peers", (), ("--contenders=mlx", "--shapes=image", "--batch=1", "--repeats=1", "--out=new")),
]  # fmt: skip
UNTRIED = {"--help", "--upload", "--private", "--verify"}  # these access the network or take long

NUMBERS = ["1", "2", "4", "8", "16", "0.1", "0.5", "1e-3"] * 3 + [
    "0", "3", "7", "-1", "1e400", "-1e400", "nan", "inf", "-inf", "1e-400", "0.5", "1e3", "007", "0x10", "1_0",
    "4294967296", "2147483647", "2147483648", "-2147483648", "9223372036854775807", "9223372036854775808", "9" * 40,
    "1" * 5000, "65536", "65537", "1048577", "1073741824", "1024", "1125899906842624", "100000", "٣", "１２", "½",
]  # fmt: skip
WORDS = [
    "", " ", "-", "--", "---", "-x", "=", "None", "True", "false", "a", "\n", "a\nb", "\t", "é", "≤§", "😀", "\udcff",
    "a\udc80b", "%s", "{}", "{x}", "%", "\\", "'", '"', "a" * 300, "é" * 5000, "\u202e", "\x1b[31m", "\ufeff", "\x01",
]  # fmt: skip
PATHS = [
    "missing", "text.txt", "empty", "folder", "run/copy", "run/text", "locked/x", "locked", "sealed/x", "sealed",
    "loop", "/proc", "a" * 256, "b" * 255, "d/" * 2000 + "x", "/proc/1/mem", "/proc/self/mem", "~", "~nobody/x", "..",
    ".", "text.txt/x", "fifo", "binary", "latin.txt", "deep.toml", "wrong.toml", "latin.toml", "right.toml",
    "zero.toml", "broken.json", "/dev/null/x", "run/bare", "run/cut", "http://127.0.0.1:1/x", "s3://x/y", "nul\0x",
]  # fmt: skip
LIKELY = {  # values that are often valid, so that some lines get past argument parsing
    "INT": ["1", "2", "3", "4", "8", "16", "32"],
    "FLOAT": ["0.1", "0.5", "1e-3", "1", "0.9", "0"],
    "PATH": ["run/copy", "run/text", "text.txt", "new", "folder", "right.toml", "losses.jsonl", "other"],
    "STR": ["a", "text.txt", "1GB", "fresh", "validation", "stream", "run/text", "None"],
}
SIZES = ["16GB", "0", "1e400GB", "1KB", "-1GB", "9" * 400 + "GB", "٣GB", "1 TB", "inf", "nan", ".", "1.2.3"]
OUTPUTS = ["utf-8"] * 12 + ["ascii", "latin-1", "closed", "full", "pipe"]


@dataclass(frozen=True)
class Flag:
    """A flag or the positional arguments (``name=""``), and its values as ``--help`` describes them ("" for none)."""

    name: str
    takes: str

    @property
    def several(self) -> bool:
        """Whether the flag takes any number of values."""
        return "..." in self.takes

    def value(self, generator: random.Random) -> str:
        """Return a random value, with probability ½ one that is often valid for this type."""
        choices = re.findall(r"\{([^}]*)\}", self.takes)
        number = "INT" in self.takes or "FLOAT" in self.takes
        if generator.random() < 0.5:
            if choices and (not number or generator.random() < 0.2):
                return generator.choice(",".join(choices).split(","))
            likely = [kind for kind in LIKELY if kind in self.takes]
            return generator.choice(LIKELY[likely[0] if likely else "STR"])
        pools = [NUMBERS, WORDS, PATHS, SIZES]
        if generator.random() < 0.6:
            pools = [PATHS] if "PATH" in self.takes or self.name == "--data" else [NUMBERS] if number else pools
        return generator.choice(generator.choice(pools))


def main_of(program: Program) -> Callable[[list[str]], None]:
    """Return the main function of a program."""
    name = program.module.partition(".")[2] if program.module.startswith(("scripts", "benchmarks")) else program.module
    module = importlib.import_module(name)
    return module.run if name == "mlx_rtx.__main__" else module.main


def flags_of(program: Program) -> list[Flag]:
    """Return the flags that ``--help`` lists."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main_of(program)([*program.words, "--help"])
    found = [Flag("", "[PATH ...]")]
    for line in printed.getvalue().replace("│", "\n").splitlines():
        if words := re.match(r"^ *(?:-\w, )?(--[a-z][\w-]*)(?:, (--[a-z][\w-]*))?(?: +(\S.*?))? *$", line):
            switches = words[2] is not None
            found.append(Flag(words[1], "" if switches else (words[3] or "").split("  ")[0]))
            found += [Flag(words[2], "")] if switches else []
    return [flag for flag in found if flag.name not in UNTRIED]


@dataclass(frozen=True)
class CommandLine:
    """A program, its arguments and the kind of its standard output, one of `OUTPUTS`."""

    program: Program
    words: tuple[str, ...]
    output: str = "utf-8"

    def __str__(self) -> str:
        return f"{self.program.module} {' '.join(word[:80] for word in self.words)!r} (output: {self.output})"


def make_line(generator: random.Random, flags: dict[Program, list[Flag]]) -> CommandLine:
    """Return a random command line."""
    program = generator.choice(PROGRAMS)
    words = [*program.words, *program.small]
    more: list[str] = []
    for _ in range(generator.choice([1, 1, 2, 2, 3, 4])):
        flag = generator.choice(flags[program])
        values = [flag.value(generator) for _ in range(generator.choice([0, 1, 2, 3]) if flag.several else 1)]
        if not flag.name:
            more = [*values, *more]
        elif generator.random() < 0.03:
            more += [flag.name + generator.choice(["x", "=", "-", "é", ""])]
        elif not flag.takes:
            more += [flag.name]
        elif len(values) == 1 and generator.random() < 0.5:
            more += [f"{flag.name}={values[0]}"]
        else:
            more += [flag.name, *values]
    needed = program.needed if generator.random() < 0.9 else ()
    words = [*program.words, *needed, *program.small, *more]
    if generator.random() < 0.02:
        generator.shuffle(words)
    return CommandLine(program, tuple(words), generator.choice(OUTPUTS))


def all_flags() -> dict[Program, list[Flag]]:
    """Return the flags of all programs; import the modules that they import late, once for all forked processes."""
    os.environ["COLUMNS"] = "100"
    for late in ("matplotlib.figure", "scipy.optimize", "datasets", "pydivsufsort"):
        with contextlib.suppress(ImportError):
            importlib.import_module(late)
    return {program: flags_of(program) for program in PROGRAMS}
