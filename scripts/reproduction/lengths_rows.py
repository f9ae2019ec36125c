"""Rows of the table of sequence lengths: a text model of width 128 on the same number of characters.

Each text is read in sequences of several lengths, independent of each other or stateful. The width is the largest at
which one GPU kernel runs all windows of a segment; at the default recipe's 384 a sequence of 16,384 characters takes
thousands of launches. That recipe's model is trained at one length only. So is a regular transformer of two layers, as
many parameters apart from its positions, that sees both occurrences of a passage: it shows whether this training
suffices to learn to use them.
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
TOKENS = 480_000 * 128  # half of the tokens of the default recipe


def _flags(length: int, tokens_per_step: int) -> str:
    """Return the flags for sequences of a length, with `TOKENS` tokens in all."""
    return f"--length {length} --batch {tokens_per_step // length} --samples {TOKENS // length} --sample 0"


ROWS = (
    *(
        Row(TABLE, f"length-{L}", recipe, f"text {_flags(L, 65536)} {NARROW} {flags}".strip())
        for recipe, flags in TEXTS.items()
        for L in LENGTHS
    ),
    *(
        Row(TABLE, "length-4096", f"regular-{recipe}", f"text {_flags(4096, 65536)} {REGULAR} {TEXTS[recipe]}".strip())
        for recipe in ("shakespeare", "repeats")
    ),
    *(
        Row(TABLE, "length-1024", recipe, f"text {_flags(1024, 16384)} {flags}".strip())
        for recipe, flags in DEFAULT.items()
    ),
)


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored: on the whole held-out text, in windows and, with a state, as one stream."""
    if row.recipe.startswith("regular"):
        return [held_out(quick)]
    return [held_out(quick), Scoring(("--split", "stream"), {"stream_loss": "loss"})]
