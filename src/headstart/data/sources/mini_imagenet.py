"""mini-ImageNet: 100 classes of ImageNet, 600 images of 84×84 each, with the 64/16/20 classes of Ravi and Larochelle (ICLR 2017).

ImageNet's licence does not allow passing the images on, so there is nothing to fetch. The files are taken in any form that circulates:

``train.csv``, ``val.csv``, ``test.csv`` with the columns ``filename,label``, and the JPEGs in ``images/`` or beside them: decoded and
    scaled to 84×84 on first use, the whole picture, with Lanczos' filter, as in the tools that made the files below.
``mini-imagenet-cache-train.pkl``, ``…-val.pkl``, ``…-test.pkl``: dicts of ``image_data`` and ``class_dict``.
``miniImageNet_category_split_train_phase_train.pickle``, ``…_split_val.pickle``, ``…_split_test.pickle``: dicts of ``data``, ``labels``
    and ``catname2label``. The other two files of that kind, ``…_train_phase_val`` and ``…_train_phase_test``, hold more images of the
    training classes, and are not used.

Where a folder holds several forms, the first of caches, category splits and CSV files is taken, and the log says which.
"""

from __future__ import annotations

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.data.files.archives import safe_unpickle
from headstart.data.files.cache import Arrays, cached, fingerprint
from headstart.data.source import Source, Split
from headstart.data.sources.splitting import some, statistics
from headstart.errors import DataError

log = logging.getLogger("headstart")
NAME = "mini-imagenet"
SIZE = 84
CLASSES, EACH = {"train": 64, "validation": 16, "test": 20}, 600
CACHES = {"train": "mini-imagenet-cache-train.pkl", "validation": "mini-imagenet-cache-val.pkl", "test": "mini-imagenet-cache-test.pkl"}
_CATEGORY = "miniImageNet_category_split"
CATEGORIES = {
    "train": f"{_CATEGORY}_train_phase_train.pickle",
    "validation": f"{_CATEGORY}_val.pickle",
    "test": f"{_CATEGORY}_test.pickle",
}
TABLES = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
FORMS = (CACHES, CATEGORIES, TABLES)
Rows = dict[str, Sequence[int]]


def load(path: Path) -> Source:
    """mini-ImageNet from the files of a folder; kept in the cache by class, so that later calls only map it into memory.

    Args:
        path: the folder; the module's text says what may be in it.

    Raises:
        DataError: files are missing, damaged or not what they should be; or a class is in two splits.

    Example:
        >>> print(load(Path("mini-imagenet")))  # doctest: +SKIP
        mini-imagenet: 64 train classes (38400 examples), 16 validation classes (9600 examples), 20 test classes (12000 examples)
    """
    form = _form(path)
    entries = _from_tables(path) if form is TABLES else {part: _from_pickle(path / file) for part, file in form.items()}
    arrays = {part: cached(f"{NAME}-1-{name}", build, note=note) for part, (name, build, note) in entries.items()}
    mean, std = (tuple(arrays["train"][key].tolist()) for key in ("mean", "std"))
    splits = {}
    for part, found in arrays.items():
        classes, counts = [str(c) for c in found["classes"]], found["counts"].tolist()
        splits[part] = Split(torch.from_numpy(found["images"]), classes, counts, part, mean, std)
        unusual = [f"{c} has {n}" for c, n in zip(classes, counts, strict=True) if n != EACH]
        if len(classes) != CLASSES[part] or unusual:
            log.warning(
                *("%s: %d %s classes%s, but the benchmark has %d of %d images each; results do not compare with published ones", NAME),
                *(len(classes), part, f" ({some(unusual)})" if unusual else "", CLASSES[part], EACH),
            )
    return Source(NAME, **splits)


def _form(path: Path) -> dict[str, str]:
    """The form of which all three files are there."""
    missing = [[file for file in form.values() if not (path / file).is_file()] for form in FORMS]
    whole = [form for form, lacks in zip(FORMS, missing, strict=True) if not lacks]
    if whole:
        if len(whole) > 1:
            log.info("%s: %s holds the data in %d forms; %s and its like are taken", NAME, path, len(whole), whole[0]["train"])
        return whole[0]
    partial = [lacks for lacks in missing if len(lacks) < len(TABLES)]
    if partial:
        raise DataError(f"{NAME}: {str(path)!r} lacks {' and '.join(partial[0])}; put the file there, by hand")
    raise DataError(
        f"{NAME}: {str(path)!r} holds none of {', '.join(form['train'] for form in FORMS)}; put one and its like there, by hand"
    )


Entry = tuple[str, Callable[[], Arrays], str]  # what the cache needs: a name, the arrays' maker, and a note


def _arrays(images: NDArray[np.uint8], members: Mapping[str, Sequence[Any]]) -> Arrays:
    """What is kept of a split: its images, the classes one after the other, and their statistics."""
    mean, std = statistics(images)
    counts = np.array([len(m) for m in members.values()])
    return {"images": images, "classes": np.array(list(members)), "counts": counts, "mean": np.array(mean), "std": np.array(std)}


def _from_pickle(file: Path) -> Entry:
    def build() -> Arrays:
        with file.open("rb") as opened:
            content = safe_unpickle(opened, str(file))
        if not isinstance(content, dict):
            raise DataError(f"{file} holds a {type(content).__name__}, and should hold a dict; it is not mini-ImageNet as it circulates")
        content = {_text(key): value for key, value in content.items()}
        cache = "image_data" in content or "class_dict" in content
        images, listed = ("image_data", "class_dict") if cache else ("data", "labels")
        for key in (images, listed, *(() if cache else ("catname2label",))):
            if key not in content:
                raise DataError(f"{file} lacks the entry {key!r}, but holds {some(map(repr, content))}; fetch it again")
        data = content[images]
        _check_images(file, data)
        try:
            rows = _class_dict(content[listed]) if cache else _by_label(content[listed], content["catname2label"], file, len(data))
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{file}: its classes cannot be read ({error}); fetch it again") from error
        _check_rows(file, rows, len(data))
        order = [row for members in rows.values() for row in members]
        ordered = np.empty((len(order), 3, SIZE, SIZE), np.uint8)
        for place, row in enumerate(order):  # one by one, so that there is never more than one copy
            ordered[place] = data[row].transpose(2, 0, 1)
        return _arrays(ordered, rows)

    return f"pickle-{fingerprint(file)}", build, f"{NAME}: reading {file.name} (once) ..."


def _class_dict(listed: Any) -> Rows:
    return {_text(name): _whole(listed[name]) for name in sorted(listed, key=_text)}


def _by_label(labels: Any, numbers: Any, file: Path, count: int) -> Rows:
    names = {_whole([number])[0]: _text(name) for name, number in numbers.items()}
    if len(names) < len(numbers):
        raise DataError(f"{file}: in catname2label two names have one number; fetch it again")
    if len(labels) != count:
        raise DataError(f"{file}: there are {len(labels)} labels for {count} images; fetch it again")
    rows: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(_whole(labels)):
        rows[label].append(row)
    unnamed = sorted(set(rows) - set(names))
    if unnamed:
        raise DataError(f"{file}: labels without a name in catname2label: {some(map(str, unnamed))}; fetch it again")
    return {names[label]: rows[label] for label in sorted(rows, key=names.__getitem__)}


def _whole(values: Any) -> list[int]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{array.dtype} values of shape {array.shape} where a list of whole numbers should be")
    return [int(value) for value in array]


def _check_images(file: Path, data: Any) -> None:
    shape = (SIZE, SIZE, 3)
    if isinstance(data, list):
        bad = [i for i, one in enumerate(data) if not isinstance(one, np.ndarray) or one.shape != shape or one.dtype != np.uint8]
        if bad:
            raise DataError(
                f"{file}: images that are not {SIZE}×{SIZE}×3 unsigned bytes ({len(bad)}): {some(map(str, bad))}; fetch it again"
            )
    elif not isinstance(data, np.ndarray) or data.shape[1:] != shape or data.dtype != np.uint8:
        found = f"shape {data.shape} and type {data.dtype}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise DataError(f"{file}: images are {found}; they should be (n, {SIZE}, {SIZE}, 3) unsigned bytes")


def _check_rows(file: Path, rows: Rows, count: int) -> None:
    used = np.zeros(count, np.int64)
    for name, members in rows.items():
        if not members or min(members) < 0 or max(members) >= count:
            raise DataError(f"{file}: class {name!r} has {f'rows beyond the {count} images' if members else 'no images'}; fetch it again")
        np.add.at(used, members, 1)
    if not rows:
        raise DataError(f"{file} holds no classes; fetch it again")
    for what, bad in (("are listed twice", used > 1), ("no class lists", used == 0)):
        if bad.any():
            raise DataError(f"{file}: images that {what} ({bad.sum()}): {some(map(str, np.flatnonzero(bad)))}; fetch it again")


def _from_tables(path: Path) -> dict[str, Entry]:
    import PIL

    folder = path / "images" if (path / "images").is_dir() else path
    tables = {part: _table(path / file) for part, file in TABLES.items()}
    _check_disjoint(path, tables)
    return {part: _from_table(path / TABLES[part], folder, table, f"jpeg-pillow-{PIL.__version__}") for part, table in tables.items()}


def _from_table(file: Path, folder: Path, table: Mapping[str, Sequence[str]], recipe: str) -> Entry:
    names = [name for members in table.values() for name in members]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise DataError(f"{NAME}: {file.name} lists images that are not in {folder} ({len(absent)}): {some(absent)}; put them there")
    images = [folder / name for name in names]
    note = f"{NAME}: decoding the {len(names)} images of {file.name} (once) ..."
    return f"{recipe}-{fingerprint(file, *images)}", lambda: _arrays(_decode(images), table), note


def _table(file: Path) -> dict[str, list[str]]:
    """The image files of each class, both in the order of their names."""
    classes: dict[str, list[str]] = defaultdict(list)
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, skipinitialspace=True)
            columns = reader.fieldnames or []
            if not {"filename", "label"} <= set(columns):
                raise DataError(f"{file} has the columns {', '.join(map(repr, columns)) or 'none'}; it needs 'filename' and 'label'")
            for row in reader:
                name, label = row["filename"], row["label"]
                if not name or not label or None in row:
                    raise DataError(f"{file}, line {reader.line_num}: there should be a filename and a label; correct it or fetch it again")
                plain = PurePosixPath(name)
                if plain.is_absolute() or ".." in plain.parts or "\\" in name:
                    raise DataError(f"{file}, line {reader.line_num}: {name!r} leads out of the folder of images; do not use this file")
                classes[label].append(str(plain))  # without ./, so that no name has two forms
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is not a CSV file in UTF-8 ({error}); fetch it again") from error
    if not classes:
        raise DataError(f"{file} lists no images; fetch it again")
    return {label: sorted(classes[label]) for label in sorted(classes)}


def _check_disjoint(path: Path, tables: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    home: dict[str, str] = {}
    seen: dict[str, str] = {}
    for part, table in tables.items():
        for label, names in table.items():
            if home.setdefault(label, part) != part:
                raise DataError(f"{path}: label {label!r} is in both {TABLES[home[label]]} and {TABLES[part]}; the splits must be disjoint")
            for name in names:
                if name in seen:
                    raise DataError(f"{path}: image {name!r} is listed twice, in {seen[name]} and in {TABLES[part]}; list it once")
                seen[name] = TABLES[part]


def _decode(files: Sequence[Path]) -> NDArray[np.uint8]:
    from PIL import Image

    images = np.empty((len(files), 3, SIZE, SIZE), np.uint8)

    def one(i: int) -> str:
        try:
            with Image.open(files[i], formats=("JPEG", "PNG")) as image:
                images[i] = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
        except Exception as error:  # a damaged picture can raise almost anything
            return f"{files[i].name} ({error})"
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        bad = [problem for problem in pool.map(one, range(len(files))) if problem]
    if bad:
        raise DataError(f"{NAME}: images that cannot be decoded ({len(bad)}): {some(bad)}; put whole ones in their place")
    return images


def _text(value: Any) -> str:
    """Text, whichever Python wrote the pickle."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
