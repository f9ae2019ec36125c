"""The rows of all tables as data: their training commands, how they are scored, and the paper's values."""

import re

from mlx_rtx.support.errors import require

from reproduction import lengths_rows, retrieval_rows, scale_rows
from reproduction.row import Row, Scoring

LONGER = (8192, 16384, 65536, 1048544)  # noise tokens beyond the 4,096 of training
SEQUENCES = {4096: 1024, 8192: 128, 16384: 64, 65536: 16, 1048544: 4}  # {noise tokens: sequences that are scored}
NANOGPT = (  # nanoGPT's recipe for Shakespeare by character
    "--attention-dropout 0.2 --dropout 0.2 --lr 1e-3 --lr-decay cosine --lr-floor 0.1 --warm-up 100 --beta2 0.99 "
    "--batch 64 --clip 1 --samples 320000"
)
FROZEN = "--no-train-alpha"  # α stays at its initial value 0.5


def _image(recipe: str, flags: str = "", row: str = "recurrent", paper: float = 0.473) -> Row:
    return Row("table2", row, recipe, f"image {flags}", paper)


def _copying(task: str, paper: float) -> tuple[Row, ...]:
    recipes = {
        "paper": "",
        "paper-hidden": "--history hidden",
        "paper-frozen": FROZEN,
        "paper-frozen-hidden": f"{FROZEN} --history hidden",
    }
    by_paper = [Row("table4", task, name, f"{task} --recipe paper {flags}", paper) for name, flags in recipes.items()]
    return Row("table4", task, "default", task, paper, LONGER), *by_paper


def _text(recipe: str, flags: str, row: str = "recurrent", paper: float = 1.47) -> Row:
    return Row("table6", row, recipe, f"text {flags}", paper)


TABLES = (  # Tables 2, 4 and 6 of the paper
    _image("default"),
    _image("default-hidden", "--history hidden"),
    _image("mirror", "--mirror"),
    _image("paper", "--recipe paper"),
    _image("paper-hidden", "--recipe paper --history hidden"),
    _image("paper", "--recipe paper --model regular", "regular-1", 0.393),
    _image("paper-batch-40", "--recipe paper --model regular --batch 40", "regular-1", 0.393),  # the paper's own batch
    _image("paper", "--recipe paper --model regular --layers 4", "regular-4", 0.412),
    *_copying("copy", 1.0),
    *_copying("selective-copy", 0.994),
    _text("default", ""),
    _text("paper", "--recipe paper"),
    _text("paper", "--recipe paper --model regular", "regular-1", 1.58),
    _text("paper", "--recipe paper --model regular --layers 6 --patience 10", "regular-6"),  # soon overfits
    _text("nanogpt", f"--recipe paper --model regular --layers 6 {NANOGPT}", "regular-6"),
)
HOMES = {  # the row that trains each task with its default recipe
    "copy": "table4/copy-default",
    "selective-copy": "table4/selective-copy-default",
    "image": "table2/recurrent-default",
    "text": "table6/recurrent-default",
}


def _changed(task: str, changes: dict[str, str], longer: tuple[int, ...] = ()) -> list[Row]:
    """Return rows with a task's default recipe and one change; a row without changes shares the default row's runs."""
    return [
        Row("ablations", task, recipe, f"{task} {flags}", longer=longer, home="" if flags else HOMES[task])
        for recipe, flags in changes.items()
    ]


BLOCKS = {"block-16": "--block 16", "block-32": "", "block-64": "--block 64", "block-128": "--block 128"}
LAYERS = {
    "layers-1": "",
    "layers-2": "--layers 2",
    "layers-3": "--layers 3",
    "layers-2-dim-40": "--layers 2 --dim 40",  # these two have about as many parameters as one layer of D 52
    "layers-3-dim-32": "--layers 3 --dim 32",
}
THRESHOLDS = {
    f"threshold-{loss}": "" if loss == "0.05" else f"--advance-below {loss}"
    for loss in ("0.02", "0.03", "0.05", "0.1", "0.3", "1")
}
ALPHAS = {"alpha-scalar": "", **{f"alpha-{kind}": f"--alpha-kind {kind}" for kind in ("head", "channel", "gated")}}
COPY = {  # stages pass at a loss of 0.03, later than in the default recipe
    "layers-2": "--layers 2",
    "layers-3": "--layers 3",
    "start-32": "--start-noise 32",
    "start-512": "--start-noise 512",
    "start-4096": "--start-noise 4096",
    "factor-4": "--growth 4",
    "factor-8": "--growth 8",
    **{name: f"--train-alpha {flags}".strip() for name, flags in ALPHAS.items()},
    "state-norm": "--train-alpha --state-norm",
}
LATER = {name: f"--advance-below 0.03 {flags}" for name, flags in COPY.items()}
SELECTIVE = {  # at the paper's noise length, half of the default recipe's
    "alpha-channel": "",
    "alpha-scalar": "--alpha-kind scalar",
    "alpha-frozen": f"--alpha-kind scalar {FROZEN}",
    "alpha-head": "--alpha-kind head",
    "alpha-gated": "--alpha-kind gated",
    "mix-0": "--mix 0",
    "adam": "--optimizer adam",
}
SHORTER = {name: f"--noise 4096 {flags}".strip() for name, flags in SELECTIVE.items()}
IMAGES = {
    "muon": "",
    "adam": "--optimizer adam --lr 5e-4",
    "qk-norm": "--qk-norm",
    "absolute-32": "--positions absolute --dim 32",
    "absolute-32-mirror": "--positions absolute --dim 32 --mirror",
}
ABLATIONS = (
    *_changed("image", BLOCKS | LAYERS | ALPHAS | IMAGES),
    *_changed("copy", THRESHOLDS | LATER, LONGER[:3]),
    *_changed("selective-copy", {"noise-8192": "", **SHORTER}, LONGER),
    *_changed("text", ALPHAS),
)
OTHERS = {module.TABLE: module for module in (retrieval_rows, scale_rows, lengths_rows)}  # with their own scorings
ROWS = TABLES + ABLATIONS + tuple(row for module in OTHERS.values() for row in module.ROWS)


def scorings(row: Row, quick: bool = False) -> list[Scoring]:
    """Return how a row's models are scored, the row's first metric first."""
    if row.table in OTHERS:
        return OTHERS[row.table].scorings(row, quick)
    some = ("--samples", "50") if quick else ()
    if row.task == "image":
        return [Scoring(("--split", "test", "--batch", "100", *some), {"test_accuracy": "accuracy"})]
    if row.task == "text":
        return [Scoring(("--split", "validation", "--batch", "64", *some), {"validation_loss": "loss"})]
    calls = []
    for noise in (4096, *row.longer):
        samples = SEQUENCES[noise]
        at = "" if noise == 4096 else f"@{noise}"
        if quick:
            noise, samples = noise // 64, max(samples // 16, 4)
        flags = ("--noise", str(noise), "--samples", str(samples), "--batch", "64")
        names = {f"token_accuracy{at}": "accuracy", f"sequence_accuracy{at}": "sequence_accuracy"}
        calls.append(Scoring(flags, names))
    return calls


_COPY = "--noise 64 --payload 4 --dim 24 --heads 2 --samples 512 --batch 16 --test-samples 32 --validate-samples 32"
QUICK = {  # by task or table: flags after the row's own with which a run takes seconds: a tiny model, few samples
    "copy": _COPY,
    "selective-copy": _COPY,
    "image": "--dim 8 --heads 2 --samples 64 --batch 8 --test-samples 16 --validate-samples 16",
    "text": "--dim 24 --heads 2 --length 64 --samples 256 --batch 8 --test-samples 32 --validate-samples 32 --sample 0",
    **retrieval_rows.QUICK,
    scale_rows.TABLE: scale_rows.QUICK,
}


def train_flags(row: Row, seed: int, samples: int | None = None, quick: bool = False) -> list[str]:
    """Return task and flags of a run of ``row``, without --out."""
    words = row.command.split()
    if quick:
        words += [
            *QUICK[row.table if row.table in QUICK else row.task].split(),
            "--validate-every",
            "4",
            "--report-every",
            "2",
        ]
    return [*words, *(["--samples", str(samples)] if samples else []), "--seed", str(seed)]


def choose(tables: tuple[str, ...], only: tuple[str, ...]) -> list[Row]:
    """Return the rows of ``tables``, or only those that ``only`` names, as ROW or ROW:RECIPE.

    Raises:
        UserError: a name in ``only`` is not a row of these tables.
    """
    rows = [row for row in ROWS if row.table in tables]
    for name in only:
        known = list(dict.fromkeys(name for row in rows for name in (row.row, row.name)))
        require(name in known, f"--only {name}: no such row; choose from {', '.join(known)}")
    return [row for row in rows if not only or row.row in only or row.name in only]


def owner(row: Row) -> Row:
    """Return the row whose runs ``row`` uses: itself unless it has a home."""
    return next(other for other in ROWS if not other.home and other.folder(0) == row.folder(0))


def is_share(metric: str) -> bool:
    """Return whether a metric is a fraction, which tables show in per cent; otherwise it is in nats."""
    return re.fullmatch(r"\w*accuracy(@\d+)?", metric) is not None
