"""Guards on every source: splits are disjoint, labels say nothing, seeds are portable; and the standard splits are the papers'."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.data import SOURCES, Source, load
from headstart.data.files.splits import standard
from headstart.data.sources import cifar
from headstart.errors import DataError
from headstart.evaluation import estimate_batch_norm, evaluate
from real import FILES, IMAGES, real

SIZES = {  # training, validation and test classes; examples per class
    "omniglot": (4 * 1028, 172, 423, 20),
    "omniglot-lake": (None, None, 659, 20),
    "cifar-fs": (64, 16, 20, 600),
    "fc100": (60, 20, 20, 600),
}
# Known: CIFAR-100 holds some pictures more than once, and the published splits tear some of these apart.
SHARED_IMAGES = {"cifar-fs": 15, "fc100": 3, "omniglot": 0, "omniglot-lake": 0, "glyphs": 0}


def every(splits: dict[str, list[str]]) -> list[str]:
    return [name for names in splits.values() for name in names]


def digests(source: Source) -> list[Counter[bytes]]:
    return [Counter(hashlib.md5(x.numpy().tobytes()).digest() for x in s.examples) for s in (source.train, source.validation, source.test)]


@pytest.mark.parametrize("name", IMAGES)
def test_splits_are_disjoint_in_classes_and_images(name: str) -> None:
    source = real(name)
    splits = (source.train, source.validation, source.test)
    names = [set(s.classes) for s in splits]
    assert len(set.union(*names)) == sum(map(len, names))
    if name in SIZES:
        *classes, each = SIZES[name]
        for split, count in zip(splits, classes, strict=True):
            assert count is None or len(split.classes) == count
            assert set(split.counts) == {each}
    a, b, c = (set(d) for d in digests(source))
    assert len(a & b) + len(a & c) + len(b & c) == SHARED_IMAGES[name], "images stand in two splits"


def test_the_divisions_of_omniglot_that_papers_use() -> None:
    """Of Finn et al., 2017: characters at random. Of Vinyals et al., 2016: turned characters are test classes too."""
    real("omniglot")
    mixed = load("omniglot", FILES["omniglot"], splits="random")
    assert [len(s.classes) for s in (mixed.train, mixed.validation, mixed.test)] == [4 * 1100, 100, 423]
    seen, tested = ({c.split("/")[1] for c in s.classes} for s in (mixed.train, mixed.test))
    assert len(seen) == len(tested) == 50, "every alphabet is on both sides"
    turned = load("omniglot", FILES["omniglot"], rotated_test=True)
    assert [len(s.classes) for s in (turned.train, turned.validation, turned.test)] == [4 * 1028, 4 * 172, 4 * 423]
    plain = real("omniglot").test
    first, quarter = plain.batch(torch.arange(20)), turned.test.batch(423 * 20 + torch.arange(20))
    assert torch.equal(torch.rot90(first, 1, (-2, -1)), quarter)
    with pytest.raises(DataError, match="vinyals, random, lake"):
        load("omniglot", FILES["omniglot"], splits="finn")


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_normalised(name: str) -> None:
    train = real(name).train
    rows = torch.arange(0, len(train), max(1, len(train) // 2000))
    batch = train.batch(rows)
    assert batch.mean((0, 2, 3)).abs().max() < 0.15
    assert (batch.std((0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.parametrize("name", IMAGES)
def test_before_adaptation_it_is_chance(name: str) -> None:
    """A model with a random head: whichever label it prefers, labels carry no information."""
    source = real(name)
    torch.manual_seed(0)
    own = hs.anil(hs.models.conv4(source.test.examples.shape[1], 5, source.test.examples.shape[2], filters=8), steps=0)
    estimate_batch_norm(own, source.train)
    with torch.no_grad():
        own.model.head.weight.mul_(5)
    result = evaluate(own, source.test, episodes=1000)
    assert 0 < result.ci95 < 0.01
    assert abs(result.mean - 0.2) < 2 * result.ci95


@pytest.mark.parametrize("name", IMAGES)
def test_the_same_seed_gives_the_same_episodes(name: str) -> None:
    source = real(name)
    one, two = (hs.data.Episodes(source.test, seed=3).batch(5) for _ in range(2))
    assert torch.equal(one.examples, two.examples)
    assert torch.equal(one.support_y, two.support_y)


def test_standard_splits() -> None:
    fs, fc, omniglot = standard("cifar-fs"), standard("fc100"), standard("omniglot")
    assert [len(v) for v in fs.values()] == [64, 16, 20]
    assert [len(v) for v in fc.values()] == [60, 20, 20]
    assert [len(v) for v in omniglot.values()] == [1028, 172, 423]
    for splits in (fs, fc, omniglot):
        everything = every(splits)
        assert len(everything) == len(set(everything))
    assert sorted(every(fs)) == sorted(every(fc))


def cifar_files(folder: Path, damage: str = "") -> Path:
    """CIFAR-100's layout with tiny content, as an archive."""
    names = sorted(every(standard("fc100")))
    inside = folder / "cifar-100-python"
    inside.mkdir(parents=True)
    for part, each in (("train", 500), ("test", 100)):
        labels = np.repeat(np.arange(100), each)
        data = np.repeat(labels.astype(np.uint8)[:, None], 3072, 1)
        content = {b"data": data, b"fine_labels": labels.tolist()}
        if damage == "labels":
            content[b"fine_labels"][0] = 5
        if damage == "keys":
            del content[b"fine_labels"]
        (inside / part).write_bytes(pickle.dumps(content, 2))
    (inside / "meta").write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, 2))
    (inside / "file.txt~").write_text("an editor's backup, as in the official archive")
    with tarfile.open(folder / cifar.ARCHIVE, "w:gz", compresslevel=1) as archive:
        archive.add(inside, "cifar-100-python")
    return folder / cifar.ARCHIVE


def test_cifar_from_archive_and_from_folder(tmp_path: Path) -> None:
    archive = cifar_files(tmp_path / "a")
    names = sorted(every(standard("fc100")))
    for path in (archive, archive.parent, archive.parent / "cifar-100-python"):
        source = load("fc100", path)
        first = source.test.examples[0]
        assert first.unique().tolist() == [names.index(source.test.classes[0])]
        assert first.shape == (3, 32, 32)


@pytest.mark.parametrize(("damage", "words"), [("labels", "600 each"), ("keys", "not CIFAR-100"), ("cut", "a.*cifar-100-python.tar.gz")])
def test_damaged_cifar_is_refused(damage: str, words: str, tmp_path: Path) -> None:
    archive = cifar_files(tmp_path / "a", damage)
    if damage == "cut":
        archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(DataError, match=words):
        load("cifar-fs", archive)


def test_paths_that_do_not_help(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fc100 needs a path"):
        load("fc100")
    with pytest.raises(DataError, match="nothing at"):
        load("fc100", tmp_path / "none")
    with pytest.raises(DataError, match="holds neither"):
        load("fc100", tmp_path)
    with pytest.raises(DataError, match=r"lacks images_background.zip"):
        load("omniglot", tmp_path)
    with pytest.raises(DataError, match="'cifar' is not known; use one of cifar-fs"):
        load("cifar")
    assert set(FILES) <= set(SOURCES)
