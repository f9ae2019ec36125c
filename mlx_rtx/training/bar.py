"""A bar on a terminal: how far a run is, in training and within a validation."""

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
    """Samples used of all that may be, and in words what matters most, as far as the terminal is wide.

    Args:
        samples: of the whole run.
        seen: samples done before.
    """

    def __init__(self, samples: int, seen: int):
        shape = f"{{percentage:3.0f}}%|{{bar:{WIDTH}}}| {{desc}}"
        self._bar = tqdm(total=samples, initial=seen, file=sys.stdout, bar_format=shape, dynamic_ncols=True)
        self._said: list[str] = []

    def show(self, samples: int, words: list[str]) -> None:
        """Say how many samples are used, and words, of which the first go before the last."""
        self._said = words
        self._bar.n = samples
        self._draw(words)

    def within(self, what: str, sequences: Iterable[Sequences], total: int | None) -> Iterator[Sequences]:
        """Pass sequences on, and say how many of them are done."""
        done = 0
        for batch in sequences:
            self._draw([f"{what}: {done:,}" + (f" of {total:,}" if total else "") + " sequences"])
            yield batch
            done += len(batch.targets)
        self._draw(self._said)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.write(text, file=sys.stdout)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _draw(self, words: list[str]) -> None:
        room = max(shutil.get_terminal_size().columns - 1 - FRAME, NARROWEST)
        self._bar.set_description_str(fit(words, room))


def fit(words: list[str], room: int) -> str:
    """As many of the words, from the first on, as there is room for.

    Example:
        >>> fit(["1:05 left", "loss 0.31", "stage 2 of 6"], 24)
        '1:05 left, loss 0.31'
    """
    text = ""
    for word in words:
        longer = f"{text}, {word}" if text else word
        if len(longer) > room:
            break
        text = longer
    return text or words[0][:room] if words else ""


def in_words(seconds: float) -> str:
    """A duration such as 0:06:31, or 2 days, 3:00:00."""
    return str(timedelta(seconds=round(min(seconds, 1e9))))
