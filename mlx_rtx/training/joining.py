"""How ranks come together: ``mlx.launch`` starts one command as many times, each knows by its environment which it is.

The first writes the run folder and speaks. The others have a temporary copy of it to go on from, and say nothing but
what is wrong with them alone.
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

HOW = "start them by mlx.launch -n 2 --backend ring -- python -m mlx_rtx.train …"


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that this process is one of; while it lasts the end of one that is lost ends all.

    Raises:
        UserError: they cannot reach each other, or not by this MLX.
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
            lost = isinstance(error, RuntimeError)  # as MLX's ring says where another rank has gone
            well = isinstance(error, SystemExit) and not error.code
            lifeline.let_go(well, wait=not well and (lost or not ranks.first))
            raise
    lifeline.let_go()


def _expected() -> int:
    """How many ranks the environment tells of."""
    try:
        for name in ("MLX_HOSTFILE", "MLX_IBV_DEVICES"):
            if name in os.environ:
                return len(json.loads(Path(os.environ[name]).read_text().strip() or "[0]"))  # blank for one
        return int(os.environ["MLX_WORLD_SIZE"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"MLX_RANK={os.environ['MLX_RANK']}: who the others are is not said ({error}); {HOW}") from None


def _connect(expected: int) -> tuple[ManyRanks, Lifeline]:
    """Wait for all ranks, and end with any of them from then on."""
    where = f"MLX_RANK={os.environ['MLX_RANK']} of {expected}"
    try:
        with ended_by_requests():
            ranks = ManyRanks(mx.distributed.init())
        require(
            ranks.size == expected,
            f"{where}: this MLX has no such backend; use --backend nccl on CUDA, else ring, or jaccl on Macs",
        )
        one_each = "MLX_WORLD_SIZE" not in os.environ or mx.device_count(mx.gpu) == 1
        require(one_each, f"{where}: must see one GPU alone, as mlx.launch has it; set CUDA_VISIBLE_DEVICES for each")
        lifeline = Lifeline(ranks.rank, ranks.size, _address(), ranks.bytes_of_first, lambda: ranks.remedy)
    except RuntimeError as error:
        raise UserError(f"{where}: the ranks cannot reach each other ({error}); see to network and ports") from None
    ranks.lifeline = lifeline
    return ranks, lifeline


def _address() -> str:
    """Where the first rank can be reached."""
    if "MLX_HOSTFILE" in os.environ:
        (first, *_), *_ = json.loads(Path(os.environ["MLX_HOSTFILE"]).read_text())
        return first.rpartition(":")[0]
    if "MLX_JACCL_COORDINATOR" in os.environ:
        return os.environ["MLX_JACCL_COORDINATOR"].rpartition(":")[0]
    return os.environ["NCCL_HOST_IP"]


def share_of(ranks: Ranks, settings: RunConfig) -> RunConfig:
    """The settings of what each rank has to do of a step.

    Raises:
        UserError: the batch cannot be shared out evenly.
    """
    batch, n = settings.training.batch, ranks.size
    require(batch % n == 0, f"--batch {batch}: must be a multiple of the {n} ranks, for example {batch + -batch % n}")
    return replace(settings, training=replace(settings.training, batch=batch // n))


class CopiedFolder(RunFolder):
    """What a rank other than the first has for a run folder: it is read once, and nothing large is kept."""

    def read_training(self, *arguments: Any) -> Any:
        """The same; what was read goes."""
        found = super().read_training(*arguments)
        for file in (self.model, self.training):
            file.unlink(missing_ok=True)
        return found

    def write_model(self, *_: Any) -> None:
        """Leave it to the first."""

    def write_training(self, *_: Any) -> None:
        """Leave it to the first."""


@contextlib.contextmanager
def own_folder(ranks: Ranks, path: Path, resume: bool) -> Iterator[RunFolder]:
    """The run folder at ``path`` for the first rank; for others a copy of its files, if the run is to go on."""
    if ranks.size == 1:
        yield RunFolder(path)
        return
    with contextlib.ExitStack() as temporary:
        folder = RunFolder(path)
        if not ranks.first:
            directory = tempfile.TemporaryDirectory(prefix="mlx_rtx_", ignore_cleanup_errors=True)
            folder = CopiedFolder(temporary.enter_context(directory))
            if ranks.lifeline:  # whose thread may remove it while this one does, or is about to
                ranks.lifeline.last = directory.cleanup
        files = [folder.config, folder.tokenizer, folder.metrics, folder.model, folder.training] if resume else []
        with ranks.united():
            contents = [file.read_bytes() if file.is_file() else b"" for file in files]
        for file, content in zip(files, ranks.bytes_of_first(contents), strict=True):
            if content and not ranks.first:
                file.write_bytes(content)
        yield folder
