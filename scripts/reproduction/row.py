"""A row of a table, and a command that scores its models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a table: a model and a recipe, trained once per seed."""

    table: str
    row: str
    recipe: str
    command: str
    """Task and flags of ``mlx_rtx.train``."""
    paper: float | None = None
    """The paper's value of the row's first metric, as a fraction or in nats."""
    longer: tuple[int, ...] = ()
    """Further noise lengths, beyond that of training, at which the model is scored."""
    home: str = ""
    """Row whose runs this row shares, as ``table/row-recipe``; empty if it has its own."""

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.command.split()[0]

    @property
    def name(self) -> str:
        """Name of the row for ``--only``."""
        return f"{self.row}:{self.recipe}"

    def folder(self, seed: int) -> str:
        """Return the folder of a run, relative to ``results``."""
        return f"{self.home or f'{self.table}/{self.row}-{self.recipe}'}-{seed}"


@dataclass(frozen=True)
class Scoring:
    """One call of ``mlx_rtx.evaluate``: its flags, and {metric: name of the score in its report}."""

    flags: tuple[str, ...]
    metrics: dict[str, str]
