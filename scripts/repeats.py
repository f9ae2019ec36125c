"""Text with long repeats: every passage of a text comes a second time, a while after the first.

    python scripts/repeats.py tinyshakespeare.txt repeats.txt --passage 256 --after 2304

So what follows can be told by looking far back, as nothing in plain text asks for: does a model's α leave 0 on it?
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
    """Write a text in which every passage comes twice."""

    text: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="TEXT")]]
    """Text to read: a file or folder, named as for --data of text training."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """File to write, about twice as long."""
    passage: int = 256
    """Characters of a passage."""
    after: int = 2304
    """Characters from a passage's first coming to its second, an odd multiple of --passage."""

    def __post_init__(self):
        for name in ("passage", "after"):
            require(getattr(self, name) >= 1, f"{name}={getattr(self, name)}: must be at least 1")
        fits = self.after % (2 * self.passage) == self.passage
        near = self.after // (2 * self.passage) * 2 * self.passage + self.passage
        require(fits, f"after={self.after}: must be an odd multiple of passage={self.passage}, e.g. {near}")


def repeated(text: str, passage: int, after: int) -> str:
    """Passages and their second comings in turn; what would come again behind the end is left out, as is a last part.

    Example:
        >>> repeated("abcdef", 1, 3)
        'abacbdcedfe'
    """
    fresh = [text[start : start + passage] for start in range(0, len(text) - passage + 1, passage)]
    behind = (after // passage - 1) // 2  # fresh passages between the first and the second coming
    woven: list[str] = []
    for i, own in enumerate(fresh):
        woven += [own, fresh[i - behind]] if i >= behind else [own]
    return "".join(woven)


def main(arguments: list[str]) -> None:
    """Read, weave, write."""
    command = parse(Repeats, arguments, "python scripts/repeats.py")
    woven = repeated(text_file.load(command.text, "TEXT")[0], command.passage, command.after)
    write_whole(command.out, partial(Path.write_text, data=woven, encoding="utf-8"))
    print(f"written: {command.out}, {len(woven):,} characters")


if __name__ == "__main__":
    run_command(main)
