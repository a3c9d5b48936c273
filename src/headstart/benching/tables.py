"""The tables there are: a setting and who takes part, the first of whom counts as 1.00."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from headstart.benching.setting import Setting
from headstart.benching.turns import Entry, take_turns
from headstart.container import write_json
from headstart.errors import ConfigError

LIBRARIES = ("higher", "torchopt", "parallel-metalearn")


@dataclass(frozen=True)
class Table:
    """What one table compares.

    Args:
        says: in words.
        setting: the step.
        entries: (contestant, network) pairs; the first counts as 1.00.
    """

    says: str
    setting: Setting
    entries: tuple[tuple[str, str], ...]


OURS = (("headstart", "ours"), ("headstart", "usual"))
HALF = (("headstart, bf16", "ours"), ("supervised", "ours"), ("supervised, bf16", "ours"))
RIVALS = (("higher", "usual"), ("torchopt", "usual"), ("parallel-metalearn", "usual"), ("parallel-metalearn, sequential", "usual"))
ON_OURS = (("loop", "ours"), ("higher", "ours"), ("torchopt", "ours"))
LOOP = (("loop", "usual"),)
TABLES: dict[str, Table] = {
    "anil": Table("ANIL, 8 tasks", Setting(), (*LOOP, *OURS, *HALF, *RIVALS, *ON_OURS)),
    "anil-32": Table("ANIL, 32 tasks", Setting(tasks=32), (*LOOP, *OURS, *HALF)),
    "anil-84": Table("ANIL at 84 pixels, 4 tasks", Setting(tasks=4, size=84), (*LOOP, *OURS, *HALF)),
    "steps-20": Table("ANIL, 8 tasks, N = 20", Setting(steps=20), (*LOOP, *OURS[:1])),
    "steps-1": Table("ANIL, 8 tasks, N = 1", Setting(steps=1), (*LOOP, *OURS[:1])),
    "maml": Table("MAML, 4 tasks", Setting("maml", tasks=4, lr=0.01), (*LOOP, *OURS, *RIVALS, *ON_OURS)),
    "fomaml": Table("first-order MAML, 4 tasks", Setting("fomaml", tasks=4, lr=0.01), (*LOOP, *OURS, *RIVALS, *ON_OURS)),
    **{
        f"head-{n}": Table(
            f"a head alone, 32 tasks, D = 1600, N = {n}", Setting("head", tasks=32, size=1600, steps=n, lr=0.01), (*LOOP, *OURS[1:])
        )
        for n in (5, 20, 100)
    },
}


def chosen(names: Sequence[str]) -> dict[str, Table]:
    """The tables of these names; all for none.

    Raises:
        ConfigError: there is no such table.
    """
    unknown = [n for n in names if n not in TABLES]
    if unknown:
        raise ConfigError(f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    return {n: TABLES[n] for n in names} if names else TABLES


def bench(
    names: Sequence[str] = (),
    rounds: int = 9,
    threads: int = 0,
    device: str = "cpu",
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Times the tables of these names, and returns everything as JSON holds it.

    Args:
        names: of :data:`TABLES`; none for all.
        rounds: that count.
        threads: of each contestant; 0 for torch's own number.
        device: where everything is: cpu, or cuda.
        show: gets every table as it is done.

    Raises:
        ConfigError: there is no such table.
        BenchError: a contestant computes another meta-gradient.
    """
    own = machine(threads, device)
    found: dict[str, Any] = {"machine": own, "rounds": rounds, "tables": {}}
    for name, table in chosen(names).items():
        setting = replace(table.setting, device=device)
        entries = take_turns(setting, [Entry(*pair) for pair in table.entries], rounds, own["threads"])
        found["tables"][name] = {"says": table.says, "setting": asdict(setting), "entries": [_kept(e) for e in entries]}
        show(markdown(name, table, entries))
    return found


def _kept(entry: Entry) -> dict[str, Any]:
    return {**asdict(entry), "median": entry.median if entry.seconds else None}


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Machine, date and versions.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        torch.zeros((), device=device)
        gpu = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else ""
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device={device!r}: {str(error).splitlines()[0]}; use cpu, or cuda where there is one") from error
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor() or "unknown")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for library in ("headstart", *LIBRARIES):
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = ""
    date = datetime.date.today().isoformat()
    return {
        "cpu": cpu,
        "gpu": gpu,
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "date": date,
        "versions": versions,
    }


def said(own: dict[str, Any]) -> str:
    """:func:`machine` in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in own["versions"].items() if v)
    gpu = f", {own['gpu']}" if own["gpu"] else ""
    return f"{own['cpu']}, {own['threads']} threads{gpu}; {own['date']}; {versions}"


def markdown(name: str, table: Table, entries: list[Entry]) -> str:
    """A table: medians, their ratios to the first, memory, and how far meta-gradients are from each other."""
    rows = [f"### {table.says} (`{name}`)", "", "| | seconds | over the first | peak MiB | gradient differs by |", "|---|---|---|---|---|"]
    for entry in entries:
        if entry.unavailable:
            rows.append(f"| {entry.name} | – | – | – | {entry.unavailable} |")
            continue
        ratio = entry.median / entries[0].median
        differs = "" if entry.difference is None else f"{entry.difference:.0e}" if entry.difference else "0"
        rows.append(f"| {entry.name} | {entry.median:.4f} | {ratio:.2f} | {entry.peak:.0f} | {differs} |")
    return "\n".join(rows)


def save(found: dict[str, Any], path: str | Path) -> None:
    """Writes what :func:`bench` returned as JSON."""
    write_json(path, found)
