"""Which count predicts time: R² of each alone, and a fit of time to launches, arithmetic and bytes together."""

import itertools
from dataclasses import dataclass

import numpy as np


def r_squared(times: np.ndarray, predicted: np.ndarray) -> float:
    """Share of the variance of log time that a prediction explains: 1 for a perfect one, below 0 for a bad one."""
    logs = np.log(times)
    return float(1 - np.square(logs - np.log(predicted)).sum() / np.square(logs - logs.mean()).sum())


def proportional(times: np.ndarray, counts: np.ndarray) -> float:
    """`r_squared` of times that are proportional to a count, by the factor that fits best."""
    return r_squared(times, counts * np.exp(np.mean(np.log(times / counts))))


@dataclass(frozen=True)
class TimeFit:
    """time = seconds[0] · launches + seconds[1] · multiply-adds + seconds[2] · bytes, none below 0."""

    seconds: tuple[float, float, float]
    r2: float

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """Times of rows of counts (n, 3)."""
        return counts @ np.array(self.seconds)

    def arithmetic_batch(self, at_one: np.ndarray, at_two: np.ndarray) -> float:
        """Batch size from which multiply-adds and bytes take longer than launches.

        Args:
            at_one, at_two: counts (3,) at batch 1 and 2; they grow linearly with the batch.
        """
        slope = at_two - at_one
        fixed, growing = np.array(self.seconds) * (at_one - slope), np.array(self.seconds) * slope
        gain = growing[1:].sum() - growing[0]
        return float(max((fixed[0] - fixed[1:].sum()) / gain, 1.0)) if gain > 0 else float("inf")


def fit_time(times: np.ndarray, counts: np.ndarray) -> TimeFit:
    """Least squares of relative errors, over the terms that come out positive.

    Args:
        times: seconds (n,).
        counts: launches, multiply-adds and bytes (n, 3).
    """
    best, error = (0.0, 0.0, 0.0), np.inf
    for terms in itertools.chain.from_iterable(itertools.combinations(range(3), k) for k in (1, 2, 3)):
        scaled = counts[:, terms] / times[:, None]
        sizes = np.abs(scaled).max(axis=0) + np.finfo(float).tiny
        found = np.linalg.lstsq(scaled / sizes, np.ones_like(times), rcond=None)[0] / sizes
        wrong = np.square(scaled @ found - 1).sum()
        if (found >= 0).all() and wrong < error:
            seconds = np.zeros(3)
            seconds[list(terms)] = found
            best, error = (float(seconds[0]), float(seconds[1]), float(seconds[2])), wrong
    fit = TimeFit(best, 0.0)
    return TimeFit(best, r_squared(times, fit.predict(counts)))
