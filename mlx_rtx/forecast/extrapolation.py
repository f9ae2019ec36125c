"""Extrapolation of a long training step's work from short steps; graphs of thousands of blocks are slow to traverse.

Segments and blocks repeat, so launches, multiply-adds and bytes of a step are linear in a few numbers, apart from its
ends. In long segments, MLX computes the gradient of the split into blocks one block at a time, each with an array of
the size of the whole segment: bytes then grow with the square of the number of blocks.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mlx_rtx.forecast.graph import Work
from mlx_rtx.forecast.operations import segment_sizes
from mlx_rtx.model.config import Architecture

import numpy as np

LONG = 13  # blocks from which a segment counts as long
FEW = 4  # number of blocks with outputs up to which the short steps have as many as the long one


class Step(NamedTuple):
    """Sizes of a step: length L, number of final positions with targets, blocks per segment."""

    length: int
    targets: int
    segment: int


def line(at: Callable[[int], Work], value: int, begin: int) -> Work:
    """Return ``at(value)``, for a function that is linear from ``begin``."""
    if value <= begin + 1:
        return at(value)
    one, two = at(begin), at(begin + 1)
    return Work(*(a + (value - begin) * (b - a) for a, b in zip(one, two, strict=True)))


def from_short_steps(at: Callable[[Step], Work], config: Architecture, step: Step) -> Work:
    """Return approximately ``at(step)``, by a linear fit to short steps with the same end."""
    short = list(dict.fromkeys(_short_steps(config.block, step)))
    numbers = np.array([_numbers(config, each) for each in short], float)
    found = np.array([at(each) for each in short], float)
    scale = np.abs(found).max(axis=0)  # so that rounding errors do not appear as slopes
    slopes = np.linalg.lstsq(numbers, found / scale, rcond=1e-9)[0]
    return Work(*(round(value) for value in np.array(_numbers(config, step), float) @ slopes * scale))


def _numbers(config: Architecture, step: Step) -> tuple[int, ...]:
    """Return the numbers in which the work of a step is linear.

    A constant, segments, blocks, blocks with outputs, segments with outputs, blocks of the last segment (which runs
    only once), and squares of the blocks of long segments.
    """
    run = segment_sizes(config, *step)
    last = run[-1].blocks
    return (
        1,
        sum(size.times for size in run),
        sum(size.times * size.blocks for size in run),
        sum(size.times * size.blocks_wanted for size in run),
        sum(size.times for size in run if size.blocks_wanted),
        last,
        sum(size.times * size.blocks**2 for size in run[:-1] if size.blocks >= LONG),
        last**2 if last >= LONG else 0,
    )


def _short_steps(block: int, step: Step) -> Iterator[Step]:
    """Yield short steps from which the slopes can be determined."""
    length, targets, segment = step
    blocks = -(-length // block)
    spare, offset = blocks * block - length, (length - targets) % block
    read, last = blocks - (length - targets) // block, (blocks - 1) % segment + 1
    a, b, c = (LONG, LONG + 1, LONG + 2) if segment >= LONG else (3, 4, 5)
    ends = (LONG, LONG + 1, LONG + 2) if last >= LONG else (2, 3) if last >= 2 else (1,)
    if segment >= blocks:
        shapes = [(end, 1, end) for end in ends]
    else:
        shapes = [(a, 2, ends[0]), (b, 2, ends[0]), (c, 2, ends[0]), (a, 3, ends[0]), (b, 3, ends[0])]
        shapes += [(a, 2, end) for end in ends[1:]]
    for own, segments, end in shapes:
        total = (segments - 1) * own + end
        for some in [total] if targets == length else [read] if read <= FEW else [2, 3, own + 2]:
            short = total * block - spare
            wanted = short - (total - some) * block - offset
            if 1 <= wanted <= short:
                yield Step(short, wanted, own)
