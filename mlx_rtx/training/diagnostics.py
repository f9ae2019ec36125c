"""Warnings about signs of failing training (from the paper's summary)."""

from dataclasses import dataclass, field


@dataclass
class FailureSigns:
    """Watches validations for signs of failure.

    Args:
        chance: loss of random guessing, in nats.
        long_range: whether the task needs long memory, so that α near 0 is a bad sign.
        patience: number of consecutive validations at which a sign must be seen before its warning.
    """

    chance: float
    long_range: bool = True
    patience: int = 10
    lasted: dict[str, int] = field(default_factory=dict)
    """Number of consecutive validations at which each sign was seen."""

    def observe(self, train_loss: float, loss: float, alphas: list[float]) -> list[str]:
        """Return the warnings that are due after this validation; each is given once while its sign lasts.

        Args:
            train_loss: mean training loss since the previous validation, at the same noise.
            loss: validation loss.
            alphas: α of each layer, clamped.
        """
        signs = {
            "alpha pinned at 1: history is added with full weight; lower --lr, or freeze it with --no-train-alpha": (
                bool(alphas) and min(alphas) > 0.99
            ),
            "alpha pinned at 0 on a long-range task: older history reaches a block only through the state of the block "
            "before it; if the loss stalls, freeze alpha with --no-train-alpha": self.long_range
            and bool(alphas)
            and max(alphas) < 0.01,
            f"loss stays at {self.chance:.3f}, that of guessing: change --lr, or start with less noise": (
                loss > 0.97 * self.chance
            ),
            "validation loss far above training loss: overfitting, or dropout too low": loss > 2 * train_loss + 0.1,
        }
        due = []
        for text, shown in signs.items():
            self.lasted[text] = self.lasted.get(text, 0) + 1 if shown else 0
            if self.lasted[text] == self.patience:
                due.append(text)
        return due
