"""Rows of the table of retrieval: each task with each kind of α, both readings of m, and regular transformers.

All models of a task are trained with its default recipe on the same number of samples. Models with two layers are
narrower, so that they have about as many parameters.
"""

from reproduction.row import Row, Scoring

TABLE = "retrieval"
REGULAR = "--model regular --positions absolute"
TWO = "--layers 2 --dim {narrow}"
MODELS = {  # recipe: flags
    "scalar": "",
    "channel": "--alpha-kind channel",
    "regular-2": f"{REGULAR} {TWO}",
    "hidden": "--history hidden",
    "regular-1": REGULAR,
    "layers-2": TWO,
    "block-32": "--block 32",  # mqar only: does recall grow with the block?
    "head": "--alpha-kind head",
    "hidden-channel": "--history hidden --alpha-kind channel",
    "gated": "--alpha-kind gated",  # last, because it takes many times as long: there are no kernels for it
}
NARROW = {"mqar": 48, "induction": 44, "recall": 44, "memorization": 48, "mixture": 92}  # width with two layers
PAIRS = (4, 8, 16, 32)  # key-value pairs of multi-query associative recall, in 256 tokens
TASKS = {  # row: task and flags
    "mqar-4": "mqar --pairs 4",
    "mqar-8": "mqar --pairs 8",
    "mqar-16": "mqar",
    "mixture": "mixture",
    "mqar-32": "mqar --pairs 32",
    "induction": "induction",
    "recall": "recall",
    "recall-noisy": "recall --noise-share 0.2",
    "recall-fuzzy": "recall --key-tokens 3 --value-tokens 3",
    "memorization": "memorization",
}
LONGER = {  # {noise tokens beyond training: sequences that are scored}
    "induction": {1021: 1024, 4093: 512, 16381: 128},
    "mixture": {1024: 512, 4096: 128},
}
ROWS = tuple(
    Row(
        TABLE,
        task,
        model,
        f"{command} {flags.format(narrow=NARROW[command.split()[0]])}".strip(),
        longer=() if "regular" in model else tuple(LONGER.get(task, ())),
    )
    for model, flags in MODELS.items()
    for task, command in TASKS.items()
    if model != "block-32" or command.startswith("mqar")
)
_SMALL = "--dim 8 --heads 2 --block 4 --samples 128 --batch 8 --test-samples 16 --validate-samples 16"
QUICK = {
    "mqar": f"{_SMALL} --length 128 --alphabet 128",
    "induction": f"{_SMALL} --noise 13",
    "recall": f"{_SMALL} --length 64",
    "memorization": f"{_SMALL} --length 8",
    "mixture": f"{_SMALL} --length 64",
}


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored: on fresh sequences, and with more noise than in training."""
    some = ("--samples", "16") if quick else ("--samples", "1024")
    size = ("--batch", "64")
    if row.task == "mqar":
        return [Scoring((*some, *size), {"token_accuracy": "accuracy", "sequence_accuracy": "sequence_accuracy"})]
    if row.task != "mixture":
        return [Scoring((*some, *size), {"token_accuracy": "accuracy"}), *_longer(row, quick)]
    text = Scoring(("--split", "text", *size, *(some if quick else ())), {"validation_loss": "loss"})
    copy = Scoring(("--split", "copy", *some, *size), {"token_accuracy": "accuracy"})
    return [text, copy, *_longer(row, quick, "--split", "copy")]


def _longer(row: Row, quick: bool, *split: str) -> list[Scoring]:
    calls = []
    for noise in row.longer:
        samples = LONGER[row.row][noise]
        flags = ("--noise", str(noise // 64 if quick else noise), "--samples", str(16 if quick else samples))
        calls.append(Scoring((*split, *flags, "--batch", "32"), {f"token_accuracy@{noise}": "accuracy"}))
    return calls
