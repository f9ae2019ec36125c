"""Whole runs on tiny tasks: they learn, resume bit-exactly, and recover from failures."""

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace

from mlx_rtx import RegularTransformer, UserError, load
from mlx_rtx.tasks import CopyTask, SelectiveCopyTask
from mlx_rtx.training.curriculum import CurriculumConfig
from mlx_rtx.training.evaluation import evaluate
from mlx_rtx.training.optimizer import OptimizerConfig

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from tiny import FLAGS, TINY, check_resuming, events, fit_until, same, saved, text_run
from tiny import make_trainer as make

SLOWLY = CurriculumConfig(start_noise=3, advance_below=0.5, stop_loss=0.1, test_samples=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of an uninterrupted run."""
    path = tmp_path_factory.mktemp("whole")
    make(path).fit()
    return path


def test_copy_is_learned(tmp_path):
    config = replace(
        TINY,
        architecture=replace(TINY.architecture, dropout=0),
        progress=SLOWLY,
        training=replace(TINY.training, samples=16 * 600),
    )
    trainer = make(tmp_path, config)
    scores = trainer.fit()
    assert trainer.finished
    assert events(tmp_path, "confirmation")[-1]["sequence_accuracy"] == 1
    assert scores.sequence_accuracy == 1
    assert [stage["next_noise"] for stage in events(tmp_path, "stage")] == [6, 12]
    model, _ = load(tmp_path)
    tokens, targets = config.task.draw(mx.random.key(99), 20)
    assert mx.array_equal(mx.argmax(model(tokens, last=2), axis=-1), targets)


def test_an_unconfirmed_solution_does_not_end_the_run(tmp_path, monkeypatch):
    """A single validation may be right by chance; more fresh sequences must confirm it."""
    config = replace(TINY, training=replace(TINY.training, samples=16 * 21))
    trainer = make(tmp_path, replace(config, progress=CurriculumConfig(start_noise=12, stop_loss=9.0)))
    real = trainer._score

    def lucky(event, *rest):
        return replace(real(event, *rest), sequence_accuracy=0.99 if event == "confirmation" else 1.0)

    monkeypatch.setattr(trainer, "_score", lucky)
    trainer.fit()
    assert not trainer.finished
    assert [event["step"] for event in events(tmp_path, "confirmation")] == [7, 14, 21]


def test_selective_copy_trains(tmp_path):
    config = replace(
        TINY, task=SelectiveCopyTask(noise=4, payload=2, alphabet=5), training=replace(TINY.training, samples=16 * 150)
    )
    scores = make(tmp_path, config).fit()
    assert scores.loss < 0.9 * config.task.chance


def test_a_regular_transformer_trains(tmp_path):
    config = replace(TINY, model="regular", architecture=replace(TINY.architecture, layers=2, dropout=0))
    config = replace(config, task=CopyTask(noise=3, payload=2, alphabet=5), progress=SLOWLY)
    config = replace(config, training=replace(TINY.training, samples=16 * 150))
    scores = make(tmp_path, config).fit()
    assert scores.loss < 0.5 * config.task.chance
    model, loaded = load(tmp_path)
    assert isinstance(model, RegularTransformer)
    assert loaded.layers == 2
    assert all(report["alpha"] == [] for report in events(tmp_path, "train"))


@pytest.mark.parametrize("reading", [{}, {"stateful": True}, {"without_replacement": True}], ids=str)
def test_text_is_learned(tmp_path, reading):
    config = text_run(tmp_path, **reading)
    config = replace(
        config,
        architecture=replace(config.architecture, dropout=0, dim=32, history="hidden"),
        optimizer=OptimizerConfig(lr=5e-3),
        training=replace(config.training, samples=16 * 100, validate_every=50),
    )
    trainer = make(tmp_path / "run", config)
    scores = trainer.fit()
    assert scores.loss < 0.4 * trainer.data.chance
    samples = [event["sample"] for event in events(tmp_path / "run", "sample")]
    assert [len(sample) for sample in samples] == [12, 12]
    assert events(tmp_path / "run", "final")[0]["loss"] == pytest.approx(trainer.progress.best, abs=1e-6)
    model, _ = load(tmp_path / "run")
    stream = evaluate(model, trainer.data.held_out("stream", None, 1, mx.random.key(0)))
    assert stream.loss < 0.4 * trainer.data.chance


def test_a_stateful_run_resumes_bit_exactly(tmp_path):
    """Its carry is part of the checkpoint."""
    config = text_run(tmp_path, stateful=True)
    make(tmp_path / "whole", config).fit()
    make(tmp_path / "parts", replace(config, training=replace(config.training, samples=16 * 14))).fit()
    going_on = make(tmp_path / "parts", config, resume=True)
    assert going_on._carry
    going_on.fit()
    same(saved(tmp_path / "parts"), saved(tmp_path / "whole"))


def test_a_stateful_run_resets_its_state_where_the_text_restarts(tmp_path):
    trainer = make(tmp_path / "run", text_run(tmp_path, stateful=True))
    real, carries, continues = trainer.train_step.take, [], []

    def step(*batch, carry, **settings):
        carries.append(carry)
        return real(*batch, carry=carry, **settings)

    trainer.train_step.take = step
    for _ in range(40):
        continues.append(trainer.data.batch(0, trainer.step, 16).continues)
        trainer._take_step()
    assert [carry is not None for carry in carries] == continues
    assert continues.count(False) > 1


def test_a_sample_does_not_change_training(tmp_path):
    for name, sample in (("with", 12), ("without", 0)):
        make(tmp_path / name, text_run(tmp_path, sample=sample)).fit()
    same(saved(tmp_path / "with"), saved(tmp_path / "without"))
    assert not events(tmp_path / "without", "sample")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "regular"}, "model=regular: has no state"),
        ({"positions": "absolute"}, "use --positions block"),
        ({"positions": "axial"}, "positions='axial': limit the length.* use --positions block"),
        ({"block": 5}, "length=16: .* multiple of block=5"),
    ],
)
def test_unsuitable_settings_for_stateful_training_are_refused(tmp_path, changes, words):
    config = text_run(tmp_path, stateful=True)
    shape = {name: value for name, value in changes.items() if name != "model"}
    with pytest.raises(UserError, match=words):
        replace(
            config,
            model=changes.get("model", "recurrent"),
            architecture=replace(config.architecture, **shape),
        )


def test_what_a_run_reports(whole):
    names = {"step", "samples", "loss", "alpha", "noise", "length", "lr", "samples_per_s", "tokens_per_s", "peak_gb"}
    reports = events(whole, "train")
    assert all(names <= report.keys() for report in reports)
    assert "accuracy" in reports[-1]
    assert reports[-1]["step"] == 40
    assert [v["step"] for v in events(whole, "validation")] == [7, 14, 21, 28, 35, 40]
    assert len(events(whole, "final")) == 1
    assert [stage["next_noise"] for stage in events(whole, "stage")] == [6, 12]  # so that resuming has several stages
    config = json.loads((whole / "config.json").read_text())
    assert config["settings"]["optimizer"]["lr"] == 1e-2


def test_the_seed_determines_the_run(tmp_path, whole):
    make(tmp_path / "same").fit()
    same(saved(tmp_path / "same"), saved(whole))
    make(tmp_path / "other", replace(TINY, training=replace(TINY.training, seed=1))).fit()
    assert not np.array_equal(
        saved(tmp_path / "other")[0]["model.embedding.tokens"], saved(whole)[0]["model.embedding.tokens"]
    )


@pytest.mark.parametrize("stop", [1, 14, 25, 39])  # of 40 steps, with a validation after each 7
def test_a_run_stopped_anywhere_resumes_bit_exactly(tmp_path, whole, stop):
    fit_until(make(tmp_path), stop)
    mx.random.seed(12345)  # nothing may depend on the global random state
    going_on = make(tmp_path, resume=True)
    assert going_on.step == stop
    going_on.fit()
    going_on.log.close()
    same(saved(tmp_path), saved(whole))
    assert [v["loss"] for v in events(tmp_path, "validation")] == [v["loss"] for v in events(whole, "validation")]


@pytest.mark.parametrize(
    "optimizer", [{"optimizer": "muon", "warm_up": 20}, {"optimizer": "muon", "weight_decay": 0.1}]
)
def test_a_run_with_muon_resumes_bit_exactly(tmp_path, optimizer):
    rules = replace(TINY.progress, lr_rule="plateau", lr_decay="linear", plateau_patience=1)
    config = replace(TINY, optimizer=OptimizerConfig(lr=1e-2, **optimizer), progress=rules)
    check_resuming(tmp_path, config, 17)


def test_warm_up_rises_to_the_learning_rate(tmp_path):
    config = replace(
        TINY, optimizer=OptimizerConfig(lr=1e-2, warm_up=4), progress=replace(TINY.progress, lr_rule="constant")
    )
    trainer = make(tmp_path, config)
    rates = []
    for trainer.step in range(6):
        rates.append(trainer._rate())
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_a_killed_run_resumes_bit_exactly(tmp_path, whole):
    """Killed after a random line of output, it repeats the steps that it had not saved."""
    command = [sys.executable, "-u", "-m", "mlx_rtx.train", *FLAGS, "--report-every", "1", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        after = f"step={random.randrange(8, 25)} "
        for line in run.stdout:
            if line.startswith(after):
                run.kill()
                break
    assert run.returncode == -signal.SIGKILL
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    same(saved(tmp_path), saved(whole))
    steps = [report["step"] for report in events(tmp_path, "train")]
    assert steps == list(range(1, 41))


def test_a_finished_run_is_not_changed(tmp_path, whole):
    for name in ("config.json", "metrics.jsonl", "model.safetensors", "training.safetensors"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    make(tmp_path, resume=True).fit()
    same(saved(tmp_path), saved(whole))


def test_more_samples_lengthen_a_run(tmp_path):
    make(tmp_path, replace(TINY, training=replace(TINY.training, samples=16 * 10))).fit()
    longer = make(tmp_path, resume=True)
    longer.fit()
    assert longer.step == 40


def test_a_run_recovers_from_a_collapse(tmp_path, capsys):
    """After a collapse the best weights of the passed stage are restored, with half the rate."""
    config = replace(
        TINY,
        architecture=replace(TINY.architecture, dropout=0),
        progress=replace(SLOWLY, collapse_patience=3, stop_loss=0.3),
        training=replace(TINY.training, samples=16 * 600),
    )
    trainer = make(tmp_path, config)
    step, broken = trainer._take_step, []

    def breaking():
        step()
        if trainer.progress.passed == 1 and not broken and trainer.step % 7 == 6:
            broken.append(tree_map(lambda a: a, trainer._best))
            trainer.model.update(tree_map(lambda w: 100 * w, trainer.model.parameters()))
            while not events(tmp_path, "collapse"):
                trainer._validate()
            for (name, a), (_, b) in zip(
                tree_flatten(trainer.model.parameters()), tree_flatten(broken[0]), strict=True
            ):
                assert mx.array_equal(a, b), name
            assert trainer.train_step.optimizer.step.item() == 0

    trainer._take_step = breaking
    trainer.fit()
    assert broken
    (collapse,) = events(tmp_path, "collapse")[:1]
    assert collapse["lr"] == pytest.approx(config.optimizer.lr / 2)
    assert "training collapsed: back to the best weights" in capsys.readouterr().out
    assert trainer.progress.noise > 6  # and it advanced from there


def test_gradients_that_are_never_finite_are_reported(tmp_path, monkeypatch, capsys):
    trainer = make(tmp_path, replace(TINY, training=replace(TINY.training, samples=16 * 7)))
    before = dict(tree_flatten(trainer.model.parameters()))
    real = trainer.model.embedding.readout
    monkeypatch.setattr(
        type(trainer.model.embedding), "readout", lambda self, *a: real(*a) * (mx.nan if trainer.model.training else 1)
    )
    trainer.fit()
    for name, array in tree_flatten(trainer.model.parameters()):
        assert mx.array_equal(array, before[name]), name
    out = capsys.readouterr().out
    assert "skipped 7 steps with a gradient or weights that would not be finite" in out
    assert "training collapsed" in out


@pytest.mark.parametrize("reading", [{}, {"stateful": True}], ids=str)
def test_accumulation_resumes_bit_exactly_and_reads_the_sequences_of_a_large_batch(tmp_path, reading):
    config = text_run(tmp_path, **reading)
    config = replace(config, architecture=replace(config.architecture, dropout=0.0))
    large, parts = (
        replace(config, training=replace(config.training, samples=16 * 10, batch=16 // n, accumulate=n)) for n in (1, 4)
    )
    check_resuming(tmp_path, parts, stop=4)
    make(tmp_path / "large", large).fit()
    for one, other in zip(events(tmp_path / "whole", "train"), events(tmp_path / "large", "train"), strict=True):
        assert one["samples"] == other["samples"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
