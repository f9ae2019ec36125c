"""Training loop: batch → gradient → weights, with validation, curriculum and checkpoints.

All random numbers are functions of (seed, purpose, step), so the step number is the complete random state.
"""

import math
import os
import time

from mlx_rtx.model.registry import MODELS
from mlx_rtx.model.segment import Carries
from mlx_rtx.support import backend
from mlx_rtx.support.compiled import BreakableExecution
from mlx_rtx.support.errors import UserError, require
from mlx_rtx.support.randomness import Purpose, step_key
from mlx_rtx.support.stopping import Stopped, stop_requests
from mlx_rtx.support.trees import not_finite
from mlx_rtx.support.typed import make
from mlx_rtx.tasks import Data
from mlx_rtx.training.checkpoint import AGAIN, RunFolder
from mlx_rtx.training.counters import Counters
from mlx_rtx.training.curriculum import make_progress
from mlx_rtx.training.diagnostics import FailureSigns
from mlx_rtx.training.evaluation import Scores, evaluate
from mlx_rtx.training.log import RunLog, line, read_lines
from mlx_rtx.training.progress import Verdict
from mlx_rtx.training.ranks import Ranks
from mlx_rtx.training.settings import RunConfig
from mlx_rtx.training.step import TrainingStep
from mlx_rtx.training.tally import Tally
from mlx_rtx.training.validation import Candidate, score_candidates, using_weights, write_sample

import mlx.core as mx

SAVE_SECONDS = 60  # longest time between two checkpoints


class Trainer:
    """A training run.

    Args:
        config: settings of the run.
        data: data loaded by ``config.task``.
        folder: run folder to save to; its ``config.json`` must exist.
        resume: resume bit-exactly from the checkpoint in the folder.
        ranks: processes among which each batch is divided; default: this process alone.
    """

    def __init__(
        self, config: RunConfig, data: Data, folder: RunFolder, resume: bool = False, ranks: Ranks | None = None
    ):
        self.config, self.data, self.folder, self.ranks = config, data, folder, ranks or Ranks()
        self.step, self.finished = 0, False
        mx.random.seed(config.training.seed)
        self.model = MODELS[config.model](config.model_config(data))
        self._requests: list[int] = []  # stop requests
        self.ranks.set_votes(
            lambda: bool(self._requests) or self.log.lost, lambda: time.perf_counter() - self._saved > SAVE_SECONDS
        )
        self.execution = BreakableExecution(lambda: self.ranks.stop)
        self.train_step = TrainingStep(
            self.model, config.optimizer, config.training.segment, config.training.detach, self.execution,
            config.training.accumulate, data.masked, self.ranks,
        )  # fmt: skip
        self.progress = make_progress(config.progress, data.stage, config.optimizer.lr, data.chance)
        self._carry: Carries | None = None  # carry into the next batch, if the task is stateful
        self._best = self.model.trainable_parameters()
        self._chosen = False  # whether a validation has chosen self._best
        self._due = False  # whether a validation precedes the next step
        self._tally = Tally()
        self._checked: set[int] = set()  # lengths for which a batch was checked; only the first of each is
        self._signs = FailureSigns(data.chance, data.long_range)
        self._resumed, self._scored = resume, False
        if resume:
            self._restore()
        self.log = RunLog(folder.metrics, config.training.samples, self.samples)
        self._saved = time.perf_counter()

    @property
    def samples(self) -> int:
        """Number of samples trained on so far."""
        return self.step * self.config.training.rows

    @property
    def _used_up(self) -> bool:
        """Whether another batch would exceed the number of samples of the run."""
        return self.samples + self.config.training.rows > self.config.training.samples

    @property
    def done(self) -> bool:
        """Whether an earlier process completed the run, including the final scores."""
        return self._scored and not self._due and (self.finished or self._used_up)

    def fit(self) -> Scores | None:
        """Train to the end; return the scores of the best weights on held-out samples, or None if stopped early.

        A step or validation in progress at a stop request is discarded and repeated when the run resumes.
        """
        with stop_requests() as self._requests:
            try:
                self._start()
                self._train()
                kept = self._best if self._chosen else self.model.trainable_parameters()
                with using_weights(self.model, kept):
                    return self._score("final", self.data, self.config.progress.test_samples, self._key("test"))
            except Stopped:
                self.save()
                return None

    def _start(self) -> None:
        if self._resumed:
            marks = {"step": self.step, "samples": self.samples, "validated": not self._due}
            self.log.note("resume", **marks, environment=backend.environment())
            self._recover()
        if self.step == 0:
            self.save()  # so that the run can be resumed from the start

    def _train(self) -> None:
        training = self.config.training
        while self._due or not (self.finished or self._used_up):
            self.execution.poll()
            if not self._due:
                self._take_step()
                self._due = self.step % training.validate_every == 0 or self._used_up
                if self.step % training.report_every == 0:
                    self._report()
                    if self._tally.untaken and not self._due:
                        self._recover()
            if self._due:
                self._validate()
                self._due = False
                self.save()
            elif self.ranks.save:
                self.save()

    def save(self) -> None:
        """Save a checkpoint from which the run can be resumed."""
        counters = Counters(
            step=self.step, finished=self.finished, due=self._due, progress=self.progress.state(),
            tally=self._tally.state(), signs=self._signs.lasted,
        )  # fmt: skip
        self.folder.write_training(self.model, self.train_step.state, counters, self.ranks.all_rows(self._carry))
        self.ranks.discard_votes()
        self._saved = time.perf_counter()

    def _restore(self) -> None:
        """Load the checkpoint in the run folder."""
        folder, rows = self.folder, self.config.training.rows if self.data.stateful else None
        if best := os.path.lexists(folder.model):
            folder.read_model(self.model)
            self._best, self._chosen = self.model.trainable_parameters(), True
        self.train_step.state, carry, counters = folder.read_training(self.model, self.train_step.state, rows)
        self._carry = self.ranks.own_rows(carry)
        require(best or not counters.chosen, f"{folder.model}: not found, though this run chose weights; {AGAIN}")
        self.step, self.finished, self._due = counters.step, counters.finished, counters.due
        self._signs.lasted = counters.signs
        try:
            self.progress.restore(counters.progress)
            self._tally = make(Tally, counters.tally)
        except UserError as error:
            raise UserError(f"{folder.training}: does not fit this run ({error}); {AGAIN}") from None
        finals = [event["step"] for event in read_lines(folder.metrics) if event["kind"] == "final"]
        self._scored = self.step in finals

    def _key(self, purpose: Purpose) -> mx.array:
        """Return the random key for one purpose at this step."""
        return step_key(self.config.training.seed, self.step, purpose)

    def _take_step(self) -> None:
        training = self.config.training
        stage = self.progress.drawn_stage(training.seed, self.step)
        data = self.data.at_stage(stage)
        batch = data.batch(training.seed, self.step, training.rows)
        step = self.train_step.take if data.length in self._checked else self.train_step
        self._checked.add(data.length)
        carry, rate, key = self._carry if batch.continues else None, self._rate(), self._key("dropout")
        result = step(batch.tokens, batch.targets, lr=rate, key=key, carry=carry, close=not self.data.stateful)
        self._carry = result.carry
        self._tally.add(result, data.length, counts=stage == self.progress.stage)
        self.step += 1

    def _report(self) -> None:
        """Report the steps since the last report; only this method waits for their losses.

        The loss covers the steps on the current stage; the length is the mean over all steps.
        """
        if (came := self._tally.report()) is None:
            return
        samples_per_s = came["steps"] * self.config.training.rows / came["seconds"]
        fields = {"step": self.step, "samples": self.samples, "loss": came["loss"]}
        if self._tally.accuracy is not None:
            fields["accuracy"] = self._tally.accuracy
        self.log.report(
            left=(self.config.training.samples - self.samples) / samples_per_s * self.data.length / came["length"],
            stages=self.progress.place, **fields, alpha=self._alphas(), **self.progress.stage,
            length=came["length"], lr=self._rate(), samples_per_s=samples_per_s,
            tokens_per_s=samples_per_s * came["length"], peak_gb=mx.get_peak_memory() / 1e9,
        )  # fmt: skip
        mx.reset_peak_memory()

    def _recover(self) -> None:
        """Replace weights or optimizer state that are not finite; steps that would depend on them are not taken."""
        if not_finite(self.model.parameters()):
            self.progress.observe(math.nan)
            self._go_back("weights that are not finite")
            bad = not_finite(self.model.parameters())  # frozen parameters, or the best weights themselves
            require(not bad, f"{self.folder.path}: {bad[:1]} is not finite, and no finite weights are saved; retrain")
        elif not_finite(self.train_step.state):
            self.train_step.reset_optimizer()
            text = "warning: moments, norms or averaged weights are not finite: all of them are reset"
            self.log.event("restart", text, **self._where)

    def _go_back(self, why: str) -> None:
        """Restore the best weights; reset the carry and the optimizer."""
        self.model.update(self._best)
        self._carry = None
        self.train_step.reset_optimizer()
        text = f"{why}: back to the best weights, lr={self._rate():.3g}"
        self.log.event("collapse", text, **self._where, lr=self._rate())

    @property
    def _where(self) -> dict[str, int]:
        """Fields of an event: step, samples and stage."""
        return {"step": self.step, "samples": self.samples, **self.progress.stage}

    def _alphas(self) -> list[float]:
        return [float(alpha) for alpha in self.model.alphas]

    def _validate(self) -> None:
        """Score the weights, then keep them, begin the next stage, return to the best weights, or end the run."""
        self._report()
        self.model.update(self.ranks.broadcast(self.model.trainable_parameters()))
        tally, where = self._tally, self._where
        with self.log.all_or_none():  # the slow part comes first: if it is interrupted, nothing has changed
            candidates = score_candidates(self.model, self.train_step.average, self._score_at_stage)
            steadiest = candidates[-1]  # the average if there is one: it fluctuates less from step to step
            solved = self.progress.solved(steadiest.scores.loss, steadiest.scores.sequence_accuracy)
            confirmed = solved and self._confirm(steadiest)
            sample = self.data.illustrate(self._write) if self.ranks.first else None
        scores = candidates[0].scores
        for text, counted in tally.warnings(self.config.optimizer.skip_above):
            self.log.event("skipped", text, step=self.step, **counted)
        stuck = tally.skipped >= self.config.training.validate_every
        ranked = sorted(candidates, key=lambda one: one.scores.loss if math.isfinite(one.scores.loss) else math.inf)
        losses = [math.nan] if stuck else [one.scores.loss for one in candidates]
        verdict = self.progress.observe(*losses)
        self.finished = confirmed or self.progress.exhausted
        if self.progress.keeps or confirmed:
            self._keep(steadiest if confirmed else ranked[0])
        if verdict is Verdict.ADVANCED:
            following = {f"next_{name}": value for name, value in self.progress.stage.items()}
            text = f"stage passed: {line(following)} lr={self._rate():.3g}"
            self.log.event("stage", text, **where, **following, lr=self._rate())
        elif verdict is Verdict.COLLAPSED:
            self._go_back("training collapsed")
        if tally.untaken or not all(math.isfinite(one.scores.loss) for one in candidates):
            self._recover()
        if sample is not None:
            self.log.event("sample", "\n".join("  | " + row for row in sample.splitlines()), **where, sample=sample)
        recent = sum(tally.reported) / len(tally.reported) if tally.reported else scores.loss
        for text in self._signs.observe(recent, scores.loss, self._alphas()):
            self.log.event("sign", f"warning: {text}", **where, sign=text)
        tally.begin_validation(scores.accuracy)
        mx.reset_peak_memory()

    def _write(self, prompt: str, count: int) -> str:
        """Return text that the model generates after a prompt, at temperature 0.8."""
        assert self.data.vocabulary is not None
        return write_sample(self.model, self.data.vocabulary, prompt, count, int(self._key("test")[0]), self.execution)

    def _keep(self, chosen: Candidate) -> None:
        """Make these the best weights, and save them."""
        self._best, self._chosen = chosen.weights, True
        with using_weights(self.model, chosen.weights):
            self.folder.write_model(self.model)

    def _confirm(self, candidate: Candidate) -> bool:
        """Return whether these weights get every sequence right on a second set of fresh sequences too."""
        fresh, samples = mx.random.split(self._key("test"))[0], self.config.progress.test_samples
        with using_weights(self.model, candidate.weights):
            scores = self._score("confirmation", self.data, samples, fresh, candidate.averaged)
        return scores.sequence_accuracy == 1

    def _score_at_stage(self, averaged: bool) -> Scores:
        data, samples = self.data.at_stage(self.progress.stage), self.config.training.validate_samples
        return self._score("validation", data, samples, self._key("validation"), averaged)

    def _score(self, event: str, data: Data, samples: int | None, key: mx.array, averaged: bool = False) -> Scores:
        """Score the model's weights on held-out sequences, and log the scores; ``averaged`` marks an average."""
        sequences = data.held_out("validation", samples, self.config.training.batch, key)
        scores = evaluate(self.model, self.log.scoring(event, sequences), self.execution, self.ranks)
        mark: dict[str, bool] = {"averaged": True} if averaged else {}
        text = " ".join([event, *mark, *filter(None, [line(data.stage)]), scores.text(data.metrics)])
        self.log.event(event, text, step=self.step, samples=self.samples, **mark, **data.stage, **scores.stored())
        return scores

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        warm_up = self.config.optimizer.warm_up
        risen = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        return risen * self.progress.rate(self.samples / self.config.training.samples)
