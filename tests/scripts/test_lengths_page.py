"""Sequence lengths: the picture shows the losses and α of the runs."""

import json

from made_results import metric, write_final
from reproduction import lengths_page
from reproduction.summary import summarise


def test_losses_and_alphas(tmp_path):
    stream = {"shakespeare": {64: 1.75, 1024: 1.5}, "repeats-stateful": {256: 1.625}, "near": {1024: 1.0}}
    for text, losses in stream.items():
        for L, loss in losses.items():
            folder = write_final(tmp_path, f"lengths/length-{L}:{text}", 0, metric(2.0), metric(loss))
            report = {"kind": "train", "loss": 2.0, "length": L}
            reports = [report | {"step": n, "samples": 10 * n, "alpha": [0.5 / n]} for n in (1, 2)]
            events = [*reports, {"kind": "validation", "step": 2, "samples": 20, "loss": 2.0, "accuracy": 0.5}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    over_length, over_training = lengths_page.draw(summarise(tmp_path, "lengths"), tmp_path).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in over_length.lines}
    assert lines == {"shakespeare": [[64, 1.75], [1024, 1.5]], "repeats-stateful": [[256, 1.625]]}
    drawn = [line.get_xydata().tolist() for line in over_training.lines]
    assert drawn == [[[10 * L, 0.5], [20 * L, 0.25]] for L in (64, 1024, 256, 1024)]
    assert over_training.lines[0].get_linestyle() != over_training.lines[2].get_linestyle()
    assert [text.get_text() for text in over_training.get_legend().texts] == ["near"]  # the others: see the left one
