"""Examples of a person's own from files: pictures, vectors, texts or rows, with their labels where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.container import understood
from headstart.data.sources.columns import PARQUET, column_of, features_of, read_columns
from headstart.data.sources.texts import read_text
from headstart.errors import DataError
from headstart.using.preprocessing import Preprocessing

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples, as they are kept.

    Args:
        x: (n, …).
        labels: of each: texts, or numbers for real targets; None where there are none.
        names: what to call each.
        left_out: what was wrong with files that could not be read, by file, where there were others.
    """

    x: Tensor
    labels: list[Any] | None
    names: list[str]
    left_out: tuple[str, ...] = ()


def read_examples(own: Preprocessing, paths: Sequence[Path], *, labelled: bool, label: str = "label", text: str = "text") -> Examples:
    """Examples from files or folders.

    Args:
        own: how they are read.
        paths: picture files, a folder of them, or a folder with a folder for each class; a CSV or Parquet file; an .npz with x (and y) or
            an .npy; a text file with a text in each line.
        labelled: whether labels are wanted: names of class folders, the column ``label`` (of rows the target's own), or y.
        label, text: columns of a file of vectors or texts.

    Raises:
        DataError: something is missing or cannot be read, or there are no examples. Of several pictures those that cannot be read are
            left out.
    """
    if not paths:
        raise DataError("there is nothing to read; give a file or a folder")
    for path in paths:
        if not path.exists():
            raise DataError(f"there is nothing at {str(path)!r}; give a file or a folder that is there")
    read = {"pictures": _pictures, "texts": _texts, "vectors": _vectors, "rows": _rows}[own.kind]
    parts, wrong = list[Examples](), list[str]()
    for path in paths:
        try:
            with understood(path, DataError):
                parts.append(read(own, path, labelled, label, text))
        except DataError as error:  # of a damaged picture among others; what is wrong with a folder or a table is wrong with what was asked
            if len(paths) == 1 or path.suffix.lower() not in PICTURES:
                raise
            wrong.append(str(error))
    if not parts:
        raise DataError("; ".join(wrong))
    found = Examples(
        torch.cat([p.x for p in parts]),
        None if any(p.labels is None for p in parts) else [v for p in parts for v in p.labels or []],
        [n for p in parts for n in p.names],
        (*wrong, *(text for p in parts for text in p.left_out)),
    )
    if labelled and found.labels is None:
        raise DataError(f"{paths[0]} has no labels: give {WANTED[own.kind]}")
    return found


WANTED = {
    "pictures": "a folder with a folder of pictures for each class, or an .npz with x and y",
    "texts": "a CSV with the columns text and label",
    "vectors": "an .npz with x and y, or a CSV with a column label",
    "rows": "a CSV or Parquet file with the columns that the start was trained on, the target's too",
}


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in a folder, in order; hidden files are passed over."""
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in PICTURES and not f.name.startswith("."))


def _pictures(own: Preprocessing, path: Path, labelled: bool, label: str, text: str) -> Examples:
    if path.suffix == ".npz":
        return _arrays(own, path)
    if path.is_file():
        files, labels = [path], None
    else:
        folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith(".") and pictures_in(f))
        loose = pictures_in(path)
        if labelled and not folders:
            raise DataError(f"{path} has no folders of pictures: {WANTED['pictures']}")
        files = [f for folder in folders for f in pictures_in(folder)] if folders and not (loose and not labelled) else loose
        labels = [f.parent.name for f in files] if folders and not (loose and not labelled) else None
    if not files:
        raise DataError(f"{path} holds no pictures ({', '.join(sorted(PICTURES))}); give files or a folder of them")
    found, kept, wrong = list[Tensor](), list[int](), list[str]()
    for i, file in enumerate(files):
        try:
            found.append(own.pictures([file.read_bytes()]))
            kept.append(i)
        except (DataError, OSError) as error:
            wrong.append(f"{file}: {error}")
    if not found:
        raise DataError("; ".join(wrong[:3]))
    return Examples(torch.cat(found), labels and [labels[i] for i in kept], [str(files[i]) for i in kept], tuple(wrong))


def _texts(own: Preprocessing, path: Path, labelled: bool, label: str, text: str) -> Examples:
    labels: list[Any] | None = None
    if path.suffix.lower() == ".json" or (path.suffix.lower() == ".csv" and labelled):
        rows = read_text(path, text, label)
        return Examples(own.texts([t for t, _, _ in rows]), [one for _, one, _ in rows], [t for t, _, _ in rows])
    if path.suffix.lower() == ".csv":
        table = read_columns(path, (text,))
        if text not in table.column_names:
            raise DataError(f"{path} has no column {text!r}, but {', '.join(map(repr, table.column_names))}; name it with --text")
        lines = [str(v or "") for v in table[text].to_pylist()]
        if label in table.column_names:
            labels = [str(v) for v in table[label].to_pylist()]
    else:
        try:
            lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text in UTF-8 ({error}); give a text in each line, or a CSV") from error
    if not lines:
        raise DataError(f"{path} holds no texts; give each a line")
    return Examples(own.texts(lines), labels, lines)


def _vectors(own: Preprocessing, path: Path, labelled: bool, label: str, text: str) -> Examples:
    if path.suffix in (".npz", ".npy"):
        return _arrays(own, path)
    table = read_columns(path, (label,))
    there = label in table.column_names
    names = [n for n in table.column_names if n != label]
    columns = [column_of(path, n, table[n], False) for n in names]
    words = [c.name for c in columns if c.kind != "number"]
    if words:
        raise DataError(f"{path} has words in {words[0]!r}, but the start takes {own.shape[0]} numbers; give a column of labels by --label")
    x = torch.from_numpy(np.stack([c.values for c in columns], 1).astype(np.float32))
    return Examples(own.checked(x), [str(v) for v in table[label].to_pylist()] if there else None, _numbered(path, len(x)))


def _arrays(own: Preprocessing, path: Path) -> Examples:
    try:
        loaded = np.load(path, allow_pickle=False)
        x, y = (loaded["x"], loaded["y"] if "y" in loaded.files else None) if path.suffix == ".npz" else (loaded, None)
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(f"{path} cannot be read ({error}); save x, and y for labels, with numpy.savez") from error
    pictures = own.kind == "pictures"
    if pictures and x.dtype != np.uint8:
        raise DataError(f"{path}: x has type {x.dtype}; pictures are uint8 of shape (n, {', '.join(map(str, own.shape))})")
    if y is not None and (y.ndim != 1 or len(y) != len(x)):
        raise DataError(f"{path}: y has shape {y.shape} and x {x.shape}; give each example one label")
    found = torch.from_numpy(np.ascontiguousarray(x) if pictures else x.astype(np.float32))
    return Examples(own.checked(found), None if y is None else [str(v) for v in y], _numbered(path, len(x)))


def _rows(own: Preprocessing, path: Path, labelled: bool, label: str, text: str) -> Examples:
    columns = own.columns
    assert columns is not None
    if path.suffix.lower() not in (".csv", ".tsv", ".txt", *PARQUET):
        raise DataError(f"{path} is no table; give {WANTED['rows']}")
    table = read_columns(path, (columns.task, columns.target))
    x = features_of_rows(own, path, table)
    labels = table[columns.target].to_pylist() if columns.target in table.column_names else None
    if labelled and labels is not None and any(v is None or v == "" for v in labels):
        raise DataError(f"{path} lacks a value of {columns.target!r}; the support set needs them all")
    return Examples(x, labels, _numbered(path, len(x)))


def features_of_rows(own: Preprocessing, path: Path, table: Any) -> Tensor:
    """(n, D) features of the rows of a pyarrow table.

    Args:
        own: how they are read.
        path: of the file, for messages.
        table: with the columns that the start was trained on; others are passed over.

    Raises:
        DataError: a column is missing, or has values that it cannot have.
    """
    assert own.columns is not None
    features = own.columns.features
    names = list(dict.fromkeys(f.column for f in features))
    categorical = {f.column for f in features if f.category is not None}
    missing = [n for n in names if n not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}, which the start was trained on; it takes {', '.join(map(repr, names))}")
    columns = [column_of(path, n, table[n], n in categorical) for n in names]
    words = [c.name for c in columns if c.kind != "number" and c.name not in categorical]
    if words:  # their places among the texts would else count as numbers
        raise DataError(f"{path} has texts in {words[0]!r}, where the start was trained on numbers; give numbers")
    x, _ = features_of(path, columns, features)
    return own.checked(torch.from_numpy(x))


def _numbered(path: Path, count: int) -> list[str]:
    return [f"{path.name}:{i + 1}" for i in range(count)]
