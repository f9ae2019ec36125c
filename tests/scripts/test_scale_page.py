"""Scale: the picture shows the results of the runs, and Eq. 3 is fitted to them."""

import json

from mlx_rtx import train
from mlx_rtx.forecast.operations import training_ops
from mlx_rtx.scaling.theory import Fit

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


def test_fits_find_the_constants_that_made_the_losses(tmp_path):
    law = Fit(E=1.5, A=40.0, alpha=0.3, B=300.0, beta=0.4)
    rows = {"5m": 5.3e6, "15m": 15.1e6, "50m": 52.4e6}
    for size, N in rows.items():
        for recipe, samples in {"gcide": 20000, "gcide-half": 10000, "gcide-quarter": 5000}.items():
            loss = float(law.loss(N, samples * 1024))
            names = [f"recurrent-{size}"] + ([] if size == "50m" else [f"regular-{size}"])
            for name in names:
                write_final(tmp_path, f"scale/{name}:{recipe}", 0, metric(loss), parameters=N, samples=samples)
    found = scale_page.fits(tmp_path, resamples=20)
    assert list(found) == ["recurrent"]  # a size of the regular transformer is missing
    assert found["recurrent"]["runs"] == 9
    assert found["recurrent"]["beta"]["value"] == pytest.approx(0.4, rel=0.02)
    assert found["recurrent"]["E"]["value"] == pytest.approx(1.5, rel=0.02)
