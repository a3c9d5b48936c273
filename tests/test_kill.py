"""A killed run resumes to the same weights: ten runs, killed at random moments (benchmarks/kill.py does any number)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


def test_ten_killed_runs_resume_to_the_same_weights() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "10", "--seed", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "10 of 10 killed runs resumed to the same weights" in done.stdout
