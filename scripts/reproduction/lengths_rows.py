"""Rows of sequence lengths: the default text model on as many characters, in sequences of a length, read on or not."""

from reproduction.row import Row, Scoring
from reproduction.scale_rows import held_out

TABLE = "lengths"
LENGTHS = (64, 256, 1024, 4096, 16384)
STATEFUL = "--stateful --alpha 0"
TEXTS = {  # recipe: text and how it is read
    "shakespeare": "",
    "shakespeare-stateful": STATEFUL,
    "repeats": "--data repeats.txt",
    "repeats-stateful": f"--data repeats.txt {STATEFUL}",
}
TOKENS, TOKENS_A_STEP = 480_000 * 128, 16384  # half of what the default recipe reads
ROWS = tuple(
    Row(
        TABLE,
        f"length-{L}",
        recipe,
        f"text --length {L} --batch {TOKENS_A_STEP // L} --samples {TOKENS // L} --sample 0 {flags}".strip(),
    )
    for recipe, flags in TEXTS.items()
    for L in LENGTHS
)


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """How a row's models are scored: on all that is held out, in windows, and read on as one stream."""
    return [held_out(quick), Scoring(("--split", "stream"), {"stream_loss": "loss"})]
