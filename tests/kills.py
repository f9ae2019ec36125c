"""Kill trainings at random moments, resume them, and compare the results bitwise with uninterrupted trainings.

    python tests/kills.py KILLS SEED

Training processes are forked from this one, which does not use MLX itself; one in twelve is started as a user would.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlx_rtx import train
from mlx_rtx.support.command import run_command
from mlx_rtx.tasks import cifar
from mlx_rtx.training.log import read_lines

import numpy as np

SIZES = ["--dim=16", "--heads=2", "--block=8", "--batch=8", "--validate-every=4", "--report-every=2", "--dropout=0.1"]
SCORE = ["--validate-samples=16", "--test-samples=16", "--average=0.9"]
TASKS = {  # of about 30 steps
    "copy": ["copy", *SIZES, *SCORE, "--noise=24", "--start-noise=6", "--advance-below=9", "--samples=240"],
    "selective copy": ["selective-copy", *SIZES, *SCORE, "--noise=24", "--start-noise=6", "--mix=.3", "--samples=248"],
    "text": ["text", *SIZES, "--data=text.txt", "--length=32", "--sample=8", "--samples=240", "--optimizer=muon"],
    "stateful text": ["text", *SIZES, "--data=text.txt", "--length=32", "--sample=0", "--samples=240", "--stateful",
                      "--alpha=0", "--positions=block", "--skip-above=1.5"],
    "image": ["image", *SIZES, "--data=images.npz", "--block=128", "--validate-samples=16", "--samples=80"],
    "accumulated": ["copy", *SIZES, *SCORE, "--noise=24", "--accumulate=2", "--samples=480", "--optimizer=adam"],
}  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 30  # seconds for a process to end after a request


def small_images(path: Path) -> None:
    """Write small images in CIFAR-10's format, and make this process expect their counts and hashes."""
    labels = {name: (np.arange(count) % 10).astype(np.uint8) for name, count in (("train", 200), ("test", 50))}
    pixels = {name: np.repeat(20 + 22 * of[:, None], 1024, axis=1).astype(np.uint8) for name, of in labels.items()}
    cifar.COUNTS = {name: len(of) for name, of in labels.items()}
    cifar.LABELS = {name: cifar.sha256(of) for name, of in labels.items()}
    cifar.GREY = {name: float(of.mean()) for name, of in pixels.items()}
    images = {f"{name}_images": of for name, of in pixels.items()} | {
        f"{name}_labels": of for name, of in labels.items()
    }
    np.savez(path, **images)


def begin(words: list[str], err: Path, as_a_user: bool) -> int:
    """Start ``mlx_rtx.train`` in a child process and return its id."""
    with err.open("ab") as log:
        if as_a_user:
            command = [sys.executable, "-m", "mlx_rtx.train", *words]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log).pid
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(log.fileno(), 2)
                sys.argv = ["train", *words]
                run_command(train.main)
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
    return child


def wait(child: int, seconds: float) -> int | None:
    """Return the exit code of a process that ends within ``seconds``; None if it does not."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


def contents(path: Path) -> dict[str, bytes]:
    """Return {name: bytes} of the arrays in a safetensors file."""
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header.pop("__metadata__", None)
    return {
        name: whole[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
        for name, entry in header.items()
    }


def results(run: Path) -> list:
    """Return all results of a run: its arrays, and the events in its log."""
    arrays = [contents(run / name) for name in ("model.safetensors", "training.safetensors")]
    kinds = ("validation", "confirmation", "stage", "collapse", "skipped", "sample", "final")
    return [*arrays, [line for line in read_lines(run / "metrics.jsonl") if line["kind"] in kinds]]


def is_pythons_own(output: str) -> bool:
    """Return whether a traceback comes from Python's start-up, before any of the project's files is read."""
    return "KeyboardInterrupt" in output and "/mlx_rtx/" not in output


def is_there(run: Path) -> list[str]:
    """Return the flags with which a run that has started is resumed."""
    return ["--resume"] if (run / "config.json").exists() else []


def main(kills: int, seed: int) -> int:
    """Kill ``kills`` trainings and return the number of runs with wrong results."""
    generator, counts, faults = random.Random(seed), Counter(), 0
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    os.chdir(folder)
    Path("text.txt").write_text("".join(f"{i % 10} times {i % 7} is {i % 10 * (i % 7)}.\n" for i in range(300)))
    small_images(Path("images.npz"))
    whole, took = {}, {}
    for name, words in TASKS.items():
        began = time.monotonic()
        code = wait(begin([*words, "--out", f"whole {name}"], folder / "err", False), 600)
        assert code == 0, (folder / "err").read_text()
        whole[name], took[name] = results(Path(f"whole {name}")), time.monotonic() - began
    done = 0
    while done < kills:
        name = generator.choice(list(TASKS))
        run, err = Path("run"), folder / "err"
        shutil.rmtree(run, ignore_errors=True)
        err.unlink(missing_ok=True)
        trouble: list[str] = []
        for _ in range(generator.choice([1, 2, 3, 5, 8])):
            as_a_user = name != "image" and generator.random() < 1 / 12
            child = begin([*TASKS[name], "--out", str(run), *is_there(run)], err, as_a_user)
            code = wait(child, generator.uniform(0, took[name] * (1.0 + 0.5 * as_a_user)))
            if code is not None:
                trouble += [f"ended by itself with {code}"] if code else []
                break
            which = generator.choice(SIGNALS)
            os.kill(child, which)
            again = generator.random() < 0.1
            if again:
                time.sleep(generator.uniform(0, 0.4))
                os.kill(child, which)
            code = wait(child, PATIENCE)
            if code is None:
                os.kill(child, signal.SIGKILL)
                wait(child, PATIENCE)
                trouble.append(f"did not end on {which.name}")
            elif code not in (0, 128 + which, -which, *([1] if as_a_user else [])):  # 1: in Python's start-up
                trouble.append(f"ended with {code} on {which.name}")
            done += 1
            counts[f"{which.name}{' twice' * again}"] += 1
            counts[name] += 1
        code = wait(begin([*TASKS[name], "--out", str(run), *is_there(run)], err, False), 600)
        trouble += [f"ended with {code} at last"] if code else []
        if not trouble and results(run) != whole[name]:
            trouble.append("came to something else")
        output = err.read_text(errors="replace").strip()
        if output and not is_pythons_own(output):
            trouble.append(output[-2000:])
        if trouble:
            faults += 1
            print(f"FAULT {name}: {'; '.join(trouble)}", flush=True)
        counts["runs"] += 1
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{done} kills ({', '.join(f'{key} {count}' for key, count in sorted(counts.items()))}): {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])) > 0)
