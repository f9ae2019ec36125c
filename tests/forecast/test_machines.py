"""Estimated time of a step on another machine."""

from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.machines import MACHINES

import pytest

M4 = MACHINES["m4"]


def test_a_step_without_work_takes_the_wait():
    assert M4.seconds(Work(0, 0, 0)) == (M4.wait, M4.wait)


@pytest.mark.parametrize(
    ("work", "least", "most"),
    [
        (Work(launches=40_000, multiply_adds=0, bytes=0), 0.12, 0.22),  # plus 1,000 command buffers of 20 µs
        (Work(launches=0, multiply_adds=1_600_000_000_000, bytes=0), 1.0, 1.6),
        (Work(launches=0, multiply_adds=0, bytes=92_000_000_000), 1.0, 92 / 65),
    ],
)
def test_each_kind_of_work_adds_its_time(work, least, most):
    assert M4.seconds(work) == pytest.approx((least + M4.wait, most + M4.wait))


def test_the_rates_of_an_m4_are_below_apples_specification():
    assert max(M4.bytes_per_s) < 120e9
    assert 2 * max(M4.multiply_adds_per_s) < 4.6e12
    for best, worst in (M4.multiply_adds_per_s, M4.bytes_per_s):
        assert best >= worst
    assert M4.launch[0] <= M4.launch[1]
