"""Rows of the tables: each one can be trained and scored, and agrees with its name."""

import re
from functools import cache

from mlx_rtx import UserError, train
from mlx_rtx.evaluate import EvaluateCommand
from mlx_rtx.model.registry import MODELS
from mlx_rtx.support.parsing import parse
from mlx_rtx.support.trees import count

import pytest

from reproduction import retrieval_rows
from reproduction.rows import ABLATIONS, LONGER, ROWS, TABLES, choose, is_share, owner, scorings, train_flags


@cache
def settings(row, seed=3, **changes):
    return train.read_command(train_flags(row, seed, **changes))[0].settings


@cache
def read_scoring(flags):
    parse(EvaluateCommand, ["run", *flags], "evaluate")


def named(table, name):
    (row,) = (row for row in ROWS if (row.table, row.name) == (table, name))
    return row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table}/{row.name}")
def test_every_row_can_be_trained_and_scored(row):
    own = settings(row)
    assert own.training.seed == 3
    for quick in (False, True):
        for scoring in scorings(row, quick):
            read_scoring(tuple(scoring.flags))
    name = row.recipe if row.table in ("retrieval", "lengths") else row.row
    regular = name.startswith("regular")
    assert own.model == ("regular" if regular else "recurrent")
    if row.table == "scale":
        (millions,) = re.findall(r"-(\d+)m", row.row)
        model = MODELS[own.model](own.model_config(own.task.shape))
        assert 0.95 * float(millions) < count(model.trainable_parameters()) / 1e6 < 1.1 * float(millions)
    elif regular and row.table != "lengths":
        assert own.architecture.layers == int(name.removeprefix("regular-"))
    elif row in TABLES:
        hidden = row.recipe.endswith("hidden") or (row.task, row.recipe) == ("text", "default")
        assert own.architecture.history == ("hidden" if hidden else "output")
    by_default = row.task == "copy" and not row.recipe.startswith(("paper", "alpha-", "state-norm"))
    assert own.architecture.train_alpha == ("frozen" not in row.recipe and not by_default)
    assert own.architecture.alpha == (0.0 if row.recipe.endswith("-stateful") else 0.5)


@pytest.mark.parametrize("row", [*{(row.table, row.task): row for row in ROWS}.values()], ids=lambda row: row.name)
def test_the_number_of_samples_can_be_set(row):
    assert settings(row, samples=640).training.samples == 640
    assert settings(row, quick=True).training.samples <= 512


def test_names_and_folders_are_unique():
    assert len({(row.table, row.name) for row in ROWS}) == len(ROWS)
    owners = [row for row in ROWS if owner(row) is row]
    assert len({row.folder(0) for row in owners}) == len(owners)
    assert {row.row for row in TABLES} == {
        "copy", "selective-copy", "recurrent", "regular-1", "regular-4", "regular-6",
    }  # fmt: skip


def test_rows_that_share_runs_share_their_settings():
    shared = [row for row in ABLATIONS if row.home]
    assert len(shared) == 7
    for row in shared:
        assert settings(row) == settings(owner(row)) != settings(named("table4", "copy:paper"))
        metrics, owned = ([name for s in scorings(each) for name in s.metrics] for each in (row, owner(row)))
        assert set(metrics) <= set(owned)


def test_settings_of_the_ablations():
    by_name = {row.name: settings(row) for row in ABLATIONS}
    for block in (16, 32, 64, 128):
        assert by_name[f"image:block-{block}"].architecture.block == block
    for task in ("image", "copy"):
        for layers in (2, 3):
            assert by_name[f"{task}:layers-{layers}"].architecture.layers == layers
    for task in ("image", "copy", "selective-copy", "text"):
        for kind in ("scalar", "head", "channel", "gated"):
            assert by_name[f"{task}:alpha-{kind}"].architecture.alpha_kind == kind
    assert [by_name[f"image:{name}"].optimizer.optimizer for name in ("muon", "adam")] == ["muon", "adam"]
    for row in ABLATIONS:
        if row.task == "selective-copy":
            assert settings(row).task.noise == (8192 if row.recipe == "noise-8192" else 4096)
        elif row.task == "copy" and not row.recipe.startswith("threshold"):
            assert settings(row).progress.advance_below == 0.03
    for name, field in (("start", "start_noise"), ("threshold", "advance_below"), ("factor", "growth")):
        values = {row.recipe: row for row in ABLATIONS if row.recipe.startswith(name)}
        assert len(values) >= 2
        for recipe in values:
            assert getattr(by_name[f"copy:{recipe}"].progress, field) == float(recipe.removeprefix(f"{name}-"))


def test_settings_of_the_rows_of_retrieval():
    rows = {row.name: settings(row) for row in ROWS if row.table == "retrieval"}
    models: dict[str, list] = {}
    for name, own in rows.items():
        task, model = name.split(":")
        models.setdefault(model, []).append(own.architecture)
        shape = own.architecture
        kind = {"hidden": "scalar", "layers-2": "scalar", "block-32": "scalar", "hidden-channel": "channel"}.get(
            model, model
        )
        if own.model == "recurrent":
            assert (shape.alpha_kind, shape.train_alpha) == (kind, True)
            assert (shape.history == "hidden") == model.startswith("hidden")
            assert shape.positions == "block"  # of any length
            assert (shape.block == 32) == (model == "block-32")
        else:
            assert shape.positions == "absolute"  # and no row with it is scored at another length
            assert not named("retrieval", name).longer
        if task != "memorization":
            assert own.task.shape.length >= 8 * shape.block  # a window sees only a small part
        assert own.training.samples == rows[f"{task}:scalar"].training.samples
        assert own.optimizer == rows[f"{task}:scalar"].optimizer
    assert all(rows[f"mqar-{pairs}:gated"].task.pairs == pairs for pairs in retrieval_rows.PAIRS)
    assert all(len({shape.layers for shape in shapes}) == 1 for shapes in models.values())


def test_the_papers_values_and_the_regular_models():
    papers = {f"{row.table}/{row.name}": row.paper for row in TABLES}
    assert papers["table2/recurrent:paper"] == papers["table2/recurrent:mirror"] == 0.473
    assert (papers["table2/regular-1:paper"], papers["table2/regular-4:paper"]) == (0.393, 0.412)
    assert (papers["table4/copy:paper"], papers["table4/selective-copy:default"]) == (1.0, 0.994)
    assert [papers[f"table6/{name}:paper"] for name in ("recurrent", "regular-1", "regular-6")] == [1.47, 1.58, 1.47]
    assert settings(named("table2", "regular-4:paper")).training.batch == 120  # as for the recurrent model
    yardstick = settings(named("table6", "regular-6:nanogpt"))
    shape, optimizer, progress = yardstick.architecture, yardstick.optimizer, yardstick.progress
    assert (shape.dropout, shape.attention_dropout, shape.positions) == (0.2, 0.2, "absolute")
    assert (optimizer.lr, optimizer.warm_up, optimizer.beta2, optimizer.clip) == (1e-3, 100, 0.99, 1)
    assert (optimizer.optimizer, optimizer.weight_decay) == ("adam", 0.1)
    assert (progress.lr_decay, progress.lr_floor) == ("cosine", 0.1)
    assert yardstick.training.samples == 5000 * yardstick.training.batch


def test_metrics():
    first = {row.task: next(iter(scorings(row)[0].metrics)) for row in ROWS}
    assert first == {
        "image": "test_accuracy", "copy": "token_accuracy", "selective-copy": "token_accuracy",
        "text": "validation_loss", "mixture": "validation_loss", "mqar": "token_accuracy",
        "induction": "token_accuracy", "recall": "token_accuracy", "memorization": "token_accuracy",
    }  # fmt: skip
    default = scorings(named("table4", "selective-copy:default"))
    assert [int(scoring.flags[1]) for scoring in default] == [4096, *LONGER]
    assert list(default[2].metrics) == ["token_accuracy@16384", "sequence_accuracy@16384"]
    assert int(default[0].flags[3]) == 1024
    assert [is_share(name) for name in ("test_accuracy", "token_accuracy@8192", "validation_loss")] == [
        True,
        True,
        False,
    ]


def test_rows_are_chosen_by_name():
    assert choose(("table2",), ()) == [row for row in ROWS if row.table == "table2"]
    assert [row.name for row in choose(("table2", "table6"), ("regular-1", "recurrent:mirror"))] == [
        "recurrent:mirror", "regular-1:paper", "regular-1:paper-batch-40", "regular-1:paper",
    ]  # fmt: skip
    with pytest.raises(UserError, match="regular-6: no such row; choose from recurrent, recurrent:default"):
        choose(("table2",), ("regular-6",))
