"""Command lines as nobody should type them, made from the programs' own help, and run in forked processes.

    python tests/command_lines.py LINES SEED

The flags and what they take are read from ``--help``, so a new flag is tried as soon as it is there. A line begins with
flags that keep the work small; one to four more come after them, with values from all over.
"""

import contextlib
import importlib
import io
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlx_rtx.support.command import LONGEST, run_command

BUG = 99  # exit code of what ended by an exception that it should not have
MEMORY = 12 * 2**30  # bytes of address space
LONG = 8  # seconds after which a program is asked to stop
PATIENCE = 15  # seconds in which a program that is asked to stop must do so, on a machine that has much else to do
SMALL = ("--dim=8", "--heads=2", "--block=4", "--samples=32", "--batch=8", "--report-every=2", "--validate-every=2")


class Program(NamedTuple):
    """A program, or a subcommand of one: the words that call it, and flags that keep it small."""

    module: str
    words: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()  # positional arguments that are right


RETRIEVAL = (*SMALL, "--validate-samples=4", "--test-samples=4", "--out=new")
COPY = ("--noise=8", *RETRIEVAL)
RETRIEVAL = (*SMALL, "--validate-samples=4", "--test-samples=4", "--out=new")
GROWTH = ("--seconds=1", "--out=new")
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
    Program("mlx_rtx.train", ("mqar",), (*RETRIEVAL, "--length=16", "--pairs=2")),
    Program("mlx_rtx.train", ("induction",), (*RETRIEVAL, "--noise=13")),
    Program("mlx_rtx.train", ("recall",), (*RETRIEVAL, "--length=16")),
    Program("mlx_rtx.train", ("memorization",), (*RETRIEVAL, "--length=16")),
    Program("mlx_rtx.train", ("mixture",), (*RETRIEVAL, "--length=48", "--data=text.txt")),
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
    Program("benchmarks.ops_vs_wallclock", (), ("--quick", "--shapes=copy", "--models=recurrent", *GROWTH)),
    Program("benchmarks.data_parallel", (), ("--quick", "--tasks=copy", "--ranks=1", *GROWTH)),
    Program("benchmarks.model_cost", (), ("--contexts=8", "--repeats=1", *GROWTH), (f"copy {' '.join(COPY[:-1])}",)),
    Program("benchmarks.growth", (), ("--lengths=128", "--widths=48", *GROWTH)),
    Program("benchmarks.generation", (), ("--contexts=8", "--batches=1", *GROWTH)),
    Program("benchmarks.generation_length", (), ("--model=run/text", "--tokens=1000", "--out=new")),
    Program("benchmarks.peers", (), ("--contenders=mlx", "--shapes=image", "--batch=1", "--repeats=1", "--out=new")),
]  # fmt: skip
UNTRIED = {"--help", "--upload", "--private", "--verify"}  # they leave the machine, or are long

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
LIKELY = {  # what a flag may well take, so that a line gets further
    "INT": ["1", "2", "3", "4", "8", "16", "32"],
    "FLOAT": ["0.1", "0.5", "1e-3", "1", "0.9", "0"],
    "PATH": ["run/copy", "run/text", "text.txt", "new", "folder", "right.toml", "losses.jsonl", "other"],
    "STR": ["a", "text.txt", "1GB", "fresh", "validation", "stream", "run/text", "None"],
}
SIZES = ["16GB", "0", "1e400GB", "1KB", "-1GB", "9" * 400 + "GB", "٣GB", "1 TB", "inf", "nan", ".", "1.2.3"]
OUTPUTS = ["utf-8"] * 12 + ["ascii", "latin-1", "closed", "full", "pipe"]


@dataclass(frozen=True)
class Flag:
    """A flag or positional argument, and what help says it takes: nothing, some of a kind, or one of some words."""

    name: str
    takes: str

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        return "..." in self.takes

    def value(self, generator: random.Random) -> str:
        """Something to give it: half of the time what it may well take."""
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
    """What the program runs."""
    name = program.module.partition(".")[2] if program.module.startswith(("scripts", "benchmarks")) else program.module
    module = importlib.import_module(name)
    return module.run if name == "mlx_rtx.__main__" else module.main


def flags_of(program: Program) -> list[Flag]:
    """What ``--help`` says there is."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main_of(program)([*program.words, "--help"])
    found = [Flag("", "[PATH ...]")]
    for line in said.getvalue().replace("│", "\n").splitlines():
        if words := re.match(r"^ *(?:-\w, )?(--[a-z][\w-]*)(?:, (--[a-z][\w-]*))?(?: +(\S.*?))? *$", line):
            switches = words[2] is not None
            found.append(Flag(words[1], "" if switches else (words[3] or "").split("  ")[0]))
            found += [Flag(words[2], "")] if switches else []
    return [flag for flag in found if flag.name not in UNTRIED]


@dataclass(frozen=True)
class CommandLine:
    """Words to call a program with, and where its output goes."""

    program: Program
    words: tuple[str, ...]
    output: str = "utf-8"

    def __str__(self) -> str:
        return f"{self.program.module} {' '.join(word[:80] for word in self.words)!r} (output: {self.output})"


def make_line(generator: random.Random, flags: dict[Program, list[Flag]]) -> CommandLine:
    """A command line."""
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


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    line: CommandLine
    code: int
    """Exit code; minus a signal's number where that ended it."""
    seconds: float
    """Of processor time, its own and its children's."""
    out: str
    err: str
    asked: bool
    """Whether it was asked to stop."""

    @property
    def fault(self) -> str | None:
        """What was wrong with how it ended."""
        errors = [text for text in self.err.splitlines() if text.startswith("error: ")]
        if self.code == BUG or "Traceback" in self.err or "Exception ignored" in self.err:
            return "traceback"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if self.code == 2 and (len(errors) != 1 or len(errors[0]) > LONGEST + 20):
            return "not one line"
        if self.code not in (0, 1, 2, 128 + signal.SIGPIPE, *([128 + signal.SIGTERM] if self.asked else [])):
            return f"exit code {self.code}"
        return None


def run_line(line: CommandLine, folder: Path, seconds: float) -> Outcome:
    """Run a command line in a forked process, in a copy of ``folder``, asked to stop after ``seconds``."""
    place = folder.parent / f"case-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place / "in", symlinks=True, ignore=shutil.ignore_patterns("fifo", "locked", "sealed"))
    os.mkfifo(place / "in" / "fifo")
    out, err = place / "out.log", place / "err.log"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child is ready to be asked
    child = os.fork()
    if child == 0:
        _in_child(line, place, out, err)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    status, used, asked = _wait(child, seconds)
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    return Outcome(line, status, used, texts[0], texts[1], asked)


def _wait(child: int, seconds: float) -> tuple[int, float, bool]:
    """Exit code and processor time of a child, and whether it had to be asked to stop, which it has a while for."""
    began, asked = time.monotonic(), False
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, asked
        taken = time.monotonic() - began
        if taken > seconds + PATIENCE:
            os.killpg(child, signal.SIGKILL)
        elif taken > seconds and not asked:
            asked = True
            os.killpg(child, signal.SIGTERM)
        time.sleep(0.002)


def _in_child(line: CommandLine, place: Path, out: Path, err: Path) -> None:
    """Be the program, and end."""
    code = BUG
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        os.chdir(place / "in")
        for name in ("locked", "sealed"):
            os.mkdir(name, {"locked": 0o000, "sealed": 0o555}[name])
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115
        _open_output(line.output, out)
        sys.argv = [line.program.module, *line.words]
        program = main_of(line.program)

        def begun(arguments: list[str]) -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            program(arguments)

        run_command(begun)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


def _open_output(kind: str, out: Path) -> None:
    """Let standard output be of a kind."""
    if kind == "closed":
        os.close(1)
        sys.stdout = None  # type: ignore[assignment]
        return
    if kind == "full":
        to = os.open("/dev/full", os.O_WRONLY)
    elif kind == "pipe":
        reading, to = os.pipe()
        os.close(reading)
    else:
        to = os.open(out, os.O_WRONLY | os.O_CREAT)
    os.dup2(to, 1)
    sys.stdout = open(1, "w", encoding=kind if kind not in ("full", "pipe") else "utf-8")  # noqa: SIM115


def make_folder(path: Path) -> Path:
    """A folder with tiny runs, and files that are right and wrong; made in a process of its own, before any forks."""
    path.mkdir()
    text = "".join(f"{i % 10} times {i % 7} is {i % 10 * (i % 7)}.\n" for i in range(200))
    files: dict[str, bytes] = {
        "text.txt": text.encode(),
        "empty": b"",
        "binary": bytes(range(256)) * 4,
        "binary.npz": bytes(range(256)) * 4,
        "latin.txt": "caf\xe9".encode("latin-1") * 200,
        "latin.toml": 'data = "caf\xe9"'.encode("latin-1"),
        "deep.toml": b"x = " + b"[" * 100_000,
        "wrong.toml": b"noise = [1, 2]\n",
        "zero.toml": b'data = "a\\u0000b"\nout = "c\\u0000d"\n',
        "right.toml": b"lr = 1e-3\n",
        "broken.json": b"{",
        "losses.jsonl": b'{"model": "x"}\n',
    }
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / "folder").mkdir()
    (path / "loop").symlink_to("loop")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chdir(path)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            from mlx_rtx import train

            train.main(["copy", *COPY[:-1], "--out=run/copy"])
            train.main(["text", *SMALL, "--length=16", "--data=text.txt", "--sample=4", "--out=run/text"])
            shutil.copytree("run/copy", "run/bare")
            Path("run/bare/model.safetensors").unlink()
            Path("run/bare/training.safetensors").unlink()
            shutil.copytree("run/text", "run/cut")
            for name in ("model.safetensors", "training.safetensors", "config.json"):
                whole = Path("run/cut", name).read_bytes()
                Path("run/cut", name).write_bytes(whole[: len(whole) // 2])
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0, "the runs could not be made"
    return path


def all_flags() -> dict[Program, list[Flag]]:
    """The flags of all programs; modules that programs import late are imported here, once for all forks."""
    os.environ["COLUMNS"] = "100"
    for late in ("matplotlib.figure", "scipy.optimize", "datasets", "pydivsufsort"):
        with contextlib.suppress(ImportError):
            importlib.import_module(late)
    return {program: flags_of(program) for program in PROGRAMS}


def main(lines: int, seed: int) -> int:
    """Run so many command lines; the number of those that ended as none should."""
    project = Path(__file__).parents[1]
    sys.path[:0] = [str(project / "scripts"), str(project / "benchmarks")]
    os.environ.setdefault("MLX_RTX_KERNELS", "0")
    generator, flags, codes, faults = random.Random(seed), all_flags(), Counter[str](), 0
    place = Path(tempfile.mkdtemp(prefix="lines"))
    folder = make_folder(place / "folder")
    for done in range(1, lines + 1):
        outcome = run_line(make_line(generator, flags), folder, LONG)
        codes["asked to stop" if outcome.asked else f"code {outcome.code}"] += 1
        if outcome.fault:
            faults += 1
            print(f"FAULT {outcome.fault}: {outcome.line}\n{outcome.err[-2000:]}", flush=True)
        if done % 250 == 0 or done == lines:
            counts = ", ".join(f"{count} {code}" for code, count in sorted(codes.items()))
            programs = len({program.module for program in PROGRAMS})
            print(f"{done} command lines of {programs} programs ({counts}): {faults} faults", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    return faults


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])) > 0)
