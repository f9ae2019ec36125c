"""Values from files have the expected types or are refused."""

from dataclasses import dataclass, field
from typing import Literal

from mlx_rtx import UserError
from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import fits, make, shown

import pytest


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (1, int, True), (True, int, False), (2**63, int, False), (-(2**63), int, True), (1.0, int, False),
        (1, float, True), (1.5, float, True), (float("nan"), float, True), (2**70, float, False), ("1", float, False),
        (True, bool, True), (0, bool, False), (None, int | None, True), ("a", int | None, False),
        ("b", Literal["a", "b"], True), ("c", Literal["a", "b"], False), (["a"], Literal["a"], False),
        ([1, 2], list[int], True), ([1, None], list[int], False), ({"a": 1}, dict[str, float], True),
        ({"a": "b"}, dict[str, float], False), ([], dict[str, float], False), ({}, dict, True),
    ],
)  # fmt: skip
def test_values_and_types(value, kind, expected):
    assert fits(value, kind) is expected


@dataclass(frozen=True)
class Example:
    size: int
    rates: list[float] = field(default_factory=list)
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        require(self.size > 0, f"size={self.size}: must be above 0")


def test_a_dataclass_is_made():
    assert make(Example, {"size": 2, "rates": [1, 0.5], "kind": "b"}) == Example(2, [1, 0.5], "b")
    assert make(Example, {"size": 2}) == Example(2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "missing 1 required"),
        ({"size": "2"}, "size='2': has the wrong type for Example"),
        ({"size": 2, "rates": [None]}, "rates=list"),
        ({"size": 2, "more": 1}, "'more': unknown setting of Example"),
        ({"size": 0}, "size=0: must be above 0"),
        (None, "must be a table"),
        ([1], "must be a table"),
    ],
)
def test_an_invalid_dataclass_is_refused(values, words):
    with pytest.raises(UserError, match=words):
        make(Example, values)


def test_values_are_printed_in_one_short_line():
    for value in ("a\nb" * 1000, 10**4000, [1] * 10**6, {"a": 1}, "\ud800", float("nan"), None):
        assert len(shown(value)) <= 60
        shown(value).encode()
        assert "\n" not in shown(value)
