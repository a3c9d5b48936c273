"""A person's own examples into a source: whole classes for training, validation and test, and no example in two of them."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.files.mapped import at_once, let_go, stretches
from headstart.data.samplers.draws import Keys
from headstart.data.source import Source, Split
from headstart.errors import DataError

log = logging.getLogger("headstart")
SHARES = {"train": 0.64, "validation": 0.16, "test": 0.20}
SPELLINGS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
STREAM = 16  # of the permutation of classes; those of episodes are smaller
LEAST_CLASSES, LEAST_EXAMPLES = 2, 2  # of a split: one class leaves nothing to tell apart; of a class: one for support, one for query
USUAL_WAYS = 5


@dataclass(frozen=True, eq=False)
class Labelled:
    """Examples with their classes, not yet split.

    Args:
        source: what to call them in messages.
        examples: (n, …) examples, in any order.
        classes: n class names; None for examples that are left out.
        names: n names of examples, for messages.
        digests: n texts that are equal for identical examples; None to leave identical examples alone.
        kind: what an example is called.
        standardise: whether floats are standardised by the training classes: vectors by feature, pictures by channel.
    """

    source: str
    examples: NDArray[Any]
    classes: Sequence[str | None]
    names: Sequence[str]
    digests: Sequence[str] | None = None
    kind: str = "pictures"
    standardise: bool = True


def split_classes(
    classes: Iterable[str], seed: int = 0, into: Sequence[str] = tuple(SHARES), source: str = "the data"
) -> dict[str, list[str]]:
    """Class names in a random partition, by 64/16/20 %, that depends on the names and the seed alone.

    Each split gets at least five classes, the usual number of ways, or as many as there are for each if that is fewer.

    Args:
        classes: distinct names, in any order.
        seed: of the permutation.
        into: the splits wanted; shares stay in proportion.
        source: what to call the data in messages.

    Raises:
        DataError: there are not two classes for each split.

    Example:
        >>> split_classes("abcdefgh")
        {'train': ['a', 'b', 'd', 'h'], 'validation': ['c', 'e'], 'test': ['f', 'g']}
    """
    ordered = sorted(classes)
    least = min(USUAL_WAYS, len(ordered) // len(into))
    if least < LEAST_CLASSES:
        raise DataError(
            f"{source}: {len(ordered)} usable classes{': ' if ordered else ''}{some(ordered)}; for {' and '.join(into)} at least"
            f" {LEAST_CLASSES * len(into)} are needed, {LEAST_CLASSES} each, as a task tells classes apart; add classes"
        )
    order = Keys(seed, STREAM, 0).smallest((), len(ordered), len(ordered))
    total = sum(SHARES[part] for part in into)
    sizes = {part: max(least, round(len(ordered) * SHARES[part] / total)) for part in into if part != "train"}
    parts, start = {}, len(ordered) - sum(sizes.values())
    parts["train"] = sorted(ordered[i] for i in order[:start])
    for part, size in sizes.items():
        parts[part] = sorted(ordered[i] for i in order[start : start + size])
        start += size
    return parts


def assemble(data: Labelled, given: Mapping[str, str] | None = None, seed: int = 0) -> Source:
    """The source that labelled examples make; what has to be left out is named in warnings.

    Args:
        data: the examples.
        given: the split of each class — "train", "validation" or "test" — or None to choose. Where no class is given for
            validation, some of those for training are taken.
        seed: of the choice.

    Raises:
        DataError: a split is left with fewer than two classes.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(data.classes):
        if name is not None:
            rows[name].append(row)
    _drop_copies(data, rows)
    _drop_small(data, rows)
    if given is None:
        parts = split_classes(rows, seed, source=data.source)
    else:
        parts = {part: sorted(c for c in rows if given[c] == part) for part in SHARES}
        if "validation" not in given.values():
            parts |= split_classes(parts["train"], seed, ("train", "validation"), data.source)
    _drop_shared(data, rows, {c: part for part, members in parts.items() for c in members})
    _drop_small(data, rows)
    parts = {part: [c for c in parts[part] if c in rows] for part in SHARES}
    for part, members in parts.items():
        if len(members) < LEAST_CLASSES:
            raise DataError(
                f"{data.source}: {len(members)} usable classes for {part}{': ' if members else ''}{some(members)}; at least"
                f" {LEAST_CLASSES} are needed, as a task tells classes apart; add classes to {part}"
            )
    chosen = {part: [row for c in members for row in rows[c]] for part, members in parts.items()}
    pictures = data.examples.dtype == np.uint8
    mean, std = (statistics if pictures else scale)(data.examples, chosen["train"]) if pictures or data.standardise else (None, None)
    if data.examples.dtype.kind == "f" and not all(bool(np.isfinite(part).all()) for part in stretches(data.examples)):
        raise DataError(f"{data.source}: examples hold NaN or infinite values; clean the data first")
    array = torch.from_numpy(data.examples)  # shared by the splits, and a mapped file where it was one
    splits = [Split(array, parts[p], [len(rows[c]) for c in parts[p]], p, mean, std, torch.tensor(chosen[p]), finite=True) for p in SHARES]
    log.info(
        "%s: %d %s of %s in %d classes; held out for validation: %s; for test: %s",
        *(data.source, sum(map(len, rows.values())), data.kind, "×".join(map(str, data.examples.shape[1:])) or "one number", len(rows)),
        *(some(parts["validation"]), some(parts["test"])),
    )
    return Source(data.source, *splits)


def scale(examples: NDArray[Any], rows: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation over some rows of (n, features) vectors, each; or of each channel of (n, channels, …) examples.

    What does not vary in them gets the deviation 1. Examples that have an axis but no channels, (n, length, width), get one number each.

    Example:
        >>> scale(np.array([[0.0, 5.0], [2.0, 5.0], [9.0, 9.0]]), [0, 1])
        ((1.0, 5.0), (1.0, 1.0))
    """
    axes = (0, *range(2, examples.ndim)) if examples.ndim in (2, 4) else tuple(range(examples.ndim))
    count = len(rows) * int(np.prod([examples.shape[a] for a in axes[1:]]))
    each = at_once(8 * examples[:1].size)

    def parts() -> Iterator[NDArray[np.float64]]:
        for first in range(0, len(rows), each):
            yield examples[rows[first : first + each]].astype(np.float64)
            let_go(examples)

    mean = np.atleast_1d(sum(part.sum(axes, keepdims=True) for part in parts()) / count)
    square = sum(((part - mean) ** 2).sum(axes) for part in parts())
    mean, std = mean.reshape(-1), np.sqrt(np.atleast_1d(square / count))
    # What varies by rounding alone does not vary.
    std = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-30), std, 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def statistics(images: NDArray[np.uint8], rows: Sequence[int] | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (n, channels, height, width) images, or of some rows of them, in the 0–1 range.

    Example:
        >>> statistics(np.array([[[[0, 255]]]], np.uint8))
        ((0.5,), (0.5,))
    """
    values, counts = np.arange(256) / 255, np.zeros((images.shape[1], 256))
    every = range(len(images)) if rows is None else rows
    for start in range(0, len(every), 256):  # by counting, which is exact however many there are
        some_images = images[list(every[start : start + 256])]
        let_go(images)
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(some_images[:, channel].reshape(-1), minlength=256)
    weights = counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    variance = (weights * (values - mean[:, None]) ** 2).sum(1)
    std = np.sqrt(variance).clip(1 / 255)  # images of one colour are no reason to divide by zero
    return tuple(mean.tolist()), tuple(std.tolist())


def some(names: Iterable[str], limit: int = 10) -> str:
    """The first few of many names.

    Example:
        >>> some(["a", "b", "c"], limit=2)
        'a, b and 1 more'
    """
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def warn(source: str, what: str, names: Sequence[str], remedy: str) -> None:
    """Says what is wrong with how many examples, which (all of them at level DEBUG), and what to do; nothing if there are none."""
    if names:
        log.warning("%s: %s (%d): %s; %s", source, what, len(names), some(names), remedy)
        log.debug("%s: %s, all: %s", source, what, ", ".join(names))


def _drop_copies(data: Labelled, rows: dict[str, list[int]]) -> None:
    """Of identical examples of a class keeps one, or support and query would share it."""
    if data.digests is None:
        return
    left_out = []
    for name, members in rows.items():
        first = {data.digests[row]: row for row in reversed(members)}
        left_out += [f"{data.names[r]} = {data.names[first[data.digests[r]]]}" for r in members if first[data.digests[r]] != r]
        rows[name] = sorted(first.values())
    warn(data.source, f"{data.kind} left out that occur twice in their class", left_out, "delete the copies")


def _drop_small(data: Labelled, rows: dict[str, list[int]]) -> None:
    small = sorted(name for name, members in rows.items() if len(members) < LEAST_EXAMPLES)
    for name in small:
        del rows[name]
    warn(data.source, f"classes left out with fewer than {LEAST_EXAMPLES} usable {data.kind}", small, f"add {data.kind} or delete them")


def _drop_shared(data: Labelled, rows: dict[str, list[int]], place: Mapping[str, str]) -> None:
    """Names identical examples of two classes, and keeps them in one split: the first of training, validation and test."""
    if data.digests is None:
        return
    groups: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name, members in rows.items():
        for row in members:
            groups[data.digests[row]].append((list(SHARES).index(place[name]), row, name))
    twice = [sorted(group) for group in groups.values() if len(group) > 1]
    alike = [" = ".join(data.names[row] for _, row, _ in group) for group in twice]
    warn(data.source, f"identical {data.kind} in two classes, perhaps mislabelled", alike, "delete the wrong ones")
    left_out = []
    for group in twice:
        for part, row, name in group:
            if part > group[0][0]:
                rows[name].remove(row)
                left_out.append(f"{data.names[row]} of {place[name]}, which is in {list(SHARES)[group[0][0]]} too")
    warn(data.source, f"{data.kind} left out of the later of two splits", left_out, "delete the wrong ones")


def folded(source: Source, folds: int, fold: int, seed: int = 0) -> Source:
    """A source with its classes divided anew: one fold of them for test, the next for validation, the others for training.

    Over all folds every class is tested once; scales are those of the fold's own training classes.

    Args:
        source: whose own division is given up.
        folds: how many, at least 3.
        fold: which, from 1.
        seed: of the division.

    Raises:
        DataError: a fold would have fewer than two classes, or there is no such fold.

    Example:
        >>> own = [Split(torch.arange(4).float()[:, None] + i, [f"{i}a", f"{i}b"], [2, 2], p) for i, p in enumerate(SHARES)]
        >>> sorted(c for k in (1, 2, 3) for c in folded(Source("own", *own), 3, k).test.classes)
        ['0a', '0b', '1a', '1b', '2a', '2b']
    """
    splits = (source.train, source.validation, source.test)
    ordered = sorted(name for split in splits for name in split.classes)
    if not (folds >= 3 and 1 <= fold <= folds and len(ordered) // folds >= LEAST_CLASSES):
        raise DataError(
            f"{source.name}: folds={folds} and {len(ordered)} classes; give 3 to {len(ordered) // LEAST_CLASSES}, so that each of test,"
            f" validation and training has {LEAST_CLASSES} classes or more"
        )
    order = Keys(seed, STREAM, folds).smallest((), len(ordered), len(ordered))
    place = {ordered[int(c)]: at % folds + 1 for at, c in enumerate(order)}
    part = {fold: "test", fold % folds + 1: "validation"}
    labels = [split.classes[int(c)] for split in splits for c in split.labels]
    examples = np.concatenate([split.examples.numpy() for split in splits])
    names = [f"{label}, example {i}" for i, label in enumerate(labels)]
    own = Labelled(
        f"{source.name}, fold {fold} of {folds}",
        *(examples, labels, names, None, "examples"),
        standardise=source.train.mean is not None,
    )
    return assemble(own, {name: part.get(at, "train") for name, at in place.items()}, seed)
