"""The glyphs: what is drawn, which characters are classes, the fixed split, and the cache."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from headstart.data.source import Source
from headstart.data.sources import glyphs
from headstart.errors import DataError

FEW = list(range(ord("A"), ord("Z") + 1)) + list(range(ord("a"), ord("z") + 1))


class Full(NamedTuple):
    source: Source
    codes: np.ndarray  # of all characters drawn
    clean: np.ndarray
    cache: Path


@pytest.fixture(scope="session")
def full(glyph_cache: Path) -> Full:
    """The whole source, drawn once for all tests."""
    cache, drawn = glyph_cache, {}
    shutil.rmtree(cache / f"glyphs-{glyphs.RECIPE}", ignore_errors=True)
    render = glyphs.render

    def recorded(codes: Any) -> Any:
        drawn["codes"], (drawn["clean"], images) = np.array(codes), render(codes)
        return drawn["clean"], images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "render", recorded)
        source = glyphs.load(cache)
    return Full(source, drawn["codes"], drawn["clean"], cache)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the source 52 letters, and counts how often it is drawn."""
    drawn: list[int] = []
    render = glyphs.render
    monkeypatch.setattr(glyphs, "code_points", lambda: FEW)
    monkeypatch.setattr(glyphs, "render", lambda codes: drawn.append(len(codes)) or render(codes))
    return drawn


def splits(source: Source) -> list[Any]:
    return [source.train, source.validation, source.test]


def test_shapes_names_and_values(full: Full) -> None:
    for split in splits(full.source):
        assert split.examples.dtype == torch.uint8
        assert split.examples.shape == (12 * len(split.classes), 1, 28, 28)
        assert set(split.counts) == {12}
        assert all(re.fullmatch(r"U\+[0-9A-F]{4,6}( .+)?", name) for name in split.classes)
        assert (split.examples.flatten(1).amax(1) > 50).all()  # ink in every image
    assert "U+0041 LATIN CAPITAL LETTER A" in {name for split in splits(full.source) for name in split.classes}


def test_sizes_of_the_fixed_split(full: Full) -> None:
    sizes = np.array([len(split.classes) for split in splits(full.source)])
    assert 2150 < sizes.sum() < 2260
    assert np.abs(sizes / sizes.sum() - [0.64, 0.16, 0.20]).max() < 0.02
    # The split is part of the data: these may never change.
    assert [glyphs._split(ord(c)) for c in "ABCDEF"] == ["train", "train", "train", "validation", "train", "train"]
    assert glyphs._split(np.int64(70)) == glyphs._split(70)


def test_no_class_and_no_image_is_shared(full: Full) -> None:
    names = [name for split in splits(full.source) for name in split.classes]
    assert len(set(names)) == len(names)
    stacks = [stack.numpy().tobytes() for split in splits(full.source) for stack in split.examples.unflatten(0, (-1, 12))]
    assert len(set(stacks)) == len(stacks) == len(names)


def test_every_class_looks_different(full: Full) -> None:
    chosen = glyphs.distinct(full.clean)
    names = {name.split()[0] for split in splits(full.source) for name in split.classes}
    assert {f"U+{code:04X}" for code in full.codes[chosen]} == names
    assert len({stack.tobytes() for stack in full.clean[chosen]}) == len(names)


def test_characters_of_one_shape_are_one_class() -> None:
    a, greek, cyrillic, space = 0x41, 0x391, 0x410, 0x20
    clean, _ = glyphs.render([space, a, ord("B"), greek, cyrillic, ord("a")])
    assert glyphs.distinct(clean).tolist() == [1, 2, 5]


def test_marks_and_punctuation_differ_by_their_height() -> None:
    assert len(glyphs.distinct(glyphs.render([ord(c) for c in "',.·-_–"])[0])) == 7


def test_drawing_is_reproducible_and_independent_of_order() -> None:
    first, again = glyphs.render(FEW[:5]), glyphs.render(FEW[:5][::-1])
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other[::-1])


def test_jitter_is_slight_and_fixed() -> None:
    drawn = np.array([glyphs._jitter(code, face) for code in range(0x41, 0x241) for face in glyphs.FACES])
    assert -1 <= drawn.min() < -0.99
    assert 0.99 < drawn.max() <= 1
    assert np.abs(drawn.mean(0)).max() < 0.05
    assert glyphs._jitter(0x41, "DejaVuSans") == pytest.approx([-0.499987, -0.519736, 0.457843, 0.422888], abs=1e-6)


def test_ink_is_neither_cut_off_nor_lost(full: Full) -> None:
    ink = full.clean[glyphs.distinct(full.clean)]
    margin = (glyphs.SIZE - glyphs.INK) // 2 - 1
    inside = ink[..., margin:-margin, margin:-margin].sum((2, 3), dtype=int)
    assert (inside == ink.sum((2, 3), dtype=int)).all()
    # Turning and shifting keep the ink, and scaling changes it as the square: cut-off characters would have less.
    codes = [ord(c) for c in "ÅgWЖ‱⇒█"]
    clean, images = glyphs.render(codes)
    scale = np.array([[1 + glyphs.GROW * glyphs._jitter(code, face)[3] for face in glyphs.FACES] for code in codes])
    ratio = images.sum((2, 3), dtype=float) / clean.sum((2, 3), dtype=float)
    assert np.abs(ratio / scale**2 - 1).max() < 0.06


def test_statistics_fit_the_training_images(full: Full) -> None:
    values = full.source.train.examples.to(torch.float32) / 255
    assert values.mean().item() == pytest.approx(glyphs.MEAN, abs=0.003)
    assert values.std().item() == pytest.approx(glyphs.STD, abs=0.003)
    assert tuple(full.source.test.mean) == (glyphs.MEAN,)


def test_second_load_reads_the_cache(full: Full, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "_font_files", lambda: pytest.fail("drawn again"))
    monkeypatch.setenv("HEADSTART_CACHE", str(full.cache))
    again = glyphs.load()
    for one, other in zip(splits(full.source), splits(again), strict=True):
        assert torch.equal(one.examples, other.examples)
        assert one.classes == other.classes
    entry = full.cache / f"glyphs-{glyphs.RECIPE}"
    assert {file.name for file in entry.iterdir()} == {"codes.npy", "images.npy", "manifest.json"}


def test_other_recipe_is_drawn_again(few: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs.load(tmp_path)
    monkeypatch.setattr(glyphs, "RECIPE", glyphs.RECIPE + 1)
    glyphs.load(tmp_path)
    assert len(few) == 2


def test_a_missing_font_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import matplotlib

    with monkeypatch.context() as patch:
        patch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
        with pytest.raises(DataError, match=r"DejaVuSans\.ttf is missing; reinstall matplotlib"):
            glyphs.load(tmp_path)
