"""A killed run resumes to the same weights: ten runs, killed at random moments (benchmarks/kill.py does any number)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


def test_ten_killed_runs_resume_to_the_same_weights() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "10", "--seed", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "10 of 10 killed runs resumed to the same weights" in done.stdout


def test_killed_writers_leave_a_whole_file() -> None:
    """All that headstart writes beside a run; benchmarks/kill_writers.py does any number."""
    script = SCRIPT.with_name("kill_writers.py")
    done = subprocess.run([sys.executable, str(script), "4"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "28 of 28 killed writers left a whole file" in done.stdout


@pytest.mark.slow
def test_killed_ranks_end_with_the_weights_of_one_process() -> None:
    """One that torchrun starts again, and one that goes on with one rank, and then with two."""
    done = subprocess.run([sys.executable, str(SCRIPT), "2", "--ranks", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 of 2 runs of 2 ranks ended with the weights of one process" in done.stdout
