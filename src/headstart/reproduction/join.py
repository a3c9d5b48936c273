"""``python -m headstart.reproduction.join FOLDER``: joins the work of a folder, beside others or alone."""

from __future__ import annotations

import sys
from pathlib import Path

from headstart.reproduction.plan import Work, take_part


def main(out: Path) -> int:
    """Works until nothing is left; 130 where it was interrupted."""
    return 0 if take_part(Work.load(out), lambda line: print(line, file=sys.stderr, flush=True)) else 130


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
