"""Takes time: contestants in processes of their own take turns, one step each, round after round.

In one process a setting of one would be a setting of all: the allocator's, threads', or what is imported.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

from safetensors.torch import load_file

from headstart.benching.setting import Setting
from headstart.errors import HeadstartError

TOLERANCE = {"bf16": 0.2}
"""Of the relative difference of meta-gradients, for those that round."""


class BenchError(HeadstartError):
    """A contestant ended, or computes something else."""


@dataclass
class Entry:
    """One row: who, on which network, and what came of it.

    Args:
        contestant, network: who, and on which of the two networks.
        seconds: of each round.
        peak: MiB of memory at most.
        difference: of the meta-gradient from the loop's, in evaluation mode, relative; None where there is none to compare.
        unavailable: why it took no part, or "".
    """

    contestant: str
    network: str
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0
    difference: float | None = None
    unavailable: str = ""

    @property
    def name(self) -> str:
        """Who on what."""
        return f"{self.contestant}, {self.network} network"

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)


class _Turn:
    """A contestant's process."""

    def __init__(self, entry: Entry, setting: Setting, threads: int, gradient: Path | None) -> None:
        self.entry = entry
        asked = {
            "contestant": entry.contestant,
            "network": entry.network,
            "threads": threads,
            "setting": asdict(setting),
            "gradient": None if gradient is None else str(gradient),
        }
        command = [sys.executable, "-m", "headstart.benching.worker", json.dumps(asked)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.tell, self.hear = cast("tuple[IO[str], IO[str]]", (self.process.stdin, self.process.stdout))

    def answer(self) -> dict[str, Any]:
        """The next line of JSON.

        Raises:
            BenchError: the process has ended.
        """
        line = self.hear.readline()
        if not line:
            raise BenchError(f"{self.entry.name} ended with exit code {self.process.wait()}; run it alone to see why")
        found: dict[str, Any] = json.loads(line)
        return found

    def step(self) -> dict[str, Any]:
        """Takes a step."""
        self.tell.write("\n")
        self.tell.flush()
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        self.tell.close()
        self.hear.close()


def take_turns(setting: Setting, entries: list[Entry], rounds: int, threads: int, warm_up: int = 2) -> list[Entry]:
    """Times all entries in turns, after their meta-gradients were found to be one.

    Args:
        setting: what is timed.
        entries: who takes part; filled in.
        rounds: steps of each that count.
        threads: of each process; only one works at a time.
        warm_up: rounds before that do not count.

    Raises:
        BenchError: somebody's meta-gradient is another one, a process ended, or headstart or the loop could not take part.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        turns, files = [], {}
        for i, entry in enumerate(entries):
            files[entry.name] = folder / f"{i}.safetensors"
            turn = stack.enter_context(_Turn(entry, setting, threads, files[entry.name]))
            ready = turn.answer()  # one after the other: preparing is work too
            entry.unavailable = ready.get("unavailable", "")
            if not entry.unavailable:
                turns.append(turn)
            elif entry.contestant.startswith(("loop", "headstart")):  # only another library may be missing
                raise BenchError(f"{entry.name} cannot take part: {entry.unavailable}")
        _compare([turn.entry for turn in turns], files)
        for i in range(warm_up + rounds):
            for turn in turns:
                found = turn.step()
                turn.entry.peak = found["peak"]
                if i >= warm_up:
                    turn.entry.seconds.append(found["seconds"])
    return entries


def _compare(entries: list[Entry], files: dict[str, Path]) -> None:
    """Meta-gradients against the loop's."""
    compared = [e for e in entries if files[e.name].exists()]
    if not compared:
        return
    base = load_file(files[compared[0].name])
    scale = sum(float(g.square().sum()) for g in base.values()) ** 0.5
    for entry in compared:
        own = load_file(files[entry.name])
        if set(own) != set(base):
            raise BenchError(f"{entry.name} has gradients of other parameters than {compared[0].name}: {sorted(set(own) ^ set(base))}")
        entry.difference = sum(float((own[n] - g).square().sum()) for n, g in base.items()) ** 0.5 / scale
        allowed = next((v for k, v in TOLERANCE.items() if k in entry.contestant), 1e-2)
        if not entry.difference <= allowed:
            raise BenchError(f"{entry.name} computes another meta-gradient than {compared[0].name}: they differ by {entry.difference:.2g}")
