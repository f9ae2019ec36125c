"""Published fits of language models' loss with their sources, to show how much γ differs between them.

Hoffmann 1, 2 and 3 are the three approaches of that paper.
"""

from dataclasses import dataclass

from mlx_rtx.scaling.theory import Fit


@dataclass(frozen=True)
class Published:
    """A published estimate; losses are in nats per token.

    N, D and tokenizers differ between sources, so that only exponents can be compared.
    """

    name: str
    source: str
    corpus: str
    parameters: str
    """Which parameters N counts."""
    fit: Fit | None = None
    """Fit of Eq. 3; None if the source has none."""
    beta: float | None = None
    """Exponent of the data, if the source's law has another form."""
    allocation: tuple[float, float] | None = None
    """(a, b) of N ∝ C^a, D ∝ C^b as printed in the source."""
    errors: str = ""
    """Uncertainty as stated by the source."""

    @property
    def data_exponent(self) -> float | None:
        """Exponent β of the data, None if the source has none."""
        return self.fit.beta if self.fit else self.beta


PAPER = Fit(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)  # the fit from which the paper derives γ
HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556"
PUBLISHED = [
    Published(
        "Hoffmann 3, as printed: the paper's",
        f"{HOFFMANN}, Eq. 10",
        "MassiveText",
        "all",
        fit=PAPER,
        allocation=(0.46, 0.54),
        errors="a 0.454 … 0.455 (10 to 90 %), which does not contain its own 0.28/0.62",
    ),
    Published(
        "Hoffmann 3, unrounded",
        f"{HOFFMANN}, by Besiroglu et al.'s program (epoch-research/analyzing-chinchilla)",
        "MassiveText",
        "all",
        fit=Fit(1.69337, 406.401, 0.33917084, 410.7228, 0.2849083),
    ),
    Published(
        "Besiroglu, Hoffmann 3 refitted",
        "Besiroglu et al. 2024, arXiv 2404.10102, Table 1",
        "MassiveText, 240 points read from a figure",
        "all",
        fit=Fit(1.8172, 482.01, 0.3478, 2085.43, 0.3658),
        allocation=(0.513, 0.487),
        errors="standard errors: E 0.03, A 125, α 0.02, B 1293, β 0.02",
    ),
    Published(
        "Muennighoff, α = β imposed",
        "Muennighoff et al. 2023, arXiv 2305.16264, App. C4 Scaling Coefficients",
        "C4, 54 of Hoffmann's points",
        "all",
        fit=Fit(1.87, 521.0, 0.353, 1488.0, 0.353),
    ),
    Published(
        "Kaplan, data alone, stopped early",
        "Kaplan et al. 2020, arXiv 2001.08361, Eq. 1.2: L = (5.4e13/D)^0.095",
        "WebText2",
        "without embeddings",
        beta=0.095,
    ),
    Published(
        "Kaplan, both together",
        "Kaplan et al. 2020, arXiv 2001.08361, Eq. 1.5, Table 2: L = ((6.4e13/N)^(0.076/0.103) + 1.8e13/D)^0.103",
        "WebText2",
        "without embeddings",
        beta=0.103,
        allocation=(0.73, 0.27),
    ),
    Published(
        "Hoffmann 1, envelope of training curves",
        f"{HOFFMANN}, Table 2",
        "MassiveText",
        "all",
        allocation=(0.50, 0.50),
        errors="a 0.488 … 0.502 (10 to 90 %)",
    ),
    Published(
        "Hoffmann 2, equal operations",
        f"{HOFFMANN}, Table 2",
        "MassiveText",
        "all",
        allocation=(0.49, 0.51),
        errors="a 0.462 … 0.534 (10 to 90 %)",
    ),
    Published("Hoffmann 2, on C4", f"{HOFFMANN}, Table A2", "C4", "all", allocation=(0.50, 0.50)),
    Published("Hoffmann 2, on GitHub", f"{HOFFMANN}, Table A2", "GitHub", "all", allocation=(0.53, 0.47)),
]
