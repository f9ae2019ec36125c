"""Text in pieces, cut where tokenizers would cut in any case: at ends of lines."""

from collections.abc import Iterator


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of a text of about ``size`` characters, each of which ends with a line, where lines are not that long.

    What comes after a line break there is no white space, so that most tokenizers cut there in any case.
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
    """The last place in ``text[start:end]`` that has a line break before it and no white space after it."""
    place = end
    while (found := text.rfind("\n", start, place)) > start:
        if found + 1 < len(text) and not text[found + 1].isspace():
            return found + 1
        place = found
    return None
