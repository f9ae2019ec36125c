"""A row of a table, and a call that scores its models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a table: a model and a recipe, trained once a seed."""

    table: str
    row: str
    recipe: str
    command: str
    """Task and flags of ``mlx_rtx.train``."""
    paper: float | None = None
    """What the paper reports for the row's first metric, as a share or in nats."""
    longer: tuple[int, ...] = ()
    """Copy tasks: noise tokens beyond training at which the model is scored as well."""
    home: str = ""
    """Row whose runs are this row's too, as ``table/row-recipe``, if it has none of its own."""

    @property
    def task(self) -> str:
        """The task that is trained."""
        return self.command.split()[0]

    @property
    def name(self) -> str:
        """How ``--only`` calls it."""
        return f"{self.row}:{self.recipe}"

    def folder(self, seed: int) -> str:
        """Where a run lies below ``results``."""
        return f"{self.home or f'{self.table}/{self.row}-{self.recipe}'}-{seed}"


@dataclass(frozen=True)
class Scoring:
    """One call of ``mlx_rtx.evaluate``: its flags, and the metrics by the name of the score that each one is."""

    flags: tuple[str, ...]
    metrics: dict[str, str]
