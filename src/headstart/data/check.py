"""Looks a source over: sizes, and examples that stand in more than one class or split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from headstart.data.source import Source, Split


@dataclass(frozen=True)
class Report:
    """What was found in a source; prints itself.

    Args:
        name: of the source.
        splits: for each split its classes, examples, and the sizes of its smallest and largest class.
        shape: of one example.
        across: pairs of splits that hold the same example, with how many they share. An accuracy on test classes is
            only as honest as this is empty.
        labels: examples that stand in more than one class of a split, which no model can tell apart.
    """

    name: str
    splits: dict[str, tuple[int, int, int, int]]
    shape: tuple[int, ...]
    across: dict[tuple[str, str], int]
    labels: dict[str, int]

    def __str__(self) -> str:
        lines = [f"{self.name}: examples of shape {'×'.join(map(str, self.shape))}"]
        for split, (classes, examples, low, high) in self.splits.items():
            sizes = f"{low} each" if low == high else f"{low} to {high} each"
            twice = f"; {self.labels[split]} examples in more than one class" if self.labels[split] else ""
            lines.append(f"  {split:<11} {classes:>6,} classes  {examples:>9,} examples, {sizes}{twice}")
        for (a, b), count in self.across.items():
            lines.append(f"  warning: {count} examples are in both {a} and {b}")
        if not self.across:
            lines.append("  classes and examples of the splits are disjoint")
        return "\n".join(lines)


def check(source: Source) -> Report:
    """Compares all examples of a source by their content."""
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    classes_of = {name: _classes_of(split) for name, split in splits.items()}
    names = list(splits)
    across = {
        (a, b): len(classes_of[a].keys() & classes_of[b].keys())
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if classes_of[a].keys() & classes_of[b].keys()
    }
    return Report(
        source.name,
        {name: (len(s.classes), len(s), min(s.counts), max(s.counts)) for name, s in splits.items()},
        tuple(source.train.shape),
        across,
        {name: sum(len(found) > 1 for found in classes.values()) for name, classes in classes_of.items()},
    )


def _classes_of(split: Split) -> dict[bytes, set[int]]:
    """The classes that each distinct example stands in."""
    found: dict[bytes, set[int]] = defaultdict(set)
    for example, label in zip(split.examples.numpy(), split.labels.tolist(), strict=True):
        found[hashlib.blake2b(example.tobytes(), digest_size=16).digest()].add(label)
    return found
