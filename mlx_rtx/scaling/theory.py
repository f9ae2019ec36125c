"""The paper's scaling law (§3 and 4): from a fit of the loss to how many parameters an efficient model needs.

Letters: N parameters, D tokens trained on (each once), C operations of training, 6 N D; |S| unique sequences of one
length among D; L loss and Δ divergence in nats a token; E the text's entropy. A fit of the loss (Eq. 3) is

    Δ(N, D) = L - E = A / N^alpha + B / D^beta

Theorem 1 bounds what a learner loses to having seen D sequences only, by Ω(|S|/D) and O(√(|S|/D)). As N grows without
bound, B / D^beta is all that is left of Eq. 3; set against either bound it gives (Lemma 1)

    D^(1 - 2 beta)  ≲  |S|  ≲  D^(1 - beta)

and a model with a parameter for each unique sequence has D^γ of them, γ in [1 - 2 beta, 1 - beta].
"""

from typing import NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import require_numbers

OPERATIONS = 6  # of training, for each parameter and token


def gamma(beta: float) -> tuple[float, float]:
    """The exponents (1 - 2β, 1 - β) between which |S| and an efficient model's parameters grow with D (Lemma 1).

    Args:
        beta: exponent of the data in a fit of the loss, above 0 and below 1. From 1/2 on the lower bound says nothing.

    Example:
        >>> gamma(0.28)
        (0.44, 0.72)
    """
    require_numbers(beta=beta)
    require(0 < beta < 1, f"beta={beta}: must lie between 0 and 1, such as 0.28")
    return round(1 - 2 * beta, 12), round(1 - beta, 12)


def excess_bounds(unique: float, size: float) -> tuple[float, float]:
    """Theorem 1 up to constants: (|S|/D, √(|S|/D)), between which the loss over the best model's lies."""
    require(0 < unique <= size, f"unique={unique}: must be above 0 and at most size={size}")
    return unique / size, (unique / size) ** 0.5


def unique_bounds(beta: float, size: float) -> tuple[float, float]:
    """Lemma 1 up to constants: between what numbers of unique sequences among ``size``."""
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
        """Δ of N parameters trained on D tokens, in nats a token (Eq. 3)."""
        return self.A / N**self.alpha + self.B / D**self.beta

    def loss(self, N: float, D: float) -> float:
        """L = E + Δ, in nats a token."""
        return self.E + self.divergence(N, D)

    def exponents(self) -> tuple[float, float]:
        """(a, b): with C operations the least loss has N ∝ C^a and D ∝ C^b."""
        both = self.alpha + self.beta
        return self.beta / both, self.alpha / both

    def optimum(self, operations: float) -> tuple[float, float]:
        """(N, D) of least loss whose training takes ``operations`` = 6 N D.

        From dΔ/dN = 0 along N D = C/6: α A / N^α = β B / D^β.
        """
        require(operations > 0, f"operations={operations}: must be above 0")
        a, b = self.exponents()
        product = operations / OPERATIONS
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return ratio * product**a, product**b / ratio
