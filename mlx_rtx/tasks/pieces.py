"""Splitting of text at line ends, where most tokenizers split it too."""

from collections.abc import Iterator


def cut(text: str, size: int) -> Iterator[str]:
    """Yield pieces of a text of up to ``size`` characters, which end with a line break unless a line is longer.

    The text after such a line break does not begin with white space, so that most tokenizers split there too.
    """
    start = 0
    while len(text) - start > size:
        place = line_end(text, start, start + size)
        place = place or start + size
        yield text[start:place]
        start = place
    if start < len(text):
        yield text[start:]


def line_end(text: str, start: int, end: int) -> int | None:
    """Return the last position in ``text[start:end]`` after a line break and not before white space, None if absent."""
    place = end
    while (found := text.rfind("\n", start, place)) > start:
        if found + 1 < len(text) and not text[found + 1].isspace():
            return found + 1
        place = found
    return None
