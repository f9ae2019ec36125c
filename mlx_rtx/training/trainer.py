"""The training loop: batch → gradient → weights, with validation, curriculum and checkpoints.

All randomness is a function of (seed, purpose, step), so the step number is the whole random state.
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
from mlx_rtx.training.validation import Candidate, put_in, score_candidates, write_sample

import mlx.core as mx

SAVE_SECONDS = 60  # save at least so often


class Trainer:
    """A training run.

    Args:
        config: its settings.
        data: what ``config.task`` loaded.
        folder: where it saves; its ``config.json`` is written already.
        resume: go on bit-exactly from what the folder holds.
        ranks: who trains the same model on other sequences; nobody if not given.
    """

    def __init__(
        self, config: RunConfig, data: Data, folder: RunFolder, resume: bool = False, ranks: Ranks | None = None
    ):
        self.config, self.data, self.folder, self.ranks = config, data, folder, ranks or Ranks()
        self.step, self.finished = 0, False
        mx.random.seed(config.training.seed)
        self.model = MODELS[config.model](config.model_config(data))
        self._requests: list[int] = []  # to stop
        self.ranks.ask(
            lambda: bool(self._requests) or self.log.lost, lambda: time.perf_counter() - self._saved > SAVE_SECONDS
        )
        self.execution = BreakableExecution(lambda: self.ranks.stop)
        self.train_step = TrainingStep(
            self.model, config.optimizer, config.training.segment, config.training.detach, self.execution,
            config.training.accumulate, data.masked, self.ranks,
        )  # fmt: skip
        self.progress = make_progress(config.progress, data.stage, config.optimizer.lr, data.chance)
        self._carry: Carries | None = None  # what a stateful run goes on from
        self._best = self.model.trainable_parameters()
        self._chosen = self._due = False  # weights, by a validation; a validation, before the next step
        self._tally = Tally()
        self._checked: set[int] = set()  # lengths whose first batch was looked at: others are like it
        self._signs = FailureSigns(data.chance, data.long_range)
        self._resumed, self._scored = resume, False
        if resume:
            self._restore()
        self.log = RunLog(folder.metrics, config.training.samples, self.samples)
        self._saved = time.perf_counter()

    @property
    def samples(self) -> int:
        """Samples trained on so far."""
        return self.step * self.config.training.rows

    @property
    def _used_up(self) -> bool:
        """Whether another batch would be more than the samples allowed."""
        return self.samples + self.config.training.rows > self.config.training.samples

    @property
    def done(self) -> bool:
        """Whether an earlier call came to the end, and to the final scores."""
        return self._scored and not self._due and (self.finished or self._used_up)

    def fit(self) -> Scores | None:
        """Train to the end; return the scores of the best weights on held-out samples, None if stopped before.

        A step or validation that is under way when a stop is asked for is dropped, and done anew when the run goes on.
        """
        with stop_requests() as self._requests:
            try:
                self._start()
                self._train()
                kept = self._best if self._chosen else self.model.trainable_parameters()
                with put_in(self.model, kept):
                    return self._score("final", self.data, self.config.progress.test_samples, self._key("test"))
            except Stopped:
                self.save()
                return None

    def _start(self) -> None:
        if self._resumed:
            marks = {"step": self.step, "samples": self.samples, "validated": not self._due}
            self.log.note("resume", **marks, environment=backend.environment())
            self._mend()
        if self.step == 0:
            self.save()  # so that what has begun can go on

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
                        self._mend()
            if self._due:
                self._validate()
                self._due = False
                self.save()
            elif self.ranks.save:
                self.save()

    def save(self) -> None:
        """Save all that `resume` needs."""
        counters = Counters(
            step=self.step, finished=self.finished, due=self._due, progress=self.progress.state(),
            tally=self._tally.state(), signs=self._signs.lasted,
        )  # fmt: skip
        self.folder.write_training(self.model, self.train_step.state, counters, self.ranks.whole(self._carry))
        self.ranks.forget()
        self._saved = time.perf_counter()

    def _restore(self) -> None:
        """Go on from what the folder holds."""
        folder, rows = self.folder, self.config.training.rows if self.data.stateful else None
        if best := os.path.lexists(folder.model):
            folder.read_model(self.model)
            self._best, self._chosen = self.model.trainable_parameters(), True
        self.train_step.state, carry, counters = folder.read_training(self.model, self.train_step.state, rows)
        self._carry = self.ranks.share(carry)
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
        """The random key of one purpose at this step."""
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
        """Say how the steps since the last report went; the only place that waits for their losses.

        The loss is that of the present stage; where other stages are mixed in, the length is a mean.
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

    def _mend(self) -> None:
        """Do away with numbers that are not finite; no step is taken that follows from any."""
        if not_finite(self.model.parameters()):
            self.progress.observe(math.nan)
            self._go_back("weights that are not finite")
            bad = not_finite(self.model.parameters())  # where they are frozen
            require(not bad, f"{self.folder.path}: {bad[:1]} is not finite, and nothing better is kept; train anew")
        elif not_finite(self.train_step.state):
            self.train_step.reset_optimizer()
            text = "warning: moments, norms or averaged weights that are not finite: all of them start anew"
            self.log.event("restart", text, **self._where)

    def _go_back(self, why: str) -> None:
        """Have the best weights again, and nothing else of what training went by."""
        self.model.update(self._best)
        self._carry = None
        self.train_step.reset_optimizer()
        text = f"{why}: back to the best weights, lr={self._rate():.3g}"
        self.log.event("collapse", text, **self._where, lr=self._rate())

    @property
    def _where(self) -> dict[str, int]:
        """Where training stands, for events."""
        return {"step": self.step, "samples": self.samples, **self.progress.stage}

    def _alphas(self) -> list[float]:
        return [float(alpha) for alpha in self.model.alphas]

    def _validate(self) -> None:
        """Score the weights and act on it: keep them, move on, go back, or end."""
        self._report()
        self.model.update(self.ranks.of_first(self.model.trainable_parameters()))
        tally, where = self._tally, self._where
        with self.log.all_or_none():  # what takes long comes first: until it is done nothing has changed
            candidates = score_candidates(self.model, self.train_step.average, self._score_at_stage)
            steadiest = candidates[-1]  # the average where there is one: weights themselves waver from step to step
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
            self._mend()
        if sample is not None:
            self.log.event("sample", "\n".join("  | " + row for row in sample.splitlines()), **where, sample=sample)
        recent = sum(tally.reported) / len(tally.reported) if tally.reported else scores.loss
        for text in self._signs.observe(recent, scores.loss, self._alphas()):
            self.log.event("sign", f"warning: {text}", **where, sign=text)
        tally.begin_validation(scores.accuracy)
        mx.reset_peak_memory()

    def _write(self, prompt: str, count: int) -> str:
        """What the model writes after a prompt, at temperature 0.8."""
        assert self.data.vocabulary is not None
        return write_sample(self.model, self.data.vocabulary, prompt, count, int(self._key("test")[0]), self.execution)

    def _keep(self, chosen: Candidate) -> None:
        """Make these the best weights."""
        self._best, self._chosen = chosen.weights, True
        with put_in(self.model, chosen.weights):
            self.folder.write_model(self.model)

    def _confirm(self, candidate: Candidate) -> bool:
        """Whether weights that a validation found all right are so on more fresh sequences."""
        fresh, samples = mx.random.split(self._key("test"))[0], self.config.progress.test_samples
        with put_in(self.model, candidate.weights):
            scores = self._score("confirmation", self.data, samples, fresh, candidate.averaged)
        return scores.sequence_accuracy == 1

    def _score_at_stage(self, averaged: bool) -> Scores:
        data, samples = self.data.at_stage(self.progress.stage), self.config.training.validate_samples
        return self._score("validation", data, samples, self._key("validation"), averaged)

    def _score(self, event: str, data: Data, samples: int | None, key: mx.array, averaged: bool = False) -> Scores:
        """Score the model's weights on held-out sequences, and say so, and whether they are an average."""
        sequences = data.held_out("validation", samples, self.config.training.batch, key)
        scores = evaluate(self.model, self.log.scoring(event, sequences), self.execution, self.ranks)
        mark: dict[str, bool] = {"averaged": True} if averaged else {}
        text = " ".join([event, *mark, *filter(None, [line(data.stage)]), scores.text(data.metrics)])
        self.log.event(event, text, step=self.step, samples=self.samples, **mark, **data.stage, **scores.stored())
        return scores

    def _rate(self) -> float:
        """Learning rate of the next step."""
        warm_up = self.config.optimizer.warm_up
        risen = min(1.0, (self.step + 1) / warm_up) if warm_up else 1.0
        return risen * self.progress.rate(self.samples / self.config.training.samples)
