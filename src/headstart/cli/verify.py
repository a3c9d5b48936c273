"""``headstart verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Verify:
    """Check the mathematics on problems with closed-form constants: exactness, every bound, descent, the ledger.

    Exits with 1 if anything is violated. Example: headstart verify
    """

    pairs: int = 10_000
    """random pairs of points per problem"""
    seed: int = 0
    """of all that is random"""
    out: Path | None = None
    """a JSON file for the rows of the table"""

    def __call__(self) -> int:
        """Checks, and prints the table."""
        from headstart.verifying.checks import verify

        found = verify(self.pairs, self.seed)
        print(found)
        if self.out is not None:
            found.save(self.out)
        return 0 if found.ok else 1
