"""Names of folders for what a command leaves behind."""

from __future__ import annotations

from pathlib import Path

from headstart.data.catalogue import named
from headstart.training.config import RunConfig


def new_run(config: RunConfig) -> Path:
    """A new folder under runs/, named by what is trained."""
    source = named(config.data).partition(":")[0]
    name = f"{source}-{config.learner.adapt}-{config.train.ways}way-{config.train.shots}shot"
    return unused(Path("runs") / name.replace(":", "").replace("*", ""))


def unused(first: Path) -> Path:
    """The path, with a number behind it if there is something already."""
    path, count = first, 2
    while path.exists():
        path, count = first.with_name(f"{first.name}-{count}"), count + 1
    return path
