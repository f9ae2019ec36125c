"""Start of data parallelism: ``mlx.launch`` starts one process per rank, whose rank is in its environment variables.

Only the first rank writes the run folder and prints. The other ranks resume from a temporary copy of the folder, and
print only errors of their own.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.lifeline import Lifeline
from mlx_rtx.support.stopping import ended_by_requests
from mlx_rtx.training.checkpoint import RunFolder
from mlx_rtx.training.ranks import ManyRanks, Ranks
from mlx_rtx.training.settings import RunConfig

import mlx.core as mx

HOW = "start them with mlx.launch -n 2 --backend ring -- python -m mlx_rtx.train …"


@contextlib.contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Return a context with the ranks of this training, in which all ranks end if one is lost.

    Raises:
        UserError: the ranks cannot reach each other, or this MLX lacks the backend.
    """
    if "MLX_RANK" not in os.environ or (expected := _expected()) == 1:
        yield Ranks()
        return
    ranks, lifeline = _connect(expected)
    with contextlib.ExitStack() as silence:
        if not ranks.first:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield ranks
        except BaseException as error:
            lost = isinstance(error, RuntimeError)  # raised by MLX's ring backend if another rank is lost
            well = isinstance(error, SystemExit) and not error.code
            lifeline.let_go(well, wait=not well and (lost or not ranks.first))
            raise
    lifeline.let_go()


def _expected() -> int:
    """Return the number of ranks according to the environment variables."""
    try:
        for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES"):
            if name in os.environ:
                return len(json.loads(Path(os.environ[name]).read_text().strip() or "[0]"))  # an empty file: one rank
        return int(os.environ["MLX_WORLD_SIZE"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        rank = os.environ["MLX_RANK"]
        raise UserError(f"MLX_RANK={rank}: the number of ranks cannot be determined ({error}); {HOW}") from None


def _connect(expected: int) -> tuple[ManyRanks, Lifeline]:
    """Wait until all ranks are connected, and return them with the lifeline that ends this rank if another is lost."""
    where = f"MLX_RANK={os.environ['MLX_RANK']} of {expected}"
    try:
        with ended_by_requests():
            ranks = ManyRanks(mx.distributed.init())
        require(
            ranks.size == expected,
            f"{where}: this MLX lacks the backend; use --backend nccl on CUDA, else ring, or jaccl on Macs",
        )
        one_each = "MLX_WORLD_SIZE" not in os.environ or mx.device_count(mx.gpu) == 1
        require(one_each, f"{where}: sees several GPUs; set CUDA_VISIBLE_DEVICES to one per rank, as mlx.launch does")
        lifeline = Lifeline(ranks.rank, ranks.size, _address(), ranks.broadcast_bytes, lambda: ranks.remedy)
    except RuntimeError as error:
        raise UserError(f"{where}: the ranks cannot reach each other ({error}); check network and ports") from None
    ranks.lifeline = lifeline
    return ranks, lifeline


def _address() -> str:
    """Return the host address of the first rank."""
    if "MLX_HOSTFILE" in os.environ:
        (first, *_), *_ = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        return first.rpartition(":")[0]
    if "MLX_JACCL_COORDINATOR" in os.environ:
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    return os.environ["NCCL_HOST_IP"]


def rank_settings(ranks: Ranks, settings: RunConfig) -> RunConfig:
    """Return the settings with one rank's share of the batch.

    Raises:
        UserError: the batch is not a multiple of the number of ranks.
    """
    batch, n = settings.training.batch, ranks.size
    require(batch % n == 0, f"--batch {batch}: must be a multiple of the {n} ranks, for example {batch + -batch % n}")
    return replace(settings, training=replace(settings.training, batch=batch // n))


class CopiedFolder(RunFolder):
    """Temporary copy of a run folder, for ranks other than the first; large files are removed once they are read."""

    def read_training(self, *arguments: Any) -> Any:
        """Read like `RunFolder.read_training`, then remove the files."""
        found = super().read_training(*arguments)
        for file in (self.model, self.training):
            file.unlink(missing_ok=True)
        return found

    def write_model(self, *_: Any) -> None:
        """Do nothing: the first rank writes."""

    def write_training(self, *_: Any) -> None:
        """Do nothing: the first rank writes."""


@contextlib.contextmanager
def rank_folder(ranks: Ranks, path: Path, resume: bool) -> Iterator[RunFolder]:
    """Return a context with the run folder: ``path`` for the first rank, a temporary folder for the others.

    If the run is to resume, the temporary folder contains a copy of the first rank's files.
    """
    if ranks.size == 1:
        yield RunFolder(path)
        return
    with contextlib.ExitStack() as temporary:
        folder = RunFolder(path)
        if not ranks.first:
            directory = tempfile.TemporaryDirectory(prefix="mlx_rtx_", ignore_cleanup_errors=True)
            folder = CopiedFolder(temporary.enter_context(directory))
            if ranks.lifeline:  # its thread may remove the folder while the main thread is doing so
                ranks.lifeline.last = directory.cleanup
        files = [folder.config, folder.tokenizer, folder.metrics, folder.model, folder.training] if resume else []
        with ranks.fail_together():
            contents = [file.read_bytes() if file.is_file() else b"" for file in files]
        for file, content in zip(files, ranks.broadcast_bytes(contents), strict=True):
            if content and not ranks.first:
                file.write_bytes(content)
        yield folder
