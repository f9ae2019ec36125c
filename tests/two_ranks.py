"""Processes that train together, for tests: over loopback with MLX's ring, started as by ``mlx.launch``.

    python tests/two_ranks.py FOLDER

Each process runs this command for `test_ranks.py`: trainings of all kinds, one after the other.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from mlx_rtx.tasks import ImageTask, MixtureTask, SelectiveCopyTask, TextTask
from mlx_rtx.training import trainer as trainer_module
from mlx_rtx.training.joining import join_ranks, rank_folder
from mlx_rtx.training.progress import ProgressConfig
from mlx_rtx.training.stored_settings import to_stored
from mlx_rtx.training.trainer import Trainer

import mlx.core as mx
from mlx.utils import tree_map

from kills import small_images
from tiny import TINY

STEPS = 11  # steps of each training
POISONED = 4  # the step at which one rank's gradient is not finite
STOPPED = 7  # the step at which one rank is asked to stop
SHORT = replace(TINY.training, samples=STEPS * 16, validate_every=5)


def make_data(path):
    """Write a small text and small images."""
    (path / "text.txt").write_text("".join(f"{i % 10} times {i % 7} is {i % 10 * (i % 7)}.\n" for i in range(300)))
    small_images(path / "images.npz")


def runs(path):
    """Return the settings of all kinds of trainings, by name."""
    small_images(path / f"of {os.getpid()}.npz")  # what it is to look like
    plain = replace(TINY, architecture=replace(TINY.architecture, dropout=0.0), training=SHORT)
    text = replace(plain, progress=ProgressConfig(), training=replace(SHORT, validate_samples=None))
    lines = TextTask(data=str(path / "text.txt"), length=16, sample=6)
    zero = replace(plain.architecture, alpha=0.0)
    return {
        "copy": replace(plain, optimizer=replace(TINY.optimizer, optimizer="muon", average=0.9, skip_above=1.5)),
        "dropout": replace(TINY, training=replace(SHORT, accumulate=2, samples=STEPS * 32)),
        "selective": replace(plain, task=SelectiveCopyTask(noise=12, payload=2, alphabet=5)),
        "text": replace(text, task=lines),
        "mixture": replace(text, task=MixtureTask(data=lines.data, length=16, payload=2, alphabet=5)),
        "stateful": replace(text, task=replace(lines, stateful=True), architecture=zero),
        "poisoned": replace(text, task=lines),
        "one, then two": replace(text, task=replace(lines, stateful=True), architecture=zero),
        "two, then one": replace(text, task=replace(lines, stateful=True), architecture=zero),
        "image": replace(
            plain, task=ImageTask(data=str(path / "images.npz")), progress=ProgressConfig(),
            architecture=replace(plain.architecture, block=128, tie_embeddings=False),
            training=replace(SHORT, validate_samples=9),
        ),
    }  # fmt: skip


def make_trainer(name, config, folder, ranks=None, stop=False):
    """Return a trainer in which one rank's gradient is once not finite, or which one rank is asked to stop."""
    data = config.task.load()
    if resume := folder.config.exists():
        config = replace(config)
    else:
        folder.begin(to_stored("copy", config, data), data.vocabulary)
    trainer = Trainer(config, data, folder, resume, ranks)
    last = trainer.ranks.rank == trainer.ranks.size - 1
    gradient, step = trainer.train_step._gradient, trainer._take_step

    def poisoned(*arguments):
        found = gradient(*arguments)
        if not (name == "poisoned" and last and trainer.step == POISONED):
            return found
        return found._replace(gradients=tree_map(lambda array: array * mx.nan, found.gradients))

    def stopping():
        step()
        if stop and last and trainer.step == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.train_step._gradient, trainer._take_step = poisoned, stopping
    return trainer


def start(words, folder, size=2, cwd=None):
    """Start ``size`` processes of a command, each in its folder of ``cwd`` if given."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{one.getsockname()[1]}"] for one in sockets]))
    for one in sockets:
        one.close()
    return [
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=cwd and cwd[rank], env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)},
        )
        for rank in range(size)
    ]  # fmt: skip


def finish(processes, seconds=300):
    """Return exit code, standard output and errors of each process, without MLX's own messages."""
    try:
        output = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    noise = "[ring]"
    return [
        (process.returncode, out, "\n".join(line for line in err.splitlines() if line and noise not in line))
        for process, (out, err) in zip(processes, output, strict=True)
    ]


def main(path):
    """Run all trainings as one rank, with a checkpoint every 0.02 s."""
    trainer_module.SAVE_SECONDS = 0.02
    with join_ranks() as ranks:
        for name, config in runs(path).items():
            resume = name == "one, then two"
            with rank_folder(ranks, path / "two" / name, resume) as folder:
                trainer = make_trainer(name, config, folder, ranks, stop=name == "two, then one")
                trainer.fit()
                trainer.log.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
