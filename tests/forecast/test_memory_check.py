"""Runs that cannot fit into memory are refused in one line; runs that may fit are not."""

from dataclasses import replace

from mlx_rtx import UserError
from mlx_rtx.forecast.memory_check import require_evaluation_memory, require_training_memory
from mlx_rtx.support import backend
from mlx_rtx.tasks import SelectiveCopyTask
from mlx_rtx.training.recipes import COPY, IMAGE

import mlx.core as mx
import pytest


def with_batch(recipe, batch):
    return replace(recipe, training=replace(recipe.training, samples=batch, batch=batch))


def test_a_training_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(backend, "memory_gb", lambda: 1.0)
    require_training_memory(COPY, COPY.task.load())
    with pytest.raises(UserError, match=r"memory: would take about 5.* GB of 1 GB; use a smaller --dim, --batch"):
        require_training_memory(with_batch(COPY, 1024), COPY.task.load())


def test_evaluation_needs_the_memory_of_one_segment(monkeypatch):
    monkeypatch.setattr(backend, "memory_gb", lambda: 1.0)
    long = replace(COPY.task, noise=2**30)
    require_evaluation_memory(replace(COPY, task=long), long, 8)
    with pytest.raises(UserError, match="use a smaller --batch"):
        require_evaluation_memory(COPY, COPY.task, 2**20)


def test_positions_that_do_not_fit_into_memory_are_refused(monkeypatch):

    monkeypatch.setattr(backend, "memory_gb", lambda: 1.0)
    with pytest.raises(UserError, match="noise=1000000000: drawing positions takes 64 GB of 1; use a smaller --batch"):
        next(SelectiveCopyTask(noise=10**9).held_out("fresh", 8, 8, mx.random.key(0)))


def test_memory_limits_of_the_process_are_respected(monkeypatch):
    monkeypatch.setattr(backend.resource, "getrlimit", lambda _: (2 * 10**9, 0))
    assert 2 * 10**9 in backend._limits()


def test_all_recipes_fit_into_16_gb(monkeypatch):
    monkeypatch.setattr(backend, "memory_gb", lambda: 16.0)
    require_training_memory(COPY, COPY.task.load())
    require_training_memory(IMAGE, replace(COPY.task, noise=992))
