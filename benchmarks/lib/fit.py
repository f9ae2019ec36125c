"""How well counts predict time: R² of each count, and a fit of time to launches, multiply-adds and bytes."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls


def r_squared(times: np.ndarray, predicted: np.ndarray) -> float:
    """Return the fraction of the variance of log time that a prediction explains: 1 if perfect, below 0 if bad."""
    logs = np.log(times)
    return float(1 - np.square(logs - np.log(predicted)).sum() / np.square(logs - logs.mean()).sum())


def proportional(times: np.ndarray, counts: np.ndarray) -> float:
    """Return `r_squared` of the prediction that times are proportional to ``counts``, with the best factor."""
    return r_squared(times, counts * np.exp(np.mean(np.log(times / counts))))


@dataclass(frozen=True)
class TimeFit:
    """time = seconds[0] · launches + seconds[1] · multiply-adds + seconds[2] · bytes, with factors of at least 0."""

    seconds: tuple[float, float, float]
    r2: float

    def predict(self, counts: np.ndarray) -> np.ndarray:
        """Return the predicted times (n,) of counts (n, 3)."""
        return counts @ np.array(self.seconds)

    def arithmetic_batch(self, at_one: np.ndarray, at_two: np.ndarray) -> float:
        """Return the batch size above which multiply-adds and bytes take longer than launches; infinity if none.

        Args:
            at_one, at_two: counts (3,) at batch 1 and 2; they grow linearly with the batch.
        """
        slope = at_two - at_one
        fixed, growing = np.array(self.seconds) * (at_one - slope), np.array(self.seconds) * slope
        gain = growing[1:].sum() - growing[0]
        return float(max((fixed[0] - fixed[1:].sum()) / gain, 1.0)) if gain > 0 else float("inf")


def fit_time(times: np.ndarray, counts: np.ndarray) -> TimeFit:
    """Fit by least squares of relative errors, with factors of at least 0.

    Args:
        times: seconds (n,).
        counts: launches, multiply-adds and bytes (n, 3).
    """
    scaled = counts / times[:, None]
    sizes = np.abs(scaled).max(axis=0) + np.finfo(float).tiny  # scale the columns to the same magnitude
    found, _ = nnls(scaled / sizes, np.ones_like(times))
    launch, arithmetic, byte = (found / sizes).tolist()
    fit = TimeFit((launch, arithmetic, byte), 0.0)
    return TimeFit(fit.seconds, r_squared(times, fit.predict(counts)))
