"""Rows of the table of scale: recurrent and regular transformers of 5, 15 and 50 million parameters on larger texts.

A row is a model, a recipe a text. All models of a text are trained with Muon on the same number of tokens, in windows
of 1,024 tokens, with matrix products in bfloat16. The texts are in the folder that MLX_RTX_DATA names. All sizes are
also trained on a half and a quarter of the tokens of one text, so that Eq. 3 can be fitted.
"""

from reproduction.row import Row, Scoring

TABLE = "scale"
LENGTH = 1024  # tokens per window
MUON = "--optimizer muon --lr 2e-3 --warm-up 50 --lr-decay cosine --average 0"
BASE = (
    f"text --vocab-size 4096 --length {LENGTH} --without-replacement --batch 16 --segment 16 {MUON} "
    "--dtype bfloat16 --validate-every 200 --validate-samples 256 --sample 0"
)
TEXTS = {  # recipe: text and flags; the samples determine the number of epochs
    "gcide": "--data gcide.txt --dropout 0 --samples 20000",
    "wikitext-2": "--data wikitext2.train.txt --dropout 0.1 --samples 12800",
}
FITTED = "gcide"  # text on which Eq. 3 is fitted
SHORTER = {  # recipe: the same on fewer tokens
    f"{FITTED}-half": TEXTS[FITTED].replace("20000", "10000"),
    f"{FITTED}-quarter": TEXTS[FITTED].replace("20000", "5000"),
}
RECURRENT = "--positions block --block 128"
REGULAR = "--model regular --positions absolute"
SIZES = {  # row: flags; trained with every recipe
    "recurrent-5m": f"{RECURRENT} --dim 512 --heads 8",
    "regular-5m": f"{REGULAR} --layers 3 --dim 320 --heads 5",
    "recurrent-15m": f"{RECURRENT} --dim 960 --heads 15",
    "regular-15m": f"{REGULAR} --layers 4 --dim 512 --heads 8",
    "recurrent-50m": f"{RECURRENT} --dim 1920 --heads 30",
    "regular-50m": f"{REGULAR} --layers 8 --dim 704 --heads 11",
}
_15M = SIZES["recurrent-15m"]
VARIANTS = {  # of the middle size, on one text in full
    "recurrent-15m-block-64": _15M.replace("--block 128", "--block 64"),
    "recurrent-15m-block-256": _15M.replace("--block 128", "--block 256"),
    "recurrent-15m-layers-2": f"{RECURRENT} --layers 2 --dim 704 --heads 11",
    "recurrent-15m-layers-4": f"{RECURRENT} --layers 4 --dim 512 --heads 8",
    "recurrent-15m-head": f"{_15M} --alpha-kind head",
    "recurrent-15m-channel": f"{_15M} --alpha-kind channel",
    "recurrent-15m-gated": f"{_15M} --alpha-kind gated",
    "recurrent-15m-output": f"{_15M} --history output",
}
ROWS = tuple(
    Row(TABLE, row, recipe, f"{BASE} {flags} {text}")
    for recipe, text in (TEXTS | SHORTER).items()
    for row, flags in (SIZES | VARIANTS if recipe == FITTED else SIZES).items()
)
QUICK = "--dim 24 --heads 2 --length 256 --characters 20000 --samples 64 --batch 8 --validate-samples 16"


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored: on the whole held-out text."""
    return [held_out(quick)]


def held_out(quick: bool) -> Scoring:
    """Return the scoring of the whole held-out text, in windows of the training length."""
    some = ("--samples", "16") if quick else ()
    return Scoring(("--split", "validation", "--batch", "16", *some), {"validation_loss": "loss"})
