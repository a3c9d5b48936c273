"""The class splits that papers use."""

from __future__ import annotations

import json
from importlib.resources import files

SPLITS = ("train", "validation", "test")


def standard(name: str) -> dict[str, list[str]]:
    """The class names of the training, validation and test split of a data set."""
    found = json.loads(files(__name__).joinpath(f"{name}.json").read_text())
    return {split: found[split] for split in SPLITS}
