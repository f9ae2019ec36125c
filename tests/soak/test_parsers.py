"""Coverage-guided fuzzing of everything that parses bytes: a file is read or refused in one line."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
KINDS = [
    "config.json", "tokenizer.json", "model.safetensors", "training.safetensors", "stream.state", "metrics.jsonl",
    "losses.jsonl", "documents.jsonl", "flags.toml", "verdict.json", "weights.safetensors", "weights.npz", "images.npz",
]  # fmt: skip
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed (Linux only)"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_files(kind, tmp_path, capsys):
    """The fuzzer prints its counts, or a fault's traceback and the name of the file that caused it."""
    command = [sys.executable, str(TESTS / "fuzz.py"), kind, "20000", "0"]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    counts = [line for line in done.stdout.splitlines() if line.startswith(f"{kind}: 20,000 files")]
    with capsys.disabled():
        print("\n" + "\n".join(counts))
    assert len(counts) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0
