"""Report of a comparison with reference tensors: rows, tolerances and the table that is printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from torch import Tensor

# (absolute, relative) tolerance
EXACT, FEATURES, LOGITS = (0.0, 0.0), (2e-4, 1e-4), (1e-3, 1e-4)
PIXELS, SCORES, LOSS, GRADIENT = (0.02, 0.0), (2e-4, 0.0), (0.0, 1e-4), (1e-3, 0.0)


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the table: the worst difference of a stage, and whether it is tolerated."""

    stage: str
    worst: float
    tolerance: tuple[float, float]
    passed: bool


class CheckReport:
    """Collects rows; tensors that do not match in shape fail with an infinite difference."""

    def __init__(self) -> None:
        self.rows: list[ComparisonRow] = []

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def compare(self, stage: str, mine: Tensor, golden: Tensor, tolerance: tuple[float, float]) -> None:
        mine, golden = mine.detach().double().cpu(), golden.double().cpu()
        if mine.shape != golden.shape:
            self.rows.append(ComparisonRow(stage, float("inf"), tolerance, passed=False))
            return
        difference = (mine - golden).abs()
        allowed = tolerance[0] + tolerance[1] * golden.abs()
        worst = difference.max().item() if difference.numel() else 0.0
        self.rows.append(ComparisonRow(stage, worst, tolerance, bool((difference <= allowed).all())))

    def equal(self, stage: str, mine: object, golden: object) -> None:
        """For what has no distance: texts, ids, tables."""
        self.rows.append(ComparisonRow(stage, 0.0 if mine == golden else float("inf"), EXACT, mine == golden))


def render(report: CheckReport) -> Table:
    """The table that the command prints."""
    table = Table("stage", "worst difference", "tolerance", "")
    for row in report.rows:
        absolute, relative = row.tolerance
        allowed = "exact" if row.tolerance == EXACT else " + ".join(_terms(absolute, relative))
        table.add_row(row.stage, f"{row.worst:.2e}", allowed, "ok" if row.passed else "[red]beyond[/red]")
    return table


def _terms(absolute: float, relative: float) -> Iterator[str]:
    if absolute:
        yield f"{absolute:g}"
    if relative:
        yield f"{relative:g} |x|"
