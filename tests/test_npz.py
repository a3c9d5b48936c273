"""Arrays in one archive: layouts of pictures, labels, given splits, and what is wrong with a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart import data
from headstart.data import Episodes
from headstart.data.source import Source
from headstart.data.sources.arrays import load
from headstart.data.sources.splitting import split_classes
from headstart.errors import DataError

Y = np.arange(24) % 6  # four examples of each of six classes
GIVEN = {0: "train", 1: "train", 2: "val", 3: "validation", 4: "test", 5: "test"}


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, *shape), np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def saved(file: Path, **arrays: Any) -> Source:
    np.savez(file, **arrays)
    return load(file)


def members(source: Source) -> list[str]:
    return ["".join(split.classes) for split in (source.train, source.validation, source.test)]


def warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((9, 10), None, None),
        ((9, 10, 3), None, (2, 0, 1)),
        ((3, 9, 10), None, (0, 1, 2)),
        ((9, 10, 1), None, (2, 0, 1)),
        ((4, 9, 10), None, (0, 1, 2)),
        ((3, 9, 3), "HWC", (2, 0, 1)),
        ((3, 9, 3), "CHW", (0, 1, 2)),
        ((9, 10, 7), "HWC", (2, 0, 1)),
    ],
)
def test_layouts_of_pictures(shape: tuple[int, ...], layout: str | None, axes: tuple[int, ...] | None, file: Path) -> None:
    x = pictures(*shape)
    source = saved(file, x=x, y=Y, **({"layout": layout} if layout else {}))
    for split in (source.train, source.validation, source.test):
        for c, name in enumerate(split.classes):
            for i in range(4):
                original = x[np.equal(Y, int(name))][i]
                expected = original[None] if axes is None else original.transpose(axes)
                assert np.array_equal(split.examples[4 * c + i].numpy(), expected)
    values = source.train.examples.double() / 255
    assert source.test.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert source.test.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert torch.isfinite(Episodes(source.train, ways=2, queries=1).batch(0).support_x).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_standardised_by_the_training_classes(kind: Any, file: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 5)) * [1e-2, 1, 1e3, 1, 1] + [0, 5, 0, 0, 7]
    x[:, 3] = 4.0  # does not vary
    x = x.astype(kind)
    source = saved(file, x=x, y=Y)
    train = source.train.batch(torch.arange(len(source.train)))
    tolerance = 2e-2 if kind == np.float16 else 1e-4
    assert train.mean(0).abs().max() < tolerance
    assert torch.allclose(train.std(0, unbiased=False)[[0, 1, 2, 4]], torch.ones(4), atol=tolerance)
    assert bool((train[:, 3] == 0).all())
    rows = [np.flatnonzero(np.equal(Y, int(c))) for c in source.train.classes]
    own = x[np.concatenate(rows)].astype(np.float64)
    mean, std = own.mean(0), np.where(own.std(0) > 0, own.std(0), 1)
    test = source.test.batch(torch.arange(4))
    first = (x[np.equal(Y, int(source.test.classes[0]))].astype(np.float64) - mean) / std
    assert torch.allclose(test.double(), torch.from_numpy(first), rtol=1e-3, atol=1e-4), "the test is scaled by training classes alone"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_can_be_taken_as_they_are(kind: Any, file: Path) -> None:
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(kind)
    np.savez(file, x=x, y=Y)
    train = data.load("npz", file, standardise=False).train
    assert train.examples.dtype == torch.float32
    first = x[np.equal(Y, int(train.classes[0]))].astype(np.float32)
    assert torch.equal(train.batch(torch.arange(4)), torch.from_numpy(first))


@pytest.mark.parametrize("labels", [Y, Y.astype(np.uint8), Y.astype(str), Y.astype("S1")])
def test_labels_are_numbers_or_text(labels: np.ndarray, file: Path) -> None:
    assert members(saved(file, x=pictures(9, 9), y=labels)) == ["".join(part) for part in split_classes("012345").values()]


def test_split_of_each_example(file: Path) -> None:
    split = np.array([GIVEN[int(y)] for y in Y])
    assert members(saved(file, x=pictures(9, 9), y=Y, split=split)) == ["01", "23", "45"]


def test_lists_of_classes(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = {"train_classes": [3, 4], "validation_classes": [0, 1], "test_classes": [2, 5]}
    assert members(saved(file, x=pictures(9, 9), y=Y, **lists)) == ["34", "01", "25"]
    assert warnings(caplog) == ""
    y = np.where(np.arange(24) < 3, 77, Y)
    assert members(saved(file, x=pictures(9, 9), y=y, **lists)) == ["34", "01", "25"]
    assert "classes left out that no split lists (1): 77; add" in warnings(caplog)


def test_validation_comes_from_training_where_there_is_none(file: Path) -> None:
    train, validation, test = members(saved(file, x=pictures(9, 9), y=Y, train_classes=[0, 1, 2, 3], test_classes=[4, 5]))
    assert (len(train), len(validation), test) == (2, 2, "45")
    assert sorted(train + validation) == list("0123")


def test_identical_pictures_are_in_one_split(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = pictures(9, 9)
    x[5] = x[0]  # of class 5, in test; and class 0, in training
    source = saved(file, x=x, y=Y, split=np.array([GIVEN[int(y)] for y in Y]))
    assert source.test.counts == [4, 3]
    assert "perhaps mislabelled (1): x[0] = x[5]; delete" in warnings(caplog)
    assert "x[5] of test, which is in train too" in warnings(caplog)
    features = np.zeros((24, 2), np.float32)  # numbers may be alike
    assert len(saved(file, x=features, y=Y).train) == 8


def test_small_classes_and_unused_arrays_are_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    y = Y.copy()
    y[0] = 9
    saved(file, x=pictures(9, 9), y=y, splits=np.zeros(24))
    assert "classes left out with fewer than 2 usable pictures (1): 9; add" in warnings(caplog)
    assert "arrays that are not used (1): splits; rename them" in warnings(caplog)


X = pictures(9, 9)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X, "y": Y}, r"'x' is missing; there are images, y; name examples x and labels y"),
        ({"x": X}, r"'y' is missing; there are x;"),
        ({"x": np.array([{}] * 24), "y": Y}, r"holds Python objects, which could run code"),
        ({"x": X, "y": Y.astype(object)}, r"holds Python objects"),
        ({"x": np.where(np.arange(48).reshape(24, 2) == 3, np.nan, 0), "y": Y}, r"1 examples hold NaN, infinite .*: x\[1\]; clean"),
        ({"x": np.full((24, 2), 1e300), "y": Y}, r"24 examples hold NaN, infinite or too large values: x\[0\], .* and 14 more"),
        ({"x": X[:20], "y": Y}, r"x has shape \(20, 9, 9\), but y holds 24 labels"),
        ({"x": np.uint8(1), "y": Y}, r"x has shape \(\), but y holds 24"),
        ({"x": X, "y": Y[:, None]}, r"y has shape \(24, 1\) and type int64; it must be \(n,\) whole numbers or text"),
        ({"x": X, "y": Y + 0.5}, r"y has shape \(24,\) and type float64"),
        ({"x": X, "y": Y % 2}, r"2 usable classes: 0, 1; for train and validation and test at least 6 are needed"),
        ({"x": X[:0], "y": Y[:0]}, r"0 usable classes; for train"),
        ({"x": X.astype(np.int64), "y": Y}, r"x has type int64; save pictures as uint8"),
        ({"x": pictures(5), "y": Y}, r"x has shape \(24, 5\) and type uint8, so it should be pictures"),
        ({"x": pictures(3, 9, 3), "y": Y}, r'the second and the last axis both could be channels \(1, 3 or 4\); add layout="HWC" or'),
        ({"x": pictures(7, 9, 8), "y": Y}, r"no axis could be channels"),
        ({"x": X, "y": Y, "layout": "NHWC"}, r"layout='NHWC'; it must be"),
        ({"x": X, "y": Y, "split": np.array(["train"] * 3)}, r"split holds 3 names for 24 examples"),
        ({"x": X, "y": Y, "split": np.array(["trian"] * 24)}, r"split holds 'trian'; use 'train'"),
        ({"x": X, "y": Y, "split": np.array(["train"] * 12 + ["test"] * 12)}, r"class '0' is in both train and test; the splits must"),
        ({"x": X, "y": Y, "split": np.array(["train"] * 24)}, r"no class is given for test; give some"),
        ({"x": X, "y": Y, "split": np.array(["train"] * 24), "test_classes": [1]}, r"both split and test_classes; keep one"),
        ({"x": X, "y": Y, "train_classes": [0, 1], "test_classes": [4, 8]}, r"listed for a split \(1\): 8; correct the lists"),
        ({"x": X, "y": Y, "train_classes": [0, 1], "test_classes": [1, 2]}, r"class '1' is in both train and test"),
        ({"x": X, "y": Y, "train_classes": [0, 1, 2, 3], "test_classes": [4]}, r"1 usable classes for test: 4; at least 2"),
    ],
)
def test_what_is_wrong_is_said(arrays: dict[str, Any], message: str, file: Path) -> None:
    with pytest.raises(DataError, match=message) as error:
        saved(file, **arrays)
    assert str(error.value).startswith(f"npz:{file}: ")


@pytest.mark.parametrize("damage", ["text", "single", "truncated", "flipped"])
def test_damaged_files(damage: str, file: Path) -> None:
    saved(file, x=X, y=Y)
    content = bytearray(file.read_bytes())
    if damage == "single":
        with file.open("wb") as single:
            np.save(single, X)
    else:
        flipped = content.copy()
        flipped[400] ^= 0xFF
        file.write_bytes({"text": b"no archive", "truncated": content[:1000], "flipped": flipped}[damage])
    with pytest.raises(DataError, match="damaged"):
        load(file)


def test_objects_are_never_unpickled(file: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("unpickled",)

    with pytest.raises(DataError, match="which could run code"):
        saved(file, x=np.array([Trap()] * 24, dtype=object), y=Y)


@pytest.mark.parametrize(("shape", "layout"), [((9, 10, 3), None), ((3, 9, 10), None), ((3, 9, 3), "HWC"), ((9, 10, 1), None)])
def test_pictures_as_floats_are_recognised_as_bytes_are(shape: tuple[int, ...], layout: str | None, file: Path) -> None:
    x = np.random.default_rng(0).random((24, *shape)).astype(np.float32)
    source = saved(file, x=x, y=Y, **({"layout": layout} if layout else {}))
    first = shape[0] == 3 and layout != "HWC"
    assert source.train.shape == (shape if first else (shape[2], shape[0], shape[1]))
    wanted = x[int(source.train.classes[0]) == Y]
    np.testing.assert_array_equal(source.train.examples[:4].numpy(), wanted if first else np.moveaxis(wanted, 3, 1))


def test_floats_that_could_be_either_are_refused_and_others_left_alone(file: Path) -> None:
    with pytest.raises(DataError, match="both could be channels"):
        saved(file, x=np.zeros((24, 3, 9, 3), np.float32), y=Y)
    assert saved(file, x=np.zeros((24, 7, 9, 8), np.float32), y=Y).train.shape == (7, 9, 8)
