"""Coverage-guided fuzzing of files: each one is read, or refused with a one-line message.

    python tests/fuzz.py TARGET RUNS SEED

Needs the package atheris, which contains libFuzzer. If a file contains its own sha256, the digest is corrected, so that
the code after that check is reached as well.
"""

import contextlib
import io
import itertools
import json
import math
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import atheris

with atheris.instrument_imports(include=["mlx_rtx", "tomllib", "zipfile"]):
    from mlx_rtx import Characters, UserError, load
    from mlx_rtx.generation.decoding import start
    from mlx_rtx.generation.saved_state import load_stream, save_stream
    from mlx_rtx.interchange.nanogpt import read_checkpoint
    from mlx_rtx.kernel_check.decision import describe
    from mlx_rtx.kernel_check.verdict import Trial, Verdict, VerdictFile, ask
    from mlx_rtx.kernels import FORMS
    from mlx_rtx.plots.run_history import read_history
    from mlx_rtx.scaling import grid
    from mlx_rtx.support.safetensors import _digest, open_arrays
    from mlx_rtx.tasks import cifar, text_file
    from mlx_rtx.tasks.subwords import read_vocabulary, train_tokenizer
    from mlx_rtx.train import read_command
    from mlx_rtx.training import checkpoint
    from mlx_rtx.training.checkpoint import RunFolder
    from mlx_rtx.training.stored_settings import from_stored
    from mlx_rtx.training.trainer import Trainer

import mlx.core as mx
import numpy as np

from damage import ODD, change_at, places, rewrite
from tiny import fit_until, make_model, make_tokens, make_trainer, text_run

LONGEST_FILE = 20_000  # bytes
SLOWEST = 20  # seconds for one file
WORDS = [
    "{", "}", "[", "]", "[[", ":", ",", "null", "true", "NaN", "Infinity", "+inf", "-1", "1e400", "9" * 20, "\\ud800",
    "sha256", "format", "mlx_rtx-1", "mlx_rtx-2", "__metadata__", "dtype", "shape", "data_offsets", "F32", "BF16", "U8",
    "vocab", "merges", "BPE", "kind", "step", "crc32", "position", "counters", "0x", "1979-05-27",
]  # fmt: skip


class Target(NamedTuple):
    """A kind of file: its name, valid contents, the function that reads it, and one that corrects its sha256."""

    name: str
    right: list[bytes]
    read: Callable[[Path], object]
    sign: Callable[[Path], object] = lambda path: None


def sign_config(path: Path) -> None:
    """Correct the sha256 in settings, if they are a JSON object."""
    found = json.loads(path.read_bytes())
    path.write_text(json.dumps({**found, "sha256": checkpoint._digest(found)}))


def sign_arrays(path: Path) -> None:
    """Correct the sha256 of a file of arrays, if its header is valid."""
    with open_arrays(path) as file:
        chunks = {name: file._read(name) for name in file.arrays}
        right = _digest(file.metadata, file.arrays, chunks)
    rewrite(path, lambda header, data: ({**header, "__metadata__": {**header["__metadata__"], "sha256": right}}, data))


def targets(place: Path) -> dict[str, Target]:
    """Return all kinds of files, of a run and a state that are made in ``place``."""
    config = text_run(place, stateful=True)
    config = replace(config, architecture=replace(config.architecture, dim=4))
    fit_until(make_trainer(place / "run", config), 30)
    run, data, model = RunFolder(place / "run"), config.task.load(), make_model(dim=4)
    _, state = model.step(make_tokens(9, 1), start(model).state)
    save_stream(place / "state", model, start(model)._replace(state=state, pending=make_tokens(1, 1)))
    train_tokenizer(["low lower lowest"], 260).save(place / "subwords.json")
    Characters("abc").save(place / "characters.json")
    weights = {"transformer.wte.weight": mx.ones((3, 2)), "h.attn.bias": mx.ones((1, 1, 2, 2))}
    mx.savez(str(place / "weights.npz"), **weights)
    mx.save_safetensors(str(place / "weights.safetensors"), weights)
    images = {f"{name}_{part}": np.zeros(3, np.uint8) for name in cifar.COUNTS for part in ("images", "labels")}
    np.savez(place / "images.npz", **images)
    np.savez_compressed(place / "packed.npz", **images)

    def of(*names):
        return [(place / name).read_bytes() for name in names]

    def settings(path):
        from_stored(run.read_config())
        run.make_model()

    verdict = Verdict(
        ask(config.architecture, 2),
        trials=(Trial(FORMS[0], 1e-6, None, {1: 0.5, 2: 0.9}), Trial(FORMS[3], failure="no")),
        plain={1: 1.0, 2: 2.0},
        form=FORMS[0],
        took=1.5,
    )
    VerdictFile(place / "verdict.json").write(verdict)

    def verdicts(path):
        if found := VerdictFile(path).read():
            describe(found)
            found.complete, FORMS.index(found.form or FORMS[0])

    point = {"model": "recurrent", "layers": 1, "lr": 1e-3, "embeddings": 9, "steps": 7}
    point |= {"loss_se": 0.01, "seconds": 1.0, "text": "a"}
    rows = [point | {"dim": N, "parameters": N * N, "tokens": D, "characters": D, "loss": 8 / N + 90 / D, "seed": seed}
            for N in (4, 8, 16) for D in (100, 300, 900) for seed in (0, 1)]  # fmt: skip
    losses = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def runs_of_a_grid(path):
        read = grid.read_losses(path)
        grid.best_runs(read)
        grid.seed_noise(loss for loss in read if math.isfinite(loss.loss))

    def flags(path):
        read_command(["copy", "--config", str(path)])

    found = [
        Target("config.json", of("run/config.json"), settings, sign_config),
        Target("tokenizer.json", of("characters.json", "subwords.json"),
               lambda path: read_vocabulary(path).encode("a")),
        Target("model.safetensors", of("run/model.safetensors"), lambda _: load(run.path), sign_arrays),
        Target("training.safetensors", of("run/training.safetensors"),
               lambda _: Trainer(config, data, run, resume=True).log.close(), sign_arrays),
        Target("stream.state", of("state"), lambda path: load_stream(path, model), sign_arrays),
        Target("metrics.jsonl", [*of("run/metrics.jsonl"), re.sub(rb', "crc32": "\w+"', b"", *of("run/metrics.jsonl"))],
               lambda _: read_history(run.path)),
        Target("losses.jsonl", [losses], runs_of_a_grid),
        Target("documents.jsonl", [b'{"text": "a b"}\n{"text": "c", "n": [1]}\n'],
               lambda path: text_file.find(str(path)).survey),
        Target("flags.toml", [b"noise = 64\nlr = 1e-3\n", b'out = "runs/a"\ntrain-alpha = true\nalpha = 0.5\n'], flags),
        Target("verdict.json", of("verdict.json"), verdicts),
        Target("weights.safetensors", of("weights.safetensors"), read_checkpoint),
        Target("weights.npz", of("weights.npz"), read_checkpoint),
        Target("images.npz", of("images.npz", "packed.npz"), cifar._read_npz),
    ]  # fmt: skip
    return {target.name: target for target in found}


def mutate(content: bytes, longest: int, seed: int) -> bytes:
    """Return a variant of a file; with probability ½ one with a changed value, if it is JSON or has a JSON header."""
    generator = random.Random(seed)
    if generator.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            header = content[8:9] == b"{"  # of safetensors, after its length
            lines = [0, *(found.end() for found in re.finditer(b"\n(?={)", content)), len(content)]
            begin, end = generator.choice([*itertools.pairwise(lines)])
            if header:
                begin, end = 8, 8 + int.from_bytes(content[:8], "little")
            tree = json.loads(content[begin:end])
            values = [*ODD, *WORDS, *tree.values(), *range(10), generator.randrange(2**33), generator.random()]
            for _ in range(generator.choice([1, 1, 2, 4])):
                if all_places := list(places(tree)):
                    tree = change_at(tree, generator.choice(all_places), generator.choice(values))
            changed = json.dumps(tree).encode()
            before = len(changed).to_bytes(8, "little") if header else content[:begin]
            changed = before + changed + b"\n" * (end < len(content) and not header) + content[end:]
            return changed if len(changed) <= longest else content
    return atheris.Mutate(content, longest)


def main(name: str, runs: int, seed: int) -> None:
    """Test ``runs`` files of a kind; a fault prints its traceback and leaves the file in the working directory."""
    place = Path(tempfile.mkdtemp(prefix="fuzz"))
    target = targets(place)[name]
    path, tried = place / "run" / name, Counter[str]()
    for i, content in enumerate(target.right):
        (place / "corpus").mkdir(exist_ok=True)
        (place / "corpus" / str(i)).write_bytes(content)
    (place / "words").write_text("".join(f'"{word.replace(chr(92), chr(92) * 2)}"\n' for word in WORDS))

    def test(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(Exception):
            target.sign(path)
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                target.read(path)
            tried["read"] += 1
        except UserError as error:
            if "\n" in str(error):
                raise
            tried["refused"] += 1
        if tried.total() == runs:
            print(f"{name}: {runs:,} files: {dict(tried)}", flush=True)
            shutil.rmtree(place, ignore_errors=True)

    options = {
        "runs": runs, "seed": seed, "max_len": LONGEST_FILE, "timeout": SLOWEST, "rss_limit_mb": 4096, "reload": 0,
        "verbosity": 0, "dict": place / "words", "artifact_prefix": f"{name}-",
    }  # fmt: skip
    arguments = [__file__, *(f"-{key}={value}" for key, value in options.items()), str(place / "corpus")]
    atheris.Setup(arguments, test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
