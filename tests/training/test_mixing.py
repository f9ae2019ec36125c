"""Steps on earlier stages of a curriculum: how many and which; reports and validations are of the current stage."""

from dataclasses import replace

from mlx_rtx import UserError
from mlx_rtx.tasks import CopyTask
from mlx_rtx.training.curriculum import Curriculum, CurriculumConfig, Progress, ProgressConfig

import numpy as np
import pytest

from tiny import TINY, check_resuming, events, make_trainer

MIXED = replace(TINY, progress=replace(TINY.progress, mix=0.4))


def at_stage(number, noise=1000, **changes):
    """Return a curriculum that has passed ``number`` stages."""
    curriculum = Curriculum(CurriculumConfig(**changes), noise, lr=1e-3, chance=2.6)
    for _ in range(number):
        curriculum.observe(0.01)
    return curriculum


def drawn(curriculum, steps=4000, seed=0):
    return [curriculum.drawn_stage(seed, step)["noise"] for step in range(steps)]


@pytest.mark.parametrize("passed", [1, 2, 4])
@pytest.mark.parametrize("mix", [0.1, 0.5])
def test_a_fraction_of_the_steps_is_on_earlier_stages_in_equal_shares(passed, mix):
    """Stages of 100, 200, 400, 800 and 1000; the last is not a whole factor larger."""
    curriculum = at_stage(passed, start_noise=100, mix=mix)
    stages = [100, 200, 400, 800, 1000][: passed + 1]
    assert curriculum.noise == stages[-1]
    counts = dict(zip(*np.unique(drawn(curriculum), return_counts=True), strict=True))
    assert sorted(counts) == stages
    for stage in stages[:-1]:
        expected = mix / passed
        assert abs(counts[stage] / 4000 - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_the_drawn_stage_depends_on_seed_and_step_only():
    curriculum = at_stage(3, start_noise=100, mix=0.5)
    assert drawn(curriculum, 200) == drawn(curriculum, 200)
    assert drawn(curriculum, 200) != drawn(curriculum, 200, seed=1)


@pytest.mark.parametrize("curriculum", [at_stage(0, mix=0.9), at_stage(3)], ids=["first", "off"])
def test_no_mixing_in_the_first_stage_or_without_the_setting(curriculum):
    assert set(drawn(curriculum, 200)) == {curriculum.noise}


def test_no_mixing_without_stages():
    assert Progress(ProgressConfig(), lr=1e-3, chance=2.3).drawn_stage(0, 5) == {}


@pytest.mark.parametrize("wrong", [-0.1, 1.0])
def test_invalid_shares_are_refused(wrong):
    with pytest.raises(UserError, match="mix"):
        CurriculumConfig(mix=wrong)


@pytest.mark.parametrize("stop", [11, 24, 33])
def test_a_run_with_mixing_resumes_bit_exactly(tmp_path, stop):
    counters = check_resuming(tmp_path, MIXED, stop)
    assert counters["progress"]["stage"] == 2  # otherwise nothing would have been mixed in


def test_reports_and_validations_are_of_the_current_stage(tmp_path, monkeypatch):
    """Each step trains on the stage drawn for it; the reported loss excludes steps on other stages."""
    steps, scored = [], []
    batch, held_out = CopyTask.batch, CopyTask.held_out

    def batch_of(self, seed, step, size):
        steps.append(self.noise)
        return batch(self, seed, step, size)

    def held_out_of(self, *rest):
        scored.append(self.noise)
        return held_out(self, *rest)

    monkeypatch.setattr(CopyTask, "batch", batch_of)
    monkeypatch.setattr(CopyTask, "held_out", held_out_of)
    config = replace(
        TINY,
        progress=replace(MIXED.progress, advance_below=1e-9),
        training=replace(TINY.training, report_every=5, validate_every=20),
    )
    trainer = make_trainer(tmp_path, config)
    trainer.progress.noise, trainer.progress.passed = 12, 2
    losses, take = [], trainer.train_step.take

    def watched(*batch, **settings):
        result = take(*batch, **settings)
        losses.append(result.loss.item())
        return result

    trainer.train_step.take = watched
    trainer.fit()
    assert steps == [trainer.progress.drawn_stage(0, number)["noise"] for number in range(40)]
    assert {3, 6, 12} == set(steps)
    assert scored == [12, 12, 12]  # two validations and the final scores
    reports = events(tmp_path, "train")
    assert {report["noise"] for report in reports} == {12}
    start = 0
    for report in reports:
        window = slice(start, start := report["step"])
        own = [loss for loss, noise in zip(losses[window], steps[window], strict=True) if noise == 12]
        assert report["loss"] == pytest.approx(np.mean(own), rel=1e-5)
        assert report["length"] == round(np.mean(steps[window]) + 4)
        assert report["tokens_per_s"] == pytest.approx(report["samples_per_s"] * report["length"])


def test_no_report_if_all_steps_were_on_earlier_stages(tmp_path, monkeypatch):
    """The next report includes these steps."""
    trainer = make_trainer(tmp_path, MIXED)
    trainer.progress.noise, trainer.progress.passed = 6, 1
    drawn = iter([3, 3, 6])
    monkeypatch.setattr(trainer.progress, "drawn_stage", lambda seed, step: {"noise": next(drawn)})
    trainer._take_step()
    trainer._take_step()
    trainer._report()
    assert not events(tmp_path, "train")
    trainer._take_step()
    trainer._report()
    (report,) = events(tmp_path, "train")
    assert (report["step"], report["noise"], report["length"]) == (3, 6, 8)
