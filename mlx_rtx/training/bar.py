"""Progress bar on a terminal, for training and for the validation in progress."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from datetime import timedelta

from mlx_rtx.tasks import Sequences

from tqdm import tqdm

WIDTH = 10  # columns of the bar itself
FRAME = WIDTH + len("100%|| ")
NARROWEST = 20  # columns left for words


class Bar:
    """Shows samples used, and as much of the text as fits the terminal's width.

    Args:
        samples: number of samples of the whole run.
        seen: number of samples already done.
    """

    def __init__(self, samples: int, seen: int):
        shape = f"{{percentage:3.0f}}%|{{bar:{WIDTH}}}| {{desc}}"
        self._bar = tqdm(total=samples, initial=seen, file=sys.stdout, bar_format=shape, dynamic_ncols=True)
        self._shown: list[str] = []

    def show(self, samples: int, words: list[str]) -> None:
        """Show the number of samples used, and texts in order of importance."""
        self._shown = words
        self._bar.n = samples
        self._draw(words)

    def within(self, what: str, sequences: Iterable[Sequences], total: int | None) -> Iterator[Sequences]:
        """Yield ``sequences``, and show how many of them are done."""
        done = 0
        for batch in sequences:
            self._draw([f"{what}: {done:,}" + (f" of {total:,}" if total else "") + " sequences"])
            yield batch
            done += len(batch.targets)
        self._draw(self._shown)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stdout)

    def close(self) -> None:
        """Close the bar, and leave its last state on the terminal."""
        self._bar.close()

    def _draw(self, words: list[str]) -> None:
        columns = max(shutil.get_terminal_size().columns - 1 - FRAME, NARROWEST)
        self._bar.set_description_str(fit(words, columns))


def fit(words: list[str], columns: int) -> str:
    """Join as many of the first words as fit into ``columns`` columns.

    Example:
        >>> fit(["1:05 left", "loss 0.31", "stage 2 of 6"], 24)
        '1:05 left, loss 0.31'
    """
    text = ""
    for word in words:
        longer = f"{text}, {word}" if text else word
        if len(longer) > columns:
            break
        text = longer
    return text or words[0][:columns] if words else ""


def in_words(seconds: float) -> str:
    """Format a duration such as 0:06:31, or 2 days, 3:00:00."""
    return str(timedelta(seconds=round(min(seconds, 1e9))))
