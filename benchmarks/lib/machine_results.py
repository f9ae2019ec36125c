"""Folders of reports: one per machine in benchmarks/results."""

import json
import re
from pathlib import Path

from mlx_rtx.support import backend
from mlx_rtx.support.reports import make_folder

RESULTS = Path(__file__).parent.parent / "results"


def results_folder(out: Path | None) -> Path:
    """Create and return ``out``, or this machine's folder if it is None."""
    if out is None:
        out = RESULTS / "-".join(re.findall("[a-z0-9]+", str(backend.device_name()).lower()))
    return make_folder(out)


def reports(name: str) -> dict[str, dict]:
    """Read the reports called ``name`` of all machines, as {folder name: report}."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"*/{name}.json"))}
