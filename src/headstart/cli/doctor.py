"""``headstart doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Doctor:
    """Say what this installation and this machine are like, what of it slows training down, and what to do about it.

    Example: headstart doctor
    """

    out: Path = Path("runs")
    """where run folders are, or will be"""

    def __call__(self) -> int:
        """Looks, and prints a line for each finding; what is marked with ! has an advice below it."""
        from headstart.doctor import examine

        found = examine(self.out)
        print("\n".join(map(str, found)))
        count = sum(bool(finding.advice) for finding in found)
        print(
            f"\n{count} of these {'slows' if count == 1 else 'slow'} you down; what to do stands below each"
            if count
            else "\nnothing slows you down"
        )
        return 0
