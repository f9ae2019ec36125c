"""The picture of scale shows the results of its runs."""

import json

from mlx_rtx import train
from mlx_rtx.forecast.operations import training_ops

import pytest

from made_results import metric, row_named, write_final
from reproduction import scale_page
from reproduction.summary import summarise


def test_sizes_and_curves(tmp_path):
    losses = {"recurrent-5m": 2.5, "recurrent-15m": 2.25, "regular-5m": 2.75, "recurrent-15m-head": 2.3}
    for row, loss in losses.items():
        folder = write_final(tmp_path, f"scale/{row}:gcide", 0, metric(loss), parameters=5_000_000)
        event = {"kind": "validation", "accuracy": 0.5}
        events = [event | {"step": n, "samples": n, "loss": loss + 1 / n} for n in (100, 200)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    figure = scale_page.draw(summarise(tmp_path, "scale"), tmp_path)
    over_size, over_operations = figure.axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in over_size.lines}
    assert lines == {"recurrent": [2.5, 2.25], "regular": [2.75], "recurrent, variants": [2.3]}
    assert len(over_operations.lines) == 3
    assert over_size.get_title() == "gcide"
    settings = train.read_command(row_named("scale/recurrent-5m:gcide").command.split())[0].settings
    x, y = over_operations.lines[0].get_data()
    shape = settings.task.shape
    one = training_ops(settings.model_config(shape), shape.length, shape.targets, "recurrent", 16)
    assert x.tolist() == [100 * one, 200 * one]
    assert y.tolist() == pytest.approx([2.51, 2.505])
