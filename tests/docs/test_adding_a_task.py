"""The exercise in docs/adding-a-task.md works as printed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TINY = ["--noise=8", "--payload=2", "--alphabet=5", "--dim=16", "--heads=2", "--block=4", "--dropout=0"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the package with the page's file and recipe added."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "mlx_rtx", folder / "mlx_rtx", ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "adding-a-task.md").read_text()
    task, an_import, entry = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (folder / "mlx_rtx" / "tasks" / "reverse_copy.py").write_text(task)
    recipes = folder / "mlx_rtx" / "training" / "recipes.py"
    text, place = recipes.read_text(), "from mlx_rtx.training.curriculum"
    assert text.count(place) == 1
    text = text.replace(place, an_import + place)
    (table,) = re.findall(r"^RECIPES.*= \{\n", text, re.MULTILINE)
    recipes.write_text(text.replace(table, table + entry))
    return folder


def call(checkout, *words):
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_new_task_trains_and_is_evaluated(checkout):
    output = call(checkout, "mlx_rtx.train", "reverse-copy", *TINY, "--samples=4800", "--start-noise=8", "--lr=1e-2")
    assert "task=reverse-copy noise=8" in output
    final = re.search(r"^final noise=8 loss=([0-9.]+)", output, re.MULTILINE)
    assert float(final[1]) < 0.5  # a guess has ln 3 = 1.1
    assert call(checkout, "mlx_rtx.evaluate", "runs/reverse-copy", "--samples=8").startswith("task=reverse-copy")


def test_the_payload_comes_back_backwards(checkout):
    code = """
import mlx.core as mx
from mlx_rtx.tasks.reverse_copy import ReverseCopyTask
task = ReverseCopyTask(noise=5, payload=4)
tokens, targets = task.draw(mx.random.key(0), 3)
assert mx.array_equal(tokens[:, :4], targets[:, ::-1])
(part,) = task.held_out("fresh", 3, 3, mx.random.key(1))
assert mx.array_equal(part.read_tokens(0, 4), part.targets[:, ::-1])
"""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment, check=True)


def test_help_lists_it(checkout):
    assert "Recall 16 tokens backwards" in call(checkout, "mlx_rtx.train", "--help")
