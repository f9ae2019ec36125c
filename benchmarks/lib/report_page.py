"""The page of a report in Markdown: the machine, and the outcome and results of each part."""

import time
from typing import Any

from mlx_rtx.kernel_check.worker import saves_power
from mlx_rtx.plan import duration

from lib.parts import Outcome
from lib.short_training import ShortTraining, table

LAST = 20  # last lines shown of a part that failed


def page(
    environment: dict[str, Any],
    info: dict[str, str],
    outcomes: list[Outcome],
    trainings: list[ShortTraining],
    whole: bool,
    seconds: float,
    picture: str | None,
) -> str:
    """Return the text of the page.

    Args:
        environment: as returned by `mlx_rtx.support.backend.environment`.
        info: MLX's information on the device.
        outcomes: outcomes of the parts so far.
        trainings: results of the short trainings.
        whole: whether trainings used the default recipes' own settings.
        seconds: time that all parts took.
        picture: file name of the trainings' picture, if there is one.
    """
    made = f"Made on {time.strftime('%Y-%m-%d %H:%M')} by `make report` in {duration(seconds)}"
    lines = [f"# {environment['device_name'] or 'A machine'}: a report", ""]
    lines += [
        f"{made}{'' if whole else ', in its quick form, which shows no speeds'}.",
        "",
    ]
    lines += ["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in machine(environment, info))]
    lines += ["", "| part | seconds | |", "|---|---|---|"]
    lines += [f"| {outcome.part.title} | {outcome.seconds:.0f} | {outcome.text} |" for outcome in outcomes]
    for outcome in outcomes:
        if not outcome.skipped and (outcome.failure or not outcome.part.endless):
            lines += ["", *section(outcome)]
    if trainings:
        note = "With the default recipes" if whole else "Tiny trainings"
        missing = "; one that did not reach its first report is missing" if whole else ""
        lines += ["", "## Short trainings", "", f"{note}, each stopped at the end of its time{missing}.", ""]
        lines += table(trainings, whole)
        lines += [f"\n{shown.strip()}" for outcome in outcomes for shown in kernels(outcome)]
        lines += ["", f"![Losses and accuracies]({picture})"] if picture else []
    return "\n".join(lines) + "\n"


def machine(environment: dict[str, Any], info: dict[str, str]) -> list[tuple[str, str]]:
    """Return names and values that describe the machine and its software."""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    names = ("platform", "device", "processor", "git_revision", "kernels", "tf32")
    rows = [(name.replace("_", " "), str(environment[name])) for name in names]
    rows += [(f"device: {name.replace('_', ' ')}", value) for name, value in info.items()]
    return [*rows, ("versions", versions), ("low power mode", "on" if saves_power() else "off, or none")]


def section(outcome: Outcome) -> list[str]:
    """Return the lines of a part: its output without the progress, or its last lines if it failed."""
    kept = [line for line in outcome.output.splitlines() if not line.startswith(("{", "[{", "report"))]
    found = [line for line in kept if " left out: " not in line or outcome.failure]
    shown = "\n".join(found)
    if outcome.failure:
        shown = "\n".join(shown.strip().splitlines()[-LAST:])
    else:
        shown = shown.strip().partition("\n\n")[2] or shown
    lines = [f"## {outcome.part.title}", "", "```", shown.strip("\n"), "```"]
    if left_out := len(kept) - len(found):
        lines += ["", f"{left_out} sizes were left out because of the limits of time or memory."]
    if not outcome.failure:
        for name in outcome.part.pictures:
            lines += ["", f"![{outcome.part.title}]({name})"]
    return lines


def kernels(outcome: Outcome) -> list[str]:
    """Return the line that a training prints about its kernels, if it has one."""
    return [line for line in outcome.output.splitlines() if outcome.part.endless and line.startswith("kernels: ")]
