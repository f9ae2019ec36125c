"""Stages, learning rates and collapses of a curriculum, with synthetic losses."""

import json
import math

from mlx_rtx import UserError
from mlx_rtx.training.curriculum import (
    PLATEAU_GAIN,
    SPIKE,
    SPIKE_LEAST,
    Curriculum,
    CurriculumConfig,
    Progress,
    ProgressConfig,
    Verdict,
)

import pytest

CHANCE = math.log(14)


def make(noise=4096, lr=5e-4, chance=CHANCE, **changes):
    return Curriculum(CurriculumConfig(**changes), noise, lr, chance)


def test_noise_doubles_up_to_the_tasks_noise():
    curriculum, seen = make(noise=3000), []
    for _ in range(7):
        seen.append(curriculum.noise)
        curriculum.observe(0.1)
    assert seen == [128, 256, 512, 1024, 2048, 3000, 3000]
    assert curriculum.final


def test_noise_grows_by_the_given_factor():
    curriculum, seen = make(noise=100, start_noise=2, growth=5), []
    for _ in range(4):
        seen.append(curriculum.noise)
        curriculum.observe(0.1)
    assert seen == [2, 10, 50, 100]


def test_a_short_task_has_one_stage():
    assert make(noise=100).noise == 100


def test_the_papers_learning_rates():
    """5e-4 → 4.84, 4.54, 3.97, 2.98, 1.49e-4, as its program prints them."""
    curriculum, rates = make(lr_rule="paper"), []
    for _ in range(5):
        curriculum.observe(0.29)
        rates.append(round(curriculum.lr * 1e4, 2))
    assert rates == [4.84, 4.54, 3.97, 2.98, 1.49]
    curriculum.observe(0.1)  # at full noise: lr0 (1 - e^-loss), without rising again
    base = 5e-4 * math.prod(1 - 0.5 * noise / 4096 for noise in (256, 512, 1024, 2048, 4096))
    assert curriculum.lr == pytest.approx(base * (1 - math.exp(-0.1)))
    lowest = curriculum.lr
    curriculum.observe(0.2)
    assert curriculum.lr == lowest


def test_settle_ends_at_three_tenths():
    curriculum = make(noise=128, lr=1e-3)
    assert curriculum.observe(2.0) is Verdict.BEST
    assert curriculum.lr == pytest.approx(1e-3 * (1 - math.exp(-2)))
    curriculum.observe(0.001)
    assert curriculum.lr == pytest.approx(3e-4)


def test_constant_stays():
    curriculum = make(noise=128, lr=1e-3, lr_rule="constant")
    curriculum.observe(0.001)
    assert curriculum.lr == 1e-3


def test_only_a_better_validation_is_best():
    curriculum = make()
    assert [curriculum.observe(loss) for loss in (2.0, 2.1, 1.9, 0.2)] == [
        Verdict.BEST,
        Verdict.GOING,
        Verdict.BEST,
        Verdict.ADVANCED,
    ]


def test_a_stage_without_progress_is_a_collapse():
    curriculum = make(collapse_patience=3)
    assert curriculum.observe(0.2) is Verdict.ADVANCED
    lr, poor = curriculum.lr, [2.2, 2.3, 2.5, CHANCE]  # one new minimum, three that are not
    assert [curriculum.observe(loss) for loss in poor] == [Verdict.GOING] * 3 + [Verdict.COLLAPSED]
    assert curriculum.lr == lr / 2
    assert curriculum.noise == 256  # the stage is repeated
    assert [curriculum.observe(loss) for loss in poor[:3]] == [Verdict.GOING] * 3  # patience restarts
    assert curriculum.observe(1.0) is Verdict.BEST


def test_a_slow_recovery_is_not_a_collapse():
    curriculum = make(collapse_patience=2)
    curriculum.observe(0.2)
    losses = [2.5 - 0.01 * i + 0.005 * (i % 2) for i in range(100)]
    assert Verdict.COLLAPSED not in [curriculum.observe(loss) for loss in losses]


def test_a_plateau_at_a_low_loss_is_not_a_collapse():
    curriculum = make(collapse_patience=2)
    curriculum.observe(0.2)
    assert [curriculum.observe(0.8) for _ in range(9)] == [Verdict.BEST] + [Verdict.GOING] * 8


def test_unlearning_the_first_stage_is_a_collapse():
    curriculum = make(collapse_patience=2)
    losses = [1.0, CHANCE, CHANCE]
    assert [curriculum.observe(loss) for loss in losses] == [Verdict.BEST, Verdict.GOING, Verdict.COLLAPSED]


def test_a_run_that_never_learned_has_not_collapsed():
    curriculum = make(collapse_patience=2)
    assert Verdict.COLLAPSED not in [curriculum.observe(CHANCE) for _ in range(20)]


def test_a_loss_that_is_not_finite_is_a_collapse_at_once():
    assert make().observe(math.nan) is Verdict.COLLAPSED


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_collapse_lowers_all_later_rates(loss):
    """Otherwise the next stage, or the loss at full noise, would restore the rate of the collapse."""
    for rule, noise, rate in (("settle", 128, 0.3), ("paper", 256, 0.5)):
        curriculum = make(noise=noise, lr=1e-3, lr_rule=rule)
        assert curriculum.observe(loss) is Verdict.COLLAPSED
        assert curriculum.lr == 5e-4
        curriculum.observe(0.001)
        assert curriculum.lr == pytest.approx(rate * 5e-4)


def test_the_best_loss_of_a_stage_does_not_apply_to_the_next():
    """The first good validation of a stage is its best, even if the previous stage reached a lower loss."""
    curriculum = make(collapse_patience=2)
    assert [curriculum.observe(loss) for loss in (0.01, 0.9, 1.0, 0.8)] == [
        Verdict.ADVANCED, Verdict.BEST, Verdict.GOING, Verdict.BEST
    ]  # fmt: skip


def test_collapse_patience_restarts_with_a_stage():
    curriculum = make(collapse_patience=2, advance_below=0.9)
    assert [curriculum.observe(loss) for loss in (1.0, 2.0, 0.5, 2.0, 2.1, 2.0)] == [
        Verdict.BEST, Verdict.GOING, Verdict.ADVANCED, Verdict.GOING, Verdict.GOING, Verdict.COLLAPSED
    ]  # fmt: skip


BEST, GOING, ADVANCED, COLLAPSED = Verdict.BEST, Verdict.GOING, Verdict.ADVANCED, Verdict.COLLAPSED


@pytest.mark.parametrize(
    ("losses", "verdicts"),
    [
        ([0.25, 0.2499], [BEST, ADVANCED]),  # a stage ends below the threshold, not at it
        ([0.5, 0.5], [BEST, GOING]),  # an equal loss is not better
        ([0.1, 1.0, 0.999], [ADVANCED, GOING, BEST]),  # half the loss of guessing is not low enough
        ([0.1, 1.5, 1.5, 1.5], [ADVANCED, GOING, GOING, COLLAPSED]),  # equal to the minimum is not progress
        ([0.1, 1.0, 1.0, 1.0], [ADVANCED, GOING, GOING, COLLAPSED]),  # nor is half the loss of guessing
        ([1.0, 1.5, 1.5, 1.5], [BEST, GOING, GOING, GOING]),  # without a low loss before there is no collapse
        ([0.999, 1.5, 1.5], [BEST, GOING, COLLAPSED]),  # after as many validations as patience
        ([0.999, 1.5, 0.999, 1.5, 1.5], [BEST, GOING, GOING, GOING, COLLAPSED]),  # consecutive
    ],
    ids=str,
)
def test_each_threshold_belongs_to_one_side(losses, verdicts):
    """With a chance loss of 2, an end of stages below 0.25 and a patience of two, all exact in binary."""
    curriculum = make(chance=2.0, advance_below=0.25, collapse_patience=2)
    assert [curriculum.observe(loss) for loss in losses] == verdicts


def test_the_last_stage_does_not_advance():
    curriculum = make(noise=256)
    assert [curriculum.observe(loss) for loss in (0.2, 0.2, 0.1)] == [ADVANCED, BEST, BEST]
    assert (curriculum.noise, curriculum.passed) == (256, 1)


@pytest.mark.parametrize(
    ("loss", "right", "noise", "solved"),
    [
        (0.0, 1.0, 128, True),
        (0.25, 1.0, 128, True),  # at most this
        (0.2501, 1.0, 128, False),
        (0.0, 0.999, 128, False),  # some sequences are wrong, despite a low loss
        (0.0, 1.0, 256, False),  # not the last stage
    ],
)
def test_solved_is_a_low_loss_and_every_sequence_right_at_full_noise(loss, right, noise, solved):
    assert make(noise=noise, stop_loss=0.25).solved(loss, right) is solved


def test_a_run_that_uses_all_samples_has_no_other_stop_condition():
    assert make(stop_loss=0).stop_condition == ""
    assert "noise 4096" in make(stop_loss=0.01).stop_condition
    assert Progress(ProgressConfig(), 1e-3, CHANCE).stop_condition == ""


def test_the_state_survives_json():
    first, second = make(), make()
    for loss in (2.0, 0.2, CHANCE):
        first.observe(loss)
    second.restore(json.loads(json.dumps(first.state())))
    for loss in (CHANCE, 1.0, 0.1, 2.0):
        assert first.observe(loss) is second.observe(loss)
        assert first.state() == second.state()


@pytest.mark.parametrize(
    "wrong",
    [
        {"start_noise": 0},
        {"growth": 1},
        {"advance_below": 0},
        {"collapse_patience": 0},
        {"lr_rule": "x"},
        {"lr_decay": "x"},
        {"stop_loss": -0.01},
        {"test_samples": 0},
        {"plateau_patience": 0},
    ],
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        CurriculumConfig(**wrong)


def test_the_smallest_settings_are_accepted():
    least = {"start_noise": 1, "growth": 2, "collapse_patience": 1, "stop_loss": 0, "test_samples": 1}
    assert CurriculumConfig(**least, advance_below=1e-9, lr_floor=0, plateau_patience=1).test_samples == 1


def plateau(**changes):
    return make(lr=1.0, **{"lr_rule": "plateau", "advance_below": 0.03, "plateau_patience": 3, **changes})


def test_the_plateau_rule_lowers_the_rate_with_the_noise():
    """The rate is lr √(128/N) above 128 noise tokens."""
    curriculum, rates = plateau(start_noise=32), {}
    while not curriculum.final:
        rates[curriculum.noise] = curriculum.rate(0.0)
        assert curriculum.observe(0.029) is Verdict.ADVANCED
    assert rates == pytest.approx({n: min(1.0, math.sqrt(128 / n)) for n in (32, 64, 128, 256, 512, 1024, 2048)})


def test_the_plateau_rule_halves_the_rate_on_a_plateau():
    curriculum = plateau()
    seen = []
    for loss in (1.0, 0.98, 0.975, 0.971, 0.8, 0.79, 0.785, 0.78):  # only the fifth falls by 3 %
        curriculum.observe(loss)
        seen.append(curriculum.rate(0.0))
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    curriculum.observe(0.02)
    assert curriculum.rate(0.0) == pytest.approx(math.sqrt(0.5))  # a new stage begins with its full rate


def test_the_plateau_rule_restores_the_best_weights_after_a_lasting_spike():
    curriculum = plateau(plateau_patience=20)
    losses = (0.5, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0)  # far above 1.6 times the best; two consecutive ones are tolerated
    verdicts = [curriculum.observe(loss) for loss in losses]
    assert verdicts == [Verdict.BEST, *[Verdict.GOING] * 5, Verdict.COLLAPSED]
    assert curriculum.rate(0.0) == 0.5


def test_the_thresholds_of_the_plateau_rule():
    """An improvement is more than 3 %; a spike is a loss above 1.6 times the level plus 0.05."""
    fallen, far = (1 - PLATEAU_GAIN) * 0.5, SPIKE * 0.5 + SPIKE_LEAST
    for loss, cut in ((fallen, 0.5), (math.nextafter(fallen, 0), 1.0)):
        curriculum = plateau(plateau_patience=2)
        for observed in (0.5, 0.5, loss):
            curriculum.observe(observed)
        assert curriculum.rate(0.0) == cut
    for loss, last in ((far, Verdict.GOING), (math.nextafter(far, 9), Verdict.COLLAPSED)):
        curriculum = plateau(plateau_patience=20)
        assert [curriculum.observe(observed) for observed in (0.5, loss, loss, loss)][-1] is last


def test_the_plateau_rules_state_survives_json_and_may_be_absent():
    first, second = plateau(), plateau()
    for loss in (0.5, 0.5, 1.0):
        first.observe(loss)
    second.restore(json.loads(json.dumps(first.state())))
    for loss in (1.0, 1.0, 0.4, 0.4, 0.4, 0.4, 0.02, 0.5):
        assert first.observe(loss) is second.observe(loss)
        assert first.rate(0.3) == second.rate(0.3)
    older = {name: value for name, value in first.state().items() if name not in ("cut", "level", "flat", "worse")}
    third = plateau()
    third.restore(older)
    assert third.noise == first.noise
    assert third.cut == 1.0


def test_a_run_that_uses_all_samples_is_never_solved():
    assert not make(noise=128, stop_loss=0).solved(0.0, 1.0)


def test_patience_restarts_with_a_stage_and_after_a_collapse():
    staged = Curriculum(CurriculumConfig(patience=2, start_noise=8), 32, 1e-3, 2.6)
    for loss in (0.9, 1.0, 0.2, 1.1, 1.2):  # the third ends a stage
        staged.observe(loss)
        assert not staged.exhausted
    staged.observe(1.2)
    assert staged.exhausted
    staged.observe(float("nan"))
    assert staged.waited == 0
