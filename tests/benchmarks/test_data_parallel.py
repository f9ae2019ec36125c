"""The benchmark of several ranks: its points, its table, and that no process hangs."""

import sys
import time
from pathlib import Path

from mlx_rtx.training.ranks import Ranks

import data_parallel
from lib import ranks_launch
from lib.ranks_pace import Effort, Pace, measure, points


def pace(scaling, ranks, rows, seconds):
    return Pace(
        task="copy", ranks=ranks, rows=rows, scaling=scaling, seconds=seconds, trials=[seconds],
        all_sum_seconds=1e-4 * (ranks > 1), gradients=10**6, loss=2.0,
    )  # fmt: skip


def test_points_of_a_task():
    """One rank comes first; more ranks are measured only if they divide the batch evenly."""
    asked = points("copy", [1, 2, 4], 6)
    assert [(one.ranks, one.rows, one.scaling) for one in asked] == [
        (1, 6, "strong"), (2, 6, "strong"), (2, 12, "weak"), (1, 3, "alone"),
    ]  # fmt: skip


def test_speed_up_of_two_ranks():
    paces = [pace("strong", 1, 8, 0.1), pace("strong", 2, 8, 0.08), pace("weak", 2, 16, 0.1)]
    assert data_parallel.gains(paces) == {"copy strong 2": 1.25, "copy weak 2": 2.0}
    rows = data_parallel.table(paces).splitlines()
    assert rows[3] == "| copy | strong | 2 | 8 | 80.00 | 100 | 1.25 | 62% | 0.100 | 4.00 | 2.0000 |"
    assert len({row.count("|") for row in rows}) == 1


def test_each_kind_of_task_is_measured():
    effort = Effort(trials=1, steps=1, warm_up=1, exchanges=1, small=True)
    for task in ("copy", "image", "text"):
        found = measure(points(task, [1], 2)[0], Ranks(), effort)
        assert found.seconds > 0
        assert found.gradients > 1000
        assert found.loss > 0


def test_ranks_that_hang_or_fail_are_ended():
    began = time.monotonic()
    output = ranks_launch.run_ranks(
        [sys.executable, "-c", "print(1, flush=True); import time; time.sleep(100)"], 2, "ring", 2.0, Path.cwd()
    )
    assert (output.out, output.failure) == ("1\n", "the time was up")
    word = "import os, sys, time; os.environ['MLX_RANK'] == '1' and sys.exit('error: it broke'); time.sleep(100)"
    output = ranks_launch.run_ranks([sys.executable, "-c", word], 2, "ring", 60.0, Path.cwd())
    assert output.failure.endswith("| error: it broke")
    assert time.monotonic() - began < 60


def test_each_rank_sees_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    found = ranks_launch.environments(3, "nccl", tmp_path)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["4", "5", "7"]
    assert [one["MLX_RANK"] for one in found] == ["0", "1", "2"]
    assert len({one["NCCL_PORT"] for one in found}) == 1
