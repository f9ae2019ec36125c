"""Signs that training fails (from the paper's summary), each said once."""

from dataclasses import dataclass, field


@dataclass
class FailureSigns:
    """Watches validations and words what looks wrong.

    Args:
        chance: loss of a guess in nats.
        long_range: whether the task needs memory, so that forgetting is a bad sign.
        patience: validations in a row that a sign must last.
    """

    chance: float
    long_range: bool = True
    patience: int = 10
    lasted: dict[str, int] = field(default_factory=dict)
    """Validations in a row that each sign was seen at."""

    def observe(self, train_loss: float, loss: float, alphas: list[float]) -> list[str]:
        """The warnings that this validation makes due.

        Args:
            train_loss: mean training loss since the validation before, at the same noise.
            loss: validation loss.
            alphas: α of each layer, clamped.
        """
        signs = {
            "alpha pinned at 1: everything is kept; lower --lr, or freeze it with --no-train-alpha": (
                bool(alphas) and min(alphas) > 0.99
            ),
            "alpha pinned at 0 on a long-range task: a block adds nothing older than the block before it; "
            "if the loss stalls, freeze it with --no-train-alpha": self.long_range
            and bool(alphas)
            and max(alphas) < 0.01,
            f"loss not moving from {self.chance:.3f}, a guess: change --lr, or start with less noise": (
                loss > 0.97 * self.chance
            ),
            "validation is leaving training: overfitting, or dropout too low": loss > 2 * train_loss + 0.1,
        }
        due = []
        for text, shown in signs.items():
            self.lasted[text] = self.lasted.get(text, 0) + 1 if shown else 0
            if self.lasted[text] == self.patience:
                due.append(text)
        return due
