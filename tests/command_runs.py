"""Run random command lines in forked processes and report every traceback, crash, hang and unclear error message.

    python tests/command_runs.py LINES SEED

``make soak`` runs it too.
"""

import contextlib
import importlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.support.command import LONGEST, run_command

from command_lines import COPY, PROGRAMS, SMALL, CommandLine, all_flags, main_of, make_line

BUG = 99  # exit code of a program that ended with an unexpected exception
MEMORY = 12 * 2**30  # bytes of address space
LONG = 8  # seconds after which a program receives SIGTERM
PATIENCE = 15  # further seconds after which it is killed; generous, because the machine may be busy


@dataclass(frozen=True)
class Outcome:
    """How a command line ended."""

    line: CommandLine
    code: int
    """Exit code, or the negative number of the signal that ended the process."""
    seconds: float
    """Processor time of the process and its children."""
    out: str
    err: str
    asked: bool
    """Whether it was sent SIGTERM."""

    @property
    def fault(self) -> str | None:
        """What is wrong with this outcome, or None."""
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
    """Run a command line in a forked process in a copy of ``folder``; send it SIGTERM after ``seconds``."""
    place = folder.parent / f"case-{os.getpid()}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place / "in", symlinks=True, ignore=shutil.ignore_patterns("fifo", "locked", "sealed"))
    os.mkfifo(place / "in" / "fifo")
    out, err = place / "out.log", place / "err.log"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child can handle it
    child = os.fork()
    if child == 0:
        _in_child(line, place, out, err)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    status, used, asked = _wait(child, seconds)
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    return Outcome(line, status, used, texts[0], texts[1], asked)


def _wait(child: int, seconds: float) -> tuple[int, float, bool]:
    """Return a child's exit code and processor time, and whether it was sent SIGTERM; kill it if it does not stop."""
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
    """Run the program in the child process, and exit."""
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
    """Replace standard output with the given kind, one of `OUTPUTS`."""
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
    """Make a folder with tiny runs and with valid and invalid files, in a child process so that this one can fork."""
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


def main(lines: int, seed: int) -> int:
    """Run ``lines`` command lines and return the number of faulty outcomes."""
    project = Path(__file__).parents[1]
    sys.path[:0] = [str(project / "scripts"), str(project / "benchmarks")]
    os.environ.setdefault("MLX_RTX_KERNELS", "0")
    machine_results = importlib.import_module("lib.machine_results")
    machine_results.RESULTS = Path("results")  # with --out None, benchmarks write here: inside the copied folder
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
