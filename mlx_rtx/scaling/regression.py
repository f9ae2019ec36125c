"""Fits of power laws to counts and to losses, with confidence intervals."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mlx_rtx.scaling.theory import Fit, gamma
from mlx_rtx.support.errors import UserError, require

import numpy as np

HUBER = 1e-3  # δ of the Huber loss on residuals of log loss (Hoffmann et al., Eq. 3)
LEVEL = 95  # confidence level of intervals, in per cent


class Interval(NamedTuple):
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


def exponent(sizes: Sequence[int], counts: np.ndarray) -> np.ndarray:
    """Return the slope of the least-squares line through log |S| against log D.

    Args:
        sizes: D, at least two (D,).
        counts: |S|, above 0 (…, D).

    Returns:
        One slope per row of counts (…,).
    """
    require(len(sizes) >= 2, f"sizes={list(sizes)}: a line needs two points or more")
    x, y = np.log(sizes), np.log(counts)
    x = x - x.mean()
    return (y * x).sum(axis=-1) / (x * x).sum()


def across(values: np.ndarray) -> Interval:
    """Return the mean of independent estimates with its Student t interval."""
    stats: Any = _scipy("stats")
    require(len(values) >= 2, "an interval needs two estimates or more")
    half = stats.t.ppf(0.5 + LEVEL / 200, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


class LossFit(NamedTuple):
    """A fit of Eq. 3, with bootstrap samples of its constants."""

    fit: Fit
    samples: np.ndarray  # of E, A, alpha, B, beta: (resamples, 5)
    residuals: np.ndarray  # log of measured over fitted loss, one per run

    def interval(self, name: str) -> Interval:
        """Return a constant and its interval, from the 2.5 % to the 97.5 % quantile of the bootstrap samples."""
        return self._between(getattr(self.fit, name), self.samples[:, Fit._fields.index(name)])

    def gammas(self) -> tuple[Interval, Interval]:
        """Return the lower and the upper end of γ that β implies, with their intervals."""
        values = [gamma(min(max(beta, 1e-9), 1 - 1e-9)) for beta in (self.fit.beta, *self.samples[:, 4])]
        own, resampled = values[0], np.array(values[1:])
        return self._between(own[0], resampled[:, 0]), self._between(own[1], resampled[:, 1])

    def allocation(self) -> Interval:
        """Return the exponent a of N ∝ C^a with its interval."""
        return self._between(self.fit.exponents()[0], self.samples[:, 4] / (self.samples[:, 2] + self.samples[:, 4]))

    @property
    def spread(self) -> float:
        """Root mean square of the residuals, approximately the relative error of the losses."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def report(self) -> dict[str, Any]:
        """Return all estimates with their intervals as a dict that can be written as JSON."""
        low, high = self.gammas()
        named = {name: self.interval(name) for name in self.fit._fields}
        named |= {"gamma_low": low, "gamma_high": high, "a": self.allocation()}
        intervals = {name: interval._asdict() for name, interval in named.items()}
        return {"runs": len(self.residuals), "spread": self.spread, **intervals}

    @staticmethod
    def _between(value: float, samples: np.ndarray) -> Interval:
        low, high = np.percentile(samples, [50 - LEVEL / 2, 50 + LEVEL / 2])
        return Interval(float(value), float(low), float(high))


def fit_losses(N: np.ndarray, D: np.ndarray, losses: np.ndarray, resamples: int = 1000, seed: int = 0) -> LossFit:
    """Fit the constants of Eq. 3 to measured losses, with the method of Hoffmann et al.

    The sum of the Huber loss of log L - log(E + A/N^α + B/D^β) is minimized by L-BFGS over (log E, log A, α, log B, β)
    from a grid of starting points. For the intervals, runs are resampled with replacement and fitted starting from the
    first fit.

    Args:
        N: number of parameters of each run (n,).
        D: number of training tokens of each run (n,).
        losses: loss of each run on held-out text, in nats per token (n,).
        resamples: number of bootstrap samples.
        seed: random seed of the resampling.

    Raises:
        UserError: fewer than six runs, or fewer than three different N or D.
    """
    require(len(losses) > 5, f"runs={len(losses)}: five constants need six runs or more")
    require(len(set(N)) >= 3 and len(set(D)) >= 3, "runs: a fit needs three sizes of model and of data, or more")
    x, y, target = np.log(N), np.log(D), np.log(losses)
    starts = [
        np.array([np.log(losses.min()) - 0.3, a * x.mean(), a, b * y.mean(), b])
        for a in (0.2, 0.5, 1.0)
        for b in (0.2, 0.5, 1.0)
    ]
    best = _best_of(starts, x, y, target)
    lifted = best.copy()  # a second start: if E is near 0, so is its gradient
    lifted[0] = max(best[0], np.log(losses.min() / 2))
    random = np.random.default_rng(seed)
    samples: list[Fit] = []
    while len(samples) < resamples:
        drawn = random.integers(0, len(target), len(target))
        if len(set(N[drawn])) >= 3 and len(set(D[drawn])) >= 3:
            samples.append(_constants(_best_of([best, lifted], x[drawn], y[drawn], target[drawn])))
    fit = _constants(best)
    return LossFit(fit, np.array(samples), target - np.log(fit.loss(N, D)))  # type: ignore[arg-type]


def _constants(theta: np.ndarray) -> Fit:
    E, A, alpha, B, beta = theta
    return Fit(float(np.exp(E)), float(np.exp(A)), float(alpha), float(np.exp(B)), float(beta))


def _best_of(starts: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the lowest minimum found from several starting points."""
    optimize: Any = _scipy("optimize")
    bounds = [(-20, 5), (-20, 60), (0, 3), (-20, 60), (0, 3)]
    options = {"maxiter": 5000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-10}
    found = [
        optimize.minimize(_objective, start, (x, y, target), "L-BFGS-B", jac=True, bounds=bounds, options=options)
        for start in starts
    ]
    return min(found, key=lambda one: one.fun).x


def _objective(theta: np.ndarray, x: np.ndarray, y: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the sum of the Huber loss divided by HUBER², and its gradient."""
    E, A, alpha, B, beta = theta
    terms = np.stack([np.full_like(x, E), A - alpha * x, B - beta * y])
    fitted = np.logaddexp.reduce(terms)
    residual = (fitted - target) / HUBER
    size = np.abs(residual)
    value = np.where(size <= 1, residual**2 / 2, size - 0.5).sum()
    of_e, of_n, of_d = np.exp(terms - fitted) * np.clip(residual, -1, 1) / HUBER
    return value, np.array([of_e.sum(), of_n.sum(), -(of_n * x).sum(), of_d.sum(), -(of_d * y).sum()])


def _scipy(part: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"scipy.{part}")
    except ImportError:
        raise UserError("scaling: needs scipy; pip install 'mlx-rtx[scaling]'") from None
