"""Markdown tables made from the summaries: one page per table, and the blocks of results in the project's pages."""

import re
from functools import partial
from pathlib import Path

from mlx_rtx.support.errors import require
from mlx_rtx.support.files import write_whole

from reproduction import retrieval_page
from reproduction.rows import is_share
from reproduction.summary import Entry, read_summary

TITLES = {
    "table2": "Table 2: grey CIFAR-10, 1,024 pixels read one by one",
    "table4": "Table 4: copy and selective copy at 4,096 noise tokens",
    "table6": "Table 6: tiny Shakespeare by character",
    "ablations": "Ablations: the default recipes with one thing changed",
    "retrieval": "Retrieval: associative recall, induction heads, MAD's tasks, and language with copying",
    "scale": "Scale: 5, 15 and 50 million parameters on larger texts",
    "lengths": "Lengths: text in sequences of 64 to 16,384 characters",
}
IN_README = {"table2": "image", "table4": "", "table6": "text"}  # prefix of a row's name
RECIPES_IN_README = ("default", "mirror", "paper", "paper-frozen", "nanogpt")  # the others are on the tables' pages
BEGIN, END = "<!-- results -->", "<!-- /results -->"
BEST = "The checkpoint was selected on the {} that it is scored on, which makes the figure optimistic"
INTERVALS = """In parentheses: 95 % intervals. With two or more seeds, Student's t interval of the seeds' values (zero
width if all seeds agree). With one seed, Wilson's interval of a share or 1.96 standard errors of a loss, over what was
scored (none for one stream); it does not include the variation between trainings. A metric with `@N` is measured at N
noise tokens, a length that the model was not trained at. Samples are the mean over seeds."""
RUNS = """The settings, log and scores of each run are in the folder `<row>-<recipe>-<seed>` next to this page, or next
to another table's page if a row there has the same settings. To train and score a row:"""


def page(table: str, entries: list[Entry]) -> str:
    """Return the page of one table: per row a grid with one line per recipe and one column per metric."""
    grids = []
    for row in dict.fromkeys(entry["row"] for entry in entries):
        own = [entry for entry in entries if entry["row"] == row]
        metrics = list(dict.fromkeys(entry["metric"] for entry in own))
        lines = []
        for recipe in dict.fromkeys(entry["recipe"] for entry in own):
            found = {entry["metric"]: entry for entry in own if entry["recipe"] == recipe}
            first = next(iter(found.values()))
            cells = [_between(found[metric]) if metric in found else "" for metric in metrics]
            about = [_number(first["metric"], first["paper"]), _seeds(first), f"{first['samples']:,}"]
            lines.append([recipe, *cells, *about, f"{first['parameters']:,}", _machine(first)])
        named = [f"`{metric}`" for metric in metrics]
        heads = ("recipe", *named, "paper", "seeds", "samples", "parameters", "machine, revision")
        grids += [f"## {row}", _grid(heads, lines)]
    example = f"    python scripts/reproduce.py {table} --only {entries[0]['row']}:{entries[0]['recipe']}"
    return "\n\n".join([f"# {TITLES[table]}", *grids, *_remarks(entries), INTERVALS, RUNS, example]) + "\n"


def readme_block(summaries: dict[str, list[Entry]]) -> str:
    """Return the README's block of results: one line per row with a main recipe, at the training length."""
    require(any(table in summaries for table in IN_README), f"README.md: has {BEGIN}, but there is no summary yet")
    lines: dict[tuple[str, str, str], list[Entry]] = {}
    for table in IN_README:
        for entry in summaries.get(table, []):
            if "@" not in entry["metric"] and entry["recipe"] in RECIPES_IN_README:
                lines.setdefault((table, entry["row"], entry["recipe"]), []).append(entry)
    rows = []
    for (table, row, recipe), entries in lines.items():
        first = entries[0]
        rows.append(
            [
                f"{IN_README[table]} {row}, {recipe}".strip() + ("\\*" if first["chosen_on"] else ""),
                _number(first["metric"], first["paper"]),
                "; ".join(_between(entry) + _of(entry["metric"]) for entry in entries),
                f"{first['samples']:,}",
                _seeds(first),
                _machine(first),
            ]
        )
    grid = _grid(("model, recipe", "paper", "here (95 %)", "samples", "seeds", "machine, revision"), rows)
    places = dict.fromkeys(entries[0]["chosen_on"] for entries in lines.values() if entries[0]["chosen_on"])
    note = f"\n\n\\* {BEST.format(' or '.join(places))}." if places else ""
    return f"{BEGIN}\n{grid}{note}\n{END}"


def retrieval_block(summaries: dict[str, list[Entry]]) -> str:
    """Return the block of the page on retrieval: one line per task, one column per model."""
    heads, *rows = retrieval_page.block(summaries.get("retrieval", []))
    return f"{BEGIN}\n{_grid(tuple(heads), rows) if rows else 'Nothing has been trained yet.'}\n{END}"


def rendered(root: Path, results: Path) -> dict[Path, str]:
    """Return {path: text} of all files that are made from the summaries in ``results``.

    They include README.md and docs/retrieval.md in ``root`` if these contain the markers.

    Raises:
        UserError: a page has only one of the two markers, or there is no summary for the README.
    """
    summaries = {table: entries for table in TITLES if (entries := read_summary(results, table))}
    files = {results / table / "README.md": page(table, entries) for table, entries in summaries.items()}
    for path, block in ((root / "README.md", readme_block), (root / "docs" / "retrieval.md", retrieval_block)):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if BEGIN in text or END in text:
            found = re.findall(f"{BEGIN}\n.*?{END}", text, re.DOTALL)
            require(len(found) == 1, f"{path}: needs {BEGIN} and {END} once each, in this order")
            files[path] = text.replace(found[0], block(summaries))
    return files


def out_of_date(root: Path, results: Path) -> list[Path]:
    """Return the files whose text differs from what the summaries give."""
    files = rendered(root, results)
    return [path for path, text in files.items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def write_tables(root: Path, results: Path) -> list[Path]:
    """Write the files that are out of date, and return them."""
    files, changed = rendered(root, results), out_of_date(root, results)
    for path in changed:
        write_whole(path, partial(Path.write_text, data=files[path], encoding="utf-8"))
    return changed


def _remarks(entries: list[Entry]) -> list[str]:
    """Return remarks on rows whose weights were selected on the data that scores them."""
    remarks = []
    for where in ("test set", "validation split"):
        named = dict.fromkeys(f"{entry['row']} {entry['recipe']}" for entry in entries if entry["chosen_on"] == where)
        if named:
            remarks.append(f"{BEST.format(where)}: {', '.join(named)}.")
    return remarks


def _number(metric: str, value: float | None) -> str:
    """Return a fraction in per cent or a loss in nats; a dash for None."""
    if value is None:
        return "–"
    return f"{100 * value:.4g} %" if is_share(metric) else f"{value:.4g}"


def _between(entry: Entry) -> str:
    """Return a mean and its interval if it has one."""
    if entry["mean"] is None:
        return "not finite"
    scale, digits, unit = (100, 2, " %") if is_share(entry["metric"]) else (1, 4, "")
    mean, *ends = (f"{scale * entry[name]:.{digits}f}" for name in ("mean", "low", "high") if entry[name] is not None)
    return f"**{mean}{unit}** ({' – '.join(ends)})" if ends else f"**{mean}{unit}**"


def _of(metric: str) -> str:
    """Return what a fraction is a fraction of."""
    return {"token_accuracy": " of tokens", "sequence_accuracy": " of sequences"}.get(metric, "")


def _seeds(entry: Entry) -> str:
    return ", ".join(map(str, entry["seeds"]))


def _machine(entry: Entry) -> str:
    return ", ".join(filter(None, (entry["device"], entry["revision"]))) or "–"


def _grid(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
