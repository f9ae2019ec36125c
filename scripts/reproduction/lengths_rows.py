"""Rows of the table of sequence lengths: the default text model on the same number of characters.

Each text is read in sequences of several lengths, independent of each other or stateful.
"""

from reproduction.row import Row, Scoring
from reproduction.scale_rows import held_out

TABLE = "lengths"
LENGTHS = (64, 256, 1024, 4096, 16384)
STATEFUL = "--stateful --alpha 0"
TEXTS = {  # recipe: flags that choose the text and how it is read
    "shakespeare": "",
    "shakespeare-stateful": STATEFUL,
    "repeats": "--data repeats.txt",
    "repeats-stateful": f"--data repeats.txt {STATEFUL}",
}
TOKENS, TOKENS_PER_STEP = 480_000 * 128, 16384  # half of the tokens of the default recipe
ROWS = tuple(
    Row(
        TABLE,
        f"length-{L}",
        recipe,
        f"text --length {L} --batch {TOKENS_PER_STEP // L} --samples {TOKENS // L} --sample 0 {flags}".strip(),
    )
    for recipe, flags in TEXTS.items()
    for L in LENGTHS
)


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored: on the whole held-out text, in windows and as one stream."""
    return [held_out(quick), Scoring(("--split", "stream"), {"stream_loss": "loss"})]
