from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fakes import source, split
from headstart.data import Episodes, Source, Split, load
from headstart.data.samplers.draws import Keys, draw
from headstart.errors import ConfigError, DataError


def rows_of(own: Split) -> Split:
    """The same classes with each example holding its own row, so that a draw can be read off the values."""
    return Split(torch.arange(len(own)).float()[:, None], own.classes, own.counts, own.name)


@pytest.mark.parametrize("kind", ["independent", "dense"])
def test_an_episode_is_what_it_claims(kind: Any) -> None:
    own = rows_of(split(9, "train", each=[8, 7, 12, 8, 9, 8, 8, 10, 8]))
    sampler = Episodes(own, ways=4, shots=2, queries=3, tasks=50, kind=kind, pool_classes=6 if kind == "dense" else None)
    tasks = sampler.batch(3)
    assert tasks.support_x.shape == (50, 8, 1)
    assert tasks.query_x.shape == (50, 12, 1)
    labels = own.labels
    if kind == "dense":
        assert tasks.pool_size == 6 * 7
        assert len(set(labels[tasks.examples[:, 0].long()].tolist())) == 6
    for t in range(50):
        rows = torch.cat([tasks.support_x[t, :, 0], tasks.query_x[t, :, 0]]).long()
        y = torch.cat([tasks.support_y[t], tasks.query_y[t]])
        assert len(set(rows.tolist())) == 20, "an example occurs twice in a task"
        assert torch.bincount(tasks.support_y[t]).tolist() == [2] * 4
        assert torch.bincount(tasks.query_y[t]).tolist() == [3] * 4
        pairs = set(zip(labels[rows].tolist(), y.tolist(), strict=True))
        assert len(pairs) == len({c for c, _ in pairs}) == 4, "a label means one class"


@pytest.mark.parametrize("kind", ["independent", "dense"])
def test_classes_labels_and_examples_are_uniform(kind: Any) -> None:
    """Each task of a dense batch is distributed as an independent one: classes, labels, examples and pairs of classes."""
    own = rows_of(split(6, "train"))
    options: dict[str, Any] = {"pool_classes": 4, "pool_examples": 5} if kind == "dense" else {}
    sampler = Episodes(own, ways=2, shots=1, queries=1, tasks=8, kind=kind, **options)
    counts = {"class": np.zeros((6, 2)), "example": np.zeros(48), "pair": np.zeros((6, 6))}
    draws = 3000
    for i in range(draws):
        tasks = sampler.batch(i)
        t = i % 8  # one task of each batch, so that the draws are independent
        rows, y = tasks.support_x[t, :, 0].long(), tasks.support_y[t]
        classes = own.labels[rows]
        counts["class"][classes, y] += 1
        counts["example"][rows] += 1
        counts["pair"][classes[y.argsort()][0], classes[y.argsort()][1]] += 1
    for name, found in counts.items():
        cells = found[~np.eye(6, dtype=bool)] if name == "pair" else found.reshape(-1)
        expected = cells.sum() / cells.size
        chi2 = ((cells - expected) ** 2 / expected).sum()
        assert chi2 < cells.size + 4 * (2 * cells.size) ** 0.5, name


def test_the_order_of_examples_says_nothing_about_their_labels() -> None:
    sampler = Episodes(split(6, "train"), ways=5, shots=1, queries=1, tasks=2000)
    y = sampler.batch(0).support_y
    for position in range(5):
        assert torch.bincount(y[:, position], minlength=5).float().sub(400).abs().max() < 80


def test_the_same_seed_gives_the_same_episodes_anywhere() -> None:
    """Known answers: they must hold on any machine and with any version of the libraries."""
    assert Keys(0, 0, 0)._bits.random_raw(2).tolist() == [213000021201967259, 4455796210202625458]
    drawn = draw(Keys(7, 2, 5), np.array([5, 6, 7, 8]), ways=2, shots=1, queries=2, tasks=2)
    assert drawn.support_index.tolist() == [[4, 23], [8, 25]]
    assert drawn.query_index.tolist() == [[19, 1, 0, 25], [7, 18, 23, 5]]
    one, two = (Episodes(split(9, "train"), seed=4).batch(11) for _ in range(2))
    assert torch.equal(one.support_x, two.support_x)
    other = [Episodes(split(9, "train"), seed=5).batch(11), Episodes(split(9, "train"), seed=4, stream="test").batch(11)]
    assert not any(torch.equal(one.support_x, o.support_x) for o in other)


def test_over_split_is_the_same_draw() -> None:
    own = split(9, "train")
    sampler = Episodes(own, tasks=3)
    one, two = sampler.batch(2), sampler.rows(2).over(own.batch(torch.arange(len(own))))
    assert torch.equal(one.support_x, two.support_x)
    assert torch.equal(one.query_y, two.query_y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ways": 7}, "ways=7, but train has 6 classes"),
        ({"shots": 5, "queries": 4}, r"need 9 examples per class, but class 'train 2' of train has 7"),
        ({"ways": 0}, "ways=0"),
        ({"shots": 0}, "shots=0"),
        ({"tasks": 0}, "tasks=0"),
        ({"kind": "loose"}, "kind='loose'"),
        ({"stream": "x"}, "stream='x'"),
        ({"kind": "dense", "pool_classes": 9}, "pool_classes=9"),
        ({"kind": "dense", "pool_examples": 2}, "pool_examples=2"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        Episodes(split(6, "train", each=[8, 8, 7, 8, 8, 8]), **options)
    with pytest.raises(ConfigError, match="seed=-1"):
        Episodes(split(6, "train"), seed=-1).batch(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.zeros(4, 1), ["a"], [2, 2]), "1 class names for 2 class sizes"),
        ((torch.zeros(4, 1), ["a", "b"], [2, 1]), "add up to 3, but there are 4"),
        ((torch.zeros(4, 1), ["a", "a"], [2, 2]), "'a' occurs twice"),
        ((torch.zeros(4, 1), ["a", "b"], [4, 0]), "'b' has no examples"),
        ((torch.zeros(4, 1) / 0, ["a", "b"], [2, 2]), "NaN"),
    ],
)
def test_damaged_splits_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Split(*arguments)


def test_sources_have_disjoint_splits() -> None:
    own = source()
    with pytest.raises(DataError, match="'test 0' is in both test and test"):
        Source("bad", own.train, own.test, own.test)
    with pytest.raises(DataError, match="data='omnigolt' is not known; use one of"):
        load("omnigolt")
    assert str(own).startswith("fake: 12 train classes (96 examples)")


def test_few_of_very_many_are_distinct_uniform_and_cheap() -> None:
    """Above 10,000 positions a draw makes some keys and not one for each; small classes keep the bits they had."""
    asked: list[int] = []
    keys = Keys(3, 0, 1)
    real = keys._bits

    class Counted:
        def random_raw(self, count: int) -> np.ndarray:
            asked.append(count)
            return real.random_raw(count)

    keys._bits = Counted()  # type: ignore[assignment]
    among = np.full((50, 4), 20_000)
    among[0] = 30
    found = keys.smallest((50, 4), among, 16)
    assert found.shape == (50, 4, 16)
    assert all(len(set(row)) == 16 for row in found.reshape(-1, 16).tolist())
    assert bool((found < among[..., None]).all())
    assert bool((found >= 0).all())
    assert sum(asked) < 50 * 4 * 100
    counts = np.bincount(found[1:].reshape(-1) // 2000, minlength=10)
    expected = counts.sum() / 10
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9  # the 99.9 % point of nine degrees of freedom
    assert Keys(3, 0, 1).smallest((50, 4), among, 16).tolist() == found.tolist()
