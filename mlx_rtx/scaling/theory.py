"""The paper's scaling law (§3 and 4): from a fit of the loss to the number of parameters that an efficient model needs.

Letters: N parameters; D training tokens, each seen once; C = 6 N D operations of training; |S| unique sequences of one
length among D; L loss and Δ divergence in nats per token; E entropy of the text. A fit of the loss (Eq. 3) is

    Δ(N, D) = L - E = A / N^alpha + B / D^beta

Theorem 1 bounds the excess loss of a learner that has seen only D sequences by Ω(|S|/D) and O(√(|S|/D)). As N → ∞, only
B / D^beta remains of Eq. 3; comparing it with both bounds gives (Lemma 1)

    D^(1 - 2 beta)  ≲  |S|  ≲  D^(1 - beta)

and a model with one parameter per unique sequence has D^γ parameters, γ in [1 - 2 beta, 1 - beta].
"""

from typing import NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_numbers

OPERATIONS = 6  # operations of training per parameter and token


def gamma(beta: float) -> tuple[float, float]:
    """Return the bounds (1 - 2β, 1 - β) of the exponent with which |S| and an efficient model grow with D (Lemma 1).

    Args:
        beta: exponent of the data in a fit of the loss, in (0, 1). The lower bound is trivial for β ≥ 1/2.

    Example:
        >>> gamma(0.28)
        (0.44, 0.72)
    """
    require_numbers(beta=beta)
    require(0 < beta < 1, f"beta={beta}: must lie between 0 and 1, such as 0.28")
    return round(1 - 2 * beta, 12), round(1 - beta, 12)


def excess_bounds(unique: float, size: float) -> tuple[float, float]:
    """Return the bounds (|S|/D, √(|S|/D)) of the excess loss over the best model, up to constants (Theorem 1)."""
    require(0 < unique <= size, f"unique={unique}: must be above 0 and at most size={size}")
    return unique / size, (unique / size) ** 0.5


def unique_bounds(beta: float, size: float) -> tuple[float, float]:
    """Return the bounds of the number of unique sequences among ``size`` = D, up to constants (Lemma 1)."""
    low, high = gamma(beta)
    return size**low, size**high


class Fit(NamedTuple):
    """Constants of Eq. 3 and the entropy E."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def divergence(self, N: float, D: float) -> float:
        """Return Δ of N parameters trained on D tokens, in nats per token (Eq. 3)."""
        return self.A / N**self.alpha + self.B / D**self.beta

    def loss(self, N: float, D: float) -> float:
        """Return L = E + Δ, in nats per token."""
        return self.E + self.divergence(N, D)

    def exponents(self) -> tuple[float, float]:
        """Return (a, b) such that the least loss with C operations has N ∝ C^a and D ∝ C^b."""
        both = self.alpha + self.beta
        return self.beta / both, self.alpha / both

    def optimum(self, operations: float) -> tuple[float, float]:
        """Return (N, D) of least loss with ``operations`` = 6 N D.

        From dΔ/dN = 0 along N D = C/6: α A / N^α = β B / D^β.
        """
        require(operations > 0, f"operations={operations}: must be above 0")
        a, b = self.exponents()
        product = operations / OPERATIONS
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return ratio * product**a, product**b / ratio
