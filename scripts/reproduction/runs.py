"""One run of a row: train and score it with the package's commands, then copy the results.

A run is trained in a run folder of its own, from which it can be resumed. Its results go to ``results``: settings,
``metrics.jsonl``, a small checkpoint, and ``final.json`` with its scores. The last is written last and makes the run
complete.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_rtx.plan import duration
from mlx_rtx.support.files import write_json
from mlx_rtx.support.locks import alone
from mlx_rtx.support.reports import make_folder
from mlx_rtx.support.stopping import SIGNALS
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.log import line, read_lines

from reproduction.rows import Row, scorings, train_flags

FINAL = "final.json"
REQUESTED = {code for which in SIGNALS for code in (128 + which, -which)}  # exit statuses after a stop request
Call = Callable[[list[str], Path], int]  # runs a command, appends its output to a file, returns its exit status
Say = Callable[[str], None]  # prints a line


class Stopped(Exception):
    """A run was stopped before its end and can be resumed."""


class RunFailed(Exception):
    """A run cannot continue, for a reason given in one line."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings that all runs of a call share."""

    runs: Path
    """Folder of the run folders."""
    results: Path
    """Folder of the results."""
    quick: bool = False
    samples: int | None = None
    """Samples of each training; None for the row's own number."""
    keep_mb: float = 1.0
    """Largest checkpoint to copy to the results, in MB."""
    revision: str | None = None
    """Source revision; None for the one that the run recorded."""


@dataclass(frozen=True)
class Run:
    """A row and a seed."""

    row: Row
    seed: int
    setting: Setting

    @property
    def name(self) -> str:
        """Relative path of its folder, both in ``runs`` and in ``results``."""
        return self.row.folder(self.seed)

    @property
    def flags(self) -> list[str]:
        """Task and flags of its training."""
        return train_flags(self.row, self.seed, self.setting.samples, self.setting.quick)

    @property
    def work(self) -> RunFolder:
        """Run folder in which it is trained."""
        return RunFolder(self.setting.runs / self.name)

    @property
    def kept(self) -> Path:
        """Folder of its results."""
        return self.setting.results / self.name

    @property
    def trained(self) -> bool:
        """Whether its training has finished."""
        return any(event["kind"] == "final" for event in read_lines(self.work.metrics)[-1:])

    def complete(self) -> bool:
        """Return whether its results exist.

        Raises:
            RunFailed: they are those of a training with other flags.
        """
        if not (self.kept / FINAL).exists():
            return False
        found = json.loads((self.kept / FINAL).read_text())["flags"]
        if found != self.flags:
            raise RunFailed(f"{self.kept} was trained with {' '.join(found)}; delete it to train again")
        return True


def carry_out(run: Run, call: Call, say: Say) -> None:
    """Train and score a run and write its results, continuing where an earlier call was stopped.

    Raises:
        Stopped: a command was stopped before its end.
        RunFailed: a command failed.
    """
    log = make_folder(run.work.path) / "output.log"
    with alone(run.work.path / "lock", str(run.work.path)):  # training has a lock of its own in the same folder
        _require_same_flags(run)
        started = time.perf_counter()
        if not run.trained:
            _train(run, call, say, log)
            say(f"trained on {_last(run)['samples']:,} samples, {duration(time.perf_counter() - started)}; scoring")
        reports = [_score(run, i, call, log) for i in range(len(scorings(run.row)))]
        metrics = keep(run, reports)
        scores = line({name: metric["value"] for name, metric in metrics.items()})
        say(f"done: {scores}; {duration(time.perf_counter() - started)}")


def _require_same_flags(run: Run) -> None:
    """Record the flags of the training; raise RunFailed if the run folder was started with others."""
    note = run.work.path / "flags.json"
    if not note.exists():
        write_json(note, run.flags)
    elif (found := json.loads(note.read_text())) != run.flags:
        raise RunFailed(f"{run.work.path} was started with {' '.join(found)}; delete it to train again")


def _train(run: Run, call: Call, say: Say, log: Path) -> None:
    again = ["--resume"] if run.work.config.exists() else []
    say(f"{'resuming' if again else 'training'}: mlx_rtx.train {' '.join(run.flags)}; log: {log}")
    _call(call, ["mlx_rtx.train", *run.flags, "--out", str(run.work.path), *again], log)
    if not run.trained:
        raise Stopped


def _score(run: Run, i: int, call: Call, log: Path) -> dict[str, Any]:
    """Return the report of a row's ``i``-th scoring, and make it first if it is missing."""
    file = run.work.path / f"scores-{i}.json"
    if not file.exists():
        flags = scorings(run.row, run.setting.quick)[i].flags
        _call(call, ["mlx_rtx.evaluate", str(run.work.path), *flags, "--json", str(file)], log)
    return json.loads(file.read_text())


def _call(call: Call, words: list[str], log: Path) -> None:
    status = call([sys.executable, "-m", *words], log)
    if status in REQUESTED:
        raise Stopped
    if status:
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        last = next((text for text in reversed(lines) if text.strip()), "no output")
        raise RunFailed(f"{words[0]} ended with status {status}: {last} ({log})")


def keep(run: Run, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Copy a trained run's results, write its ``final.json`` and return its metrics."""
    work, kept = run.work, make_folder(run.kept)
    small = work.model.stat().st_size <= run.setting.keep_mb * 1e6
    for file in (work.config, work.metrics, *([work.model, work.tokenizer] if small else [])):
        if file.exists():
            shutil.copy2(file, kept / file.name)
    config, task = work.read_config(), run.row.task
    on_test = config["settings"]["task"].get("validate_on") == "test"
    events = read_lines(work.metrics)
    alphas = [event["alpha"] for event in events if event["kind"] == "train"]
    machines = [config["environment"], *(event["environment"] for event in events if event["kind"] == "resume")]
    metrics = {
        name: _metric(field, report["scores"])
        for scoring, report in zip(scorings(run.row), reports, strict=True)
        for name, field in scoring.metrics.items()
    }
    final = {
        "row": run.row.row,
        "recipe": run.row.recipe,
        "seed": run.seed,
        "flags": run.flags,
        "metrics": metrics,
        "alpha": alphas[-1] if alphas else [],
        "parameters": reports[0]["parameters"],
        "samples": _last(run)["samples"],
        "chosen_on": "test set" if on_test else "validation split" if task in ("text", "mixture") else None,
        "revision": (run.setting.revision and short(run.setting.revision))
        or together(short(machine.get("git_revision")) for machine in machines),
        "device": together(machine.get("device_name") for machine in machines),
    }
    write_json(kept / FINAL, final)
    work.training.unlink(missing_ok=True)
    return metrics


def _metric(field: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Return a score, its standard error, and the numbers of sequences and answers that it is the mean over."""
    answers = scores["sequences" if field == "sequence_accuracy" else "targets"]
    about = {"sequences": scores["sequences"], "answers": answers}
    return {"value": scores[field], "se": scores[f"{field}_se"], **about}


def together(values: Iterable[str | None]) -> str | None:
    """Join the different values into a comma-separated string; each may be such a string itself, or None."""
    return ", ".join(sorted({one for value in values if value for one in value.split(", ")})) or None


def short(revision: str | None) -> str | None:
    """Return the first seven digits of a revision, and its ``+`` if it has one."""
    return revision and revision[:7] + ("+" if revision.endswith("+") else "")


def _last(run: Run) -> dict[str, Any]:
    """Return the last event in a run's log."""
    return read_lines(run.work.metrics)[-1]
