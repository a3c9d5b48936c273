"""What the checks found: rows of measured values against what bounds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from headstart.container import write_json

ROUNDING = 1e-6
"""By how much a measured value may exceed its bound: difference quotients of float64 gradients are no more exact."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        check: the check it belongs to.
        problem: what it was run on.
        setting: the inner loop it was run with.
        bound: what was bounded.
        cases: how many pairs, points, steps or gradients.
        tightness: the worst of measured divided by bound; at most 1, up to rounding.
        at_least: what the problem was built to reach.

    Example:
        >>> Row("lipschitz", "quadratic", "N=1", "ℓ_ww", 10, tightness=0.5, at_least=0.99).verdict
        'FAIL: the bound is nearly attained here: expected ≥ 0.99, got 0.5'
    """

    check: str
    problem: str
    setting: str
    bound: str
    cases: int
    tightness: float
    at_least: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the bound holds, and is as nearly attained as it should be."""
        return self.at_least <= self.tightness <= 1 + ROUNDING

    @property
    def verdict(self) -> str:
        """What to say of it."""
        if self.ok:
            return "pass"
        if self.tightness < self.at_least:
            return f"FAIL: the bound is nearly attained here: expected ≥ {self.at_least:.3g}, got {self.tightness:.3g}"
        return f"FAIL: the bound is exceeded, by a factor of {self.tightness:.4g}"


@dataclass(frozen=True)
class Table:
    """What :func:`headstart.verifying.checks.verify` found; prints itself as a table.

    Args:
        rows: one per check, problem and bound.
    """

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every row passes."""
        return all(row.ok for row in self.rows)

    @property
    def shown(self) -> list[Row]:
        """Of each check, problem and bound the tightest row that passes, and every row that fails."""
        tightest: dict[tuple[str, str, str], Row] = {}
        for row in self.rows:
            key = (row.check, row.problem, row.bound)
            if row.ok and (key not in tightest or row.tightness > tightest[key].tightness):
                tightest[key] = row
        kept = {id(row) for row in tightest.values()}
        return [row for row in self.rows if id(row) in kept or not row.ok]

    def __str__(self) -> str:
        names = ("check", "problem", "at its tightest", "bound")
        width = [
            max(len(x) for x in (name, *column)) for name, column in zip(names, zip(*map(_names, self.rows), strict=True), strict=True)
        ]
        pad = lambda cells: "  ".join(cell.ljust(w) for cell, w in zip(cells, width, strict=True))  # noqa: E731
        lines = [f"{pad(names)}  {'cases':>6}  {'worst/bound':>11}  {'expected':>8}"]
        for r in self.shown:
            least = f"≥ {r.at_least:.3f}" if r.at_least else ""
            lines.append(f"{pad(_names(r))}  {r.cases:>6,}  {r.tightness:>11.3g}  {least:>8}  {r.verdict}")
        failed = sum(not row.ok for row in self.rows)
        return "\n".join([*lines, f"{len(self.rows)} rows, {failed} FAILED" if failed else f"all {len(self.rows)} rows pass"])

    def save(self, path: str | Path) -> None:
        """Writes the rows as JSON."""
        rows = [{**asdict(row), "ok": row.ok} for row in self.rows]
        write_json(path, {"ok": self.ok, "rows": rows})


def _names(row: Row) -> tuple[str, ...]:
    return row.check, row.problem, row.setting, row.bound
