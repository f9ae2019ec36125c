"""Make a text with long repeats: every passage occurs a second time, at a fixed distance from the first.

    python scripts/repeats.py tinyshakespeare.txt repeats.txt --passage 256 --after 2304

The second occurrence can be predicted only from far back, which plain text does not require. This tests whether a model
learns an α above 0 when that pays.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from mlx_rtx.support.command import run_command
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import write_whole
from mlx_rtx.support.parsing import parse
from mlx_rtx.tasks import text_file

import tyro


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """Write a text in which every passage occurs twice."""

    text: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TEXT")]]
    """Text to read: a file or folder, named as for --data of text training."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """File to write, about twice as long."""
    passage: int = 256
    """Characters per passage."""
    after: int = 2304
    """Characters from a passage's first occurrence to its second, an odd multiple of --passage."""

    def __post_init__(self):
        for name in ("passage", "after"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1")
        fits = self.after % (2 * self.passage) == self.passage
        near = self.after // (2 * self.passage) * 2 * self.passage + self.passage
        require(fits, f"after={self.after}: must be an odd multiple of passage={self.passage}, e.g. {near}")


def repeated(text: str, passage: int, after: int) -> str:
    """Return a text in which first and second occurrences of passages alternate.

    An incomplete last passage is dropped, and so are second occurrences that would come after the last passage.

    Example:
        >>> repeated("abcdef", 1, 3)
        'abacbdcedfe'
    """
    fresh = [text[start : start + passage] for start in range(0, len(text) - passage + 1, passage)]
    behind = (after // passage - 1) // 2  # new passages between the first and the second occurrence
    woven: list[str] = []
    for i, own in enumerate(fresh):
        woven += [own, fresh[i - behind]] if i >= behind else [own]
    return "".join(woven)


def main(arguments: list[str]) -> None:
    """Read the text and write the one with repeats."""
    command = parse(Repeats, arguments, "python scripts/repeats.py")
    woven = repeated(text_file.load(command.text, "TEXT")[0], command.passage, command.after)
    write_whole(command.out, partial(Path.write_text, data=woven, encoding="utf-8"))
    print(f"written: {command.out}, {len(woven):,} characters")


if __name__ == "__main__":
    run_command(main)
