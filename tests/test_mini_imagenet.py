"""mini-ImageNet in the three forms that circulate, made small: what is read, what is said, and what is refused."""

from __future__ import annotations

import csv
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.cli import main
from headstart.data import Episodes, Source, load
from headstart.data.sources import mini_imagenet
from headstart.data.sources.splitting import statistics
from headstart.errors import DataError

CLASSES = {"train": ["n03", "n01", "n02"], "val": ["n05", "n04"], "test": ["n06", "n07"]}
EACH = 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


def picture(label: str, number: int) -> np.ndarray:
    """(84, 84, 3) pixels: a class's own colour and an image's own blocks, which a JPEG keeps nearly."""
    colour = np.array([20 * int(label[1:]), 128, 250 - 20 * int(label[1:])])
    blocks = np.random.default_rng([int(label[1:]), number]).integers(-10, 10, (7, 7, 3)).repeat(12, 0).repeat(12, 1)
    return (colour + blocks).clip(0, 255).astype(np.uint8)


def tables(folder: Path, inside: str = "images", size: tuple[int, int] = (84, 84), suffix: str = "png") -> Path:
    (folder / inside).mkdir(parents=True, exist_ok=True)
    for part, labels in CLASSES.items():
        rows = [(f"{label}{number:04}.{suffix}", label) for number in range(EACH) for label in labels]
        for (name, label), number in zip(rows, [n for n in range(EACH) for _ in labels], strict=True):
            Image.fromarray(picture(label, number)).resize(size, Image.Resampling.NEAREST).save(folder / inside / name, quality=95)
        with (folder / f"{part}.csv").open("w", newline="") as out:
            csv.writer(out).writerows([("filename", "label"), *rows])
    return folder


def caches(folder: Path, protocol: int = 4, change: Callable[[str, Any], Any] = lambda part, content: content) -> Path:
    """Rows of the classes in turns, so that the order of rows is not that of classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in CLASSES.items():
        data = np.stack([picture(label, number) for number in range(EACH) for label in labels])
        lists = {label: list(range(i, len(data), len(labels))) for i, label in enumerate(labels)}
        content = change(part, {"image_data": data, "class_dict": lists})
        (folder / f"mini-imagenet-cache-{part}.pkl").write_bytes(pickle.dumps(content, protocol))
    return folder


def categories(
    folder: Path, protocol: int = 2, as_list: bool = False, change: Callable[[str, Any], Any] = lambda part, content: content
) -> Path:
    """Numbers of labels begin at 0 in every file, and are no class names."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, labels in CLASSES.items():
        data = [picture(label, number) for number in range(EACH) for label in labels]
        numbers = {label: i for i, label in enumerate(labels)}
        content = {
            "data": data if as_list else np.stack(data),
            "labels": [numbers[label] for label in labels] * EACH,
            "catname2label": numbers,
        }
        name = "train_phase_train" if part == "train" else part
        (folder / f"miniImageNet_category_split_{name}.pickle").write_bytes(pickle.dumps(change(part, content), protocol))
    return folder


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == level)


def assert_right(source: Source, tolerance: int = 0) -> None:
    for split, labels in zip((source.train, source.validation, source.test), CLASSES.values(), strict=True):
        assert split.classes == sorted(labels)
        assert split.counts == [EACH] * len(labels)
        assert split.examples.shape == (EACH * len(labels), 3, 84, 84)
        assert split.examples.dtype == torch.uint8
        for i, label in enumerate(split.classes):
            for number in range(EACH):
                got = split.examples[i * EACH + number].permute(1, 2, 0).numpy().astype(int)
                assert np.abs(got - picture(label, number)).max() <= tolerance
        mean, std = statistics(source.train.examples.numpy())
        assert split.mean == pytest.approx(mean)
        assert split.std == pytest.approx(std)


@pytest.mark.parametrize("inside", ["images", "."])
def test_tables_with_images(inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    source = load("mini-imagenet", tables(tmp_path / "a", inside))
    assert_right(source)
    assert "decoding the 12 images of train.csv (once)" in said(caplog, logging.INFO)
    assert "3 train classes (n01 has 4, n02 has 4, n03 has 4), but the benchmark has 64 of 600 images each" in said(caplog)
    assert Episodes(source.train, ways=3, shots=1, queries=2, tasks=2).batch(0).support_x.shape == (2, 3, 3, 84, 84)
    caplog.clear()
    assert_right(load("mini-imagenet", tmp_path / "a"))
    assert "decoding" not in said(caplog, logging.INFO)


def test_jpegs_of_any_size_and_mode_are_scaled_to_84(tmp_path: Path) -> None:
    folder = tables(tmp_path / "a", size=(168, 168), suffix="jpg")
    assert_right(load("mini-imagenet", folder), tolerance=25)  # edges of blocks blur
    Image.new("L", (40, 20), 200).save(folder / "images" / "n010000.jpg")
    Image.new("CMYK", (30, 90), (0, 255, 255, 0)).save(folder / "images" / "n010001.jpg")
    changed = load("mini-imagenet", folder).train  # another fingerprint
    assert changed.examples[0].unique().tolist() == [200]
    assert changed.examples[1].float().mean((1, 2)).tolist() == pytest.approx([254, 0, 0], abs=3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickled_caches(protocol: int, tmp_path: Path) -> None:
    assert_right(load("mini-imagenet", caches(tmp_path / "a", protocol)))
    assert_right(load("mini-imagenet", caches(tmp_path / "b", protocol, lambda _, c: c | {"class_dict": arrays(c["class_dict"])})))


def arrays(lists: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {label: np.array(rows) for label, rows in lists.items()}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("as_list", [False, True])
def test_pickled_category_splits(protocol: int, as_list: bool, tmp_path: Path) -> None:
    assert_right(load("mini-imagenet", categories(tmp_path / "a", protocol, as_list)))
    assert_right(load("mini-imagenet", categories(tmp_path / "b", protocol, as_list, lambda _, c: c | {"labels": np.array(c["labels"])})))


def test_of_several_forms_one_is_taken_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    folder = tables(categories(caches(tmp_path / "a")))
    for image in (folder / "images").iterdir():
        image.unlink()  # people have the lists beside the caches
    assert_right(load("mini-imagenet", folder))
    assert "in 3 forms; mini-imagenet-cache-train.pkl and its like are taken" in said(caplog, logging.INFO)


def test_a_split_is_the_mapped_file_and_no_copy(tmp_path: Path) -> None:
    caches(tmp_path / "a")
    for _ in range(2):
        source = load("mini-imagenet", tmp_path / "a")
        files = sorted((tmp_path / "cache").glob("mini-imagenet-*/images.npy"))
        assert len(files) == 3
        maps = Path("/proc/self/maps")
        if not maps.exists():
            pytest.skip("this system does not list what is mapped")
        places = [line.split() for line in maps.read_text().splitlines() if "images.npy" in line]
        for split in (source.train, source.validation, source.test):
            place = split.examples.data_ptr()
            assert any(int(p[0].split("-")[0], 16) <= place < int(p[0].split("-")[1], 16) for p in places)


def test_the_command_line_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", "mini-imagenet"]) == 0
    out = capsys.readouterr().out
    assert "train.csv, val.csv, test.csv and images/" in out
    assert "licence" in out
    assert "by hand" in out
    with pytest.raises(DataError, match=r"mini-imagenet needs a path: .*by hand"):
        load("mini-imagenet")
    assert main(["data", "fetch", "mini-imagenet"]) != 0


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of mini-imagenet-cache-train\.pkl, .*train\.csv"):
        load("mini-imagenet", tmp_path)
    folder = caches(tmp_path / "a")
    (folder / "mini-imagenet-cache-val.pkl").unlink()
    with pytest.raises(DataError, match=r"lacks mini-imagenet-cache-val\.pkl; put"):
        load("mini-imagenet", folder)
    folder = tables(tmp_path / "b")
    for name in ("n030000.png", "n010002.png"):
        (folder / "images" / name).unlink()
    with pytest.raises(DataError, match=r"train\.csv lists images that are not in .*images \(2\): n010002\.png, n030000\.png; put"):
        load("mini-imagenet", folder)


@pytest.mark.parametrize("cut", [0, 3, 300])
def test_damaged_images_are_named(cut: int, tmp_path: Path) -> None:
    folder = tables(tmp_path / "a", suffix="jpg")
    image = folder / "images" / "n040001.jpg"
    image.write_bytes(image.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"cannot be decoded \(1\): n040001\.jpg \("):
        load("mini-imagenet", folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,class\na.png,n01\n", r"train\.csv has the columns 'image', 'class'; it needs 'filename' and 'label'"),
        ("", r"has the columns none"),
        ("filename,label\n", r"train\.csv lists no images"),
        ("filename,label\nn010000.png\n", r"train\.csv, line 2: there should be a filename and a label"),
        ("filename,label\nn010000.png,n01,n02\n", r"line 2: there should be"),
        ("filename,label\n,n01\n", r"line 2: there should be"),
        ("filename,label\n../images/n010000.png,n01\n", r"line 2: '\.\./images/n010000\.png' leads out of the folder"),
        ("filename,label\n/etc/passwd,n01\n", r"leads out of the folder"),
        ("filename,label\nn010000.png,n01\nn010001.png,n04\n", r"label 'n04' is in both train\.csv and val\.csv; the splits must"),
        ("filename,label\nn010000.png,n01\n./n010000.png,n01\n", r"image 'n010000\.png' is listed twice, in train\.csv and in train\.csv"),
        ("filename,label\nn010000.png,n01\nn010000.png,n02\n", r"'n010000\.png' is listed twice"),
        ("filename,label\nn040000.png,n01\n", r"'n040000\.png' is listed twice, in train\.csv and in val\.csv"),
        ("filename,label\nn01\udcff.png,n01\n", r"train\.csv is not a CSV file in UTF-8"),
    ],
)
def test_wrong_tables_are_refused(text: str, message: str, tmp_path: Path) -> None:
    folder = tables(tmp_path / "a")
    (folder / "train.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        load("mini-imagenet", folder)


def test_tables_of_spreadsheets_and_further_columns_are_read(tmp_path: Path) -> None:
    folder = tables(tmp_path / "a")
    for part in CLASSES:
        lines = (folder / f"{part}.csv").read_text().splitlines()
        text = "\r\n".join([f"{i}, {line}" for i, line in enumerate(lines)])
        (folder / f"{part}.csv").write_text("\ufeff" + text, encoding="utf-8", newline="")
    assert_right(load("mini-imagenet", folder))


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [1, 2], r"train\.pkl holds a list, and should hold a dict"),
        (lambda c: {"x": 1}, r"lacks the entry 'data', but holds 'x'"),
        (lambda c: {"image_data": c["image_data"]}, r"lacks the entry 'class_dict', but holds 'image_data'"),
        (lambda c: c | {"image_data": c["image_data"][:, :80]}, r"images are shape \(12, 80, 84, 3\) and type uint8; they should be"),
        (lambda c: c | {"image_data": c["image_data"] / 255}, r"type float64"),
        (lambda c: c | {"image_data": 5}, r"images are a int; they"),
        (lambda c: c | {"class_dict": {"n01": [0, 12]}}, r"class 'n01' has rows beyond the 12 images"),
        (lambda c: c | {"class_dict": {"n01": [0, -1]}}, r"class 'n01' has rows beyond"),
        (lambda c: c | {"class_dict": {"n01": []}}, r"class 'n01' has no images"),
        (lambda c: c | {"class_dict": {"n01": [0.5]}}, r"its classes cannot be read \(float64 values"),
        (lambda c: c | {"class_dict": [0, 1]}, r"its classes cannot be read"),
        (lambda c: c | {"class_dict": {}}, r"holds no classes"),
        (lambda c: c | {"class_dict": {"n01": [0, 1], "n02": [1, 2]}}, r"images that are listed twice \(1\): 1; fetch"),
        (lambda c: c | {"class_dict": {"n01": [3, 3]}}, r"listed twice \(1\): 3"),
        (lambda c: c | {"class_dict": {"n01": [4, 1]}}, r"images that no class lists \(10\): 0, 2, 3"),
        (
            lambda c: c | {"class_dict": {"n01": [*range(6)], "n04": [*range(6, 12)]}},
            r"class 'n04' is in both train and validation; the splits must",
        ),
    ],
)
def test_wrong_caches_are_refused(change: Change, message: str, tmp_path: Path) -> None:
    folder = caches(tmp_path / "a", change=lambda part, c: change(c) if part == "train" else c)
    with pytest.raises(DataError, match=message):
        load("mini-imagenet", folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {k: v for k, v in c.items() if k != "catname2label"}, r"lacks the entry 'catname2label', but holds 'data', 'labels'"),
        (lambda c: c | {"labels": c["labels"][:-1]}, r"11 labels for 12 images"),
        (lambda c: c | {"labels": [*c["labels"], 0]}, r"13 labels for 12 images"),
        (lambda c: c | {"labels": [7, *c["labels"][1:]]}, r"labels without a name in catname2label: 7"),
        (lambda c: c | {"catname2label": {"n01": 0, "n02": 0, "n03": 1}}, r"two names have one number"),
        (lambda c: c | {"catname2label": {"n01": 0, "n02": 1, "n04": 2}}, r"class 'n04' is in both train and validation"),
        (lambda c: c | {"labels": ["a"] * 12}, r"its classes cannot be read"),
        (lambda c: c | {"data": [*c["data"][:-1], c["data"][0][:, :, 0]]}, r"images that are not 84×84×3 unsigned bytes \(1\): 11"),
        (lambda c: c | {"data": [None] * 12}, r"not 84×84×3 unsigned bytes \(12\): 0, 1"),
    ],
)
def test_wrong_category_splits_are_refused(change: Change, message: str, tmp_path: Path) -> None:
    folder = categories(tmp_path / "a", change=lambda part, c: change(c) if part == "train" else c)
    with pytest.raises(DataError, match=message):
        load("mini-imagenet", folder)


def test_hostile_and_cut_pickles_are_refused_and_leave_nothing_behind(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (tmp_path / "sentinel").touch, ()

    folder = caches(tmp_path / "a", change=lambda part, c: c | {"image_data": Trap()})
    with pytest.raises(DataError, match=r"train\.pkl asks for"):
        load("mini-imagenet", folder)
    assert not (tmp_path / "sentinel").exists()
    file = caches(tmp_path / "b", 5) / "mini-imagenet-cache-test.pkl"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"test\.pkl is not a pickle that can be read"):
        load("mini-imagenet", tmp_path / "b")


def test_published_sizes_give_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_imagenet, "CLASSES", {"train": 3, "validation": 2, "test": 2})
    monkeypatch.setattr(mini_imagenet, "EACH", EACH)
    load("mini-imagenet", caches(tmp_path / "a"))
    assert not said(caplog)
