"""Where reports lie: a folder a machine in benchmarks/results, each report with what it was made with."""

import json
import re
from pathlib import Path

from mlx_rtx.support import backend
from mlx_rtx.support.reports import make_folder

RESULTS = Path(__file__).parent.parent / "results"


def results_folder(out: Path | None) -> Path:
    """``out``, or the folder of this machine; it is there afterwards."""
    if out is None:
        out = RESULTS / "-".join(re.findall("[a-z0-9]+", str(backend.device_name()).lower()))
    return make_folder(out)


def reports(name: str) -> dict[str, dict]:
    """The reports of that name of all machines, by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"*/{name}.json"))}
