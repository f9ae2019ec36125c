"""Rows of the table of sequence lengths: a text model of width 128 on the same number of characters.

Each text is read in sequences of several lengths, independent of each other or stateful. The width is the largest at
which one GPU kernel runs all windows of a segment; at the default recipe's 384 a sequence of 16,384 characters takes
thousands of launches. That recipe's model is trained at one length only. In further texts (`near`) passages of one
block occur again three blocks later, just out of reach of attention, or farther away. Two kinds of models have both
occurrences in reach: one with blocks of 64, and a regular transformer of two layers with as many parameters, apart from
its positions.
"""

from reproduction.row import Row, Scoring
from reproduction.scale_rows import MUON, held_out

TABLE = "lengths"
LENGTHS = (64, 256, 1024, 4096, 16384)
TRAINING = f"{MUON} --dropout 0.1 --validate-every 100"
NARROW = f"--dim 128 --heads 4 {TRAINING}"
STATEFUL = "--stateful --alpha 0"
TEXTS = {  # recipe: flags that choose the text and how it is read
    "shakespeare": "",
    "shakespeare-stateful": STATEFUL,
    "repeats": "--data repeats.txt",
    "repeats-stateful": f"--data repeats.txt {STATEFUL}",
}
REGULAR = f"--model regular --positions absolute --layers 2 --dim 88 --heads 4 {TRAINING}"
DEFAULT = {"default": "", "default-stateful": STATEFUL}  # recipe: the default model on Shakespeare
NEAR = "--data repeats-near.txt"
FARTHER = (80, 112, 240)  # characters from a passage to its second occurrence, instead of 48
TOKENS = 480_000 * 128  # half of the tokens of the default recipe


def _row(length: int, recipe: str, tokens_per_step: int, *flags: str) -> Row:
    """Return the row of a model trained on `TOKENS` tokens in sequences of a length."""
    batch, samples = tokens_per_step // length, TOKENS // length
    command = f"text --length {length} --batch {batch} --samples {samples} --sample 0"
    return Row(TABLE, f"length-{length}", recipe, " ".join(filter(None, (command, *flags))))


ROWS = (
    *(_row(L, text, 65536, NARROW, flags) for text, flags in TEXTS.items() for L in LENGTHS),
    *(_row(4096, f"regular-{text}", 65536, REGULAR, TEXTS[text]) for text in ("shakespeare", "repeats")),
    _row(1024, "near", 65536, NARROW, NEAR),
    *(_row(1024, f"near-{after}", 65536, NARROW, f"--data repeats-near-{after}.txt") for after in FARTHER),
    _row(1024, "near-block-64", 65536, NARROW, "--block 64", NEAR),
    _row(1024, "regular-near", 65536, REGULAR, NEAR),
    *(_row(1024, recipe, 16384, flags) for recipe, flags in DEFAULT.items()),
)


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored: on the whole held-out text, in windows and, with a state, as one stream."""
    if row.recipe.startswith("regular"):
        return [held_out(quick)]
    return [held_out(quick), Scoring(("--split", "stream"), {"stream_loss": "loss"})]
