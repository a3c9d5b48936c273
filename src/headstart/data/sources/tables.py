"""Reads tasks from tables: CSV and Parquet files, and FS-Mol."""

from __future__ import annotations

import csv
import importlib
import logging
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.samplers.draws import Keys
from headstart.data.samplers.tables import Kind, TableTasks
from headstart.errors import ConfigError, DataError

log = logging.getLogger("headstart")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
SPLIT_STREAM = 17  # those of episodes are smaller, and 16 splits classes
CLASSES = 20  # whole numbers and text are classes if they are no more
MISSING = {"", "na", "n/a", "nan", "null", "none"}


def read_table(
    path: str | Path,
    *,
    task: str = "task",
    target: str = "y",
    split: str = "split",
    features: Sequence[str] | None = None,
    kind: Kind | None = None,
    missing: Literal["mean"] | None = None,
    standardise: bool = True,
    scale_targets: bool = True,
    seed: int = 0,
) -> TableTasks:
    """Tasks from a CSV (UTF-8, with a header) or Parquet file.

    Args:
        path: the file; ``.parquet`` and ``.pq`` are Parquet, all else CSV.
        task, target: columns with the task of a row, and with its target.
        split: column with "train", "validation" or "test", the same for all rows of a task; without it 64, 16 and 20 percent of the
            tasks are drawn from ``seed``.
        features: columns; None for all others.
        kind: None for "classification" if the target is text, booleans or whole numbers (1, not 1.0) with at most 20 distinct
            values, else "regression".
        missing: "mean" puts training means in the place of missing features.
        standardise: features to mean 0 and standard deviation 1 over the training rows.
        scale_targets: learners work on targets of mean 0 and standard deviation 1 over the training rows; what they predict, and their
            errors, are in the targets' own unit.
        seed: of the split.

    Raises:
        DataError: the file is missing, damaged or empty, or a column is missing, named twice, not numeric, or has holes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "a.csv")
        ...     _ = file.write_text("task,split,x,y\\na,train,1,no\\na,train,3,yes\\nb,test,2,no\\n")
        ...     print(read_table(file))
        classification over 2 classes, 1 features, 3 rows: 1 train tasks, 0 validation tasks, 1 test tasks
    """
    path = Path(path)
    if kind not in (None, "classification", "regression") or missing not in (None, "mean"):
        raise ConfigError(f'kind={kind!r}, missing={missing!r}: use "classification" or "regression", and "mean", or None')
    columns = _parquet(path) if path.suffix in (".parquet", ".pq") else _csv(path)
    for name in (task, target, *(features or ())):
        if name not in columns:
            raise DataError(f"{path} has no column {name!r}, but {', '.join(map(repr, columns))}; say which to use")
    wanted = [c for c in columns if c not in (task, target, split)] if features is None else list(features)
    if not wanted:
        raise DataError(f"{path} has no feature columns besides {task!r}, {target!r} and {split!r}")
    names, of = np.unique([str(v) for v in _full(path, task, columns[task])], return_inverse=True)
    splits = _given_splits(path, split, columns[split], of) if split in columns else _drawn_splits(len(names), seed)
    x = np.stack([_numbers(path, c, columns[c]) for c in wanted], 1)
    train = np.array([splits[t] == "train" for t in of])
    holes = np.isnan(x)
    nowhere = holes & holes[train].all(0)  # in training, so there is no mean
    for where, wrong, remedy in ((holes, missing is None, 'give missing="mean"'), (nowhere, True, "leave the column out")):
        if wrong and where.any():
            row, column = np.argwhere(where)[0]
            raise DataError(f"{path} lacks a value in row {row + 1} of {wanted[column]!r}; fill it in, or {remedy}")
    if standardise and not train.any():
        raise DataError(f"{path} has no training rows to standardise by; give standardise=False")
    if train.any():
        mean = x.mean(0, where=~holes & train[:, None])
        x = np.where(holes, mean, x)
        std = x[train].std(0)
        if standardise:
            x = (x - mean) / np.where(std > 1e-12 * np.abs(mean), std, 1)  # a constant column has nothing to scale
    y, own, classes = _targets(path, target, columns[target], kind)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of).tolist()
    x, y = x[order].astype(np.float32), y[order]
    return TableTasks(x, y, counts, names.tolist(), splits, own, classes, scale_targets=scale_targets)


def fsmol(path: str | Path) -> TableTasks:
    """FS-Mol (Stanley et al., NeurIPS Datasets and Benchmarks 2021) from an .npz: active or not, from fingerprints of molecules.

    Args:
        path: the file, or the folder of ``fsmol.npz``. It holds ``ecfp_bits`` (M, D/8) uint8, ``mol``, ``task`` and ``y`` (n,), and
            ``task_id`` and ``split`` (tasks,).

    Raises:
        DataError: the file is missing or damaged, or holds something else.
    """
    path = Path(path) / "fsmol.npz" if Path(path).is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            bits, mol, task, y, names, splits = (file[k] for k in ("ecfp_bits", "mol", "task", "y", "task_id", "split"))
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not FS-Mol as an .npz ({error})") from error
    fits = bits.ndim == 2 and bits.dtype == np.uint8 and len(mol) == len(task) == len(y) and len(names) == len(splits) and len(y)
    if not fits or not 0 <= task.min() <= task.max() < len(names) or not 0 <= mol.min() <= mol.max() < len(bits):
        raise DataError(f"{path}: its arrays do not fit together, so it is not FS-Mol as an .npz")
    if not np.isin(y, (0, 1)).all() or not set(splits.tolist()) <= set(SPLITS):
        raise DataError(f"{path}: labels must be 0 or 1, and splits one of {', '.join(SPLITS)}")
    order = np.argsort(task, kind="stable")
    counts, parts = np.bincount(task, minlength=len(names)).tolist(), [SPLITS[s] for s in splits.tolist()]
    return TableTasks(bits, y[order].astype(np.int64), counts, names.tolist(), parts, "classification", (0, 1), mol[order], packed=True)


def _csv(path: Path) -> dict[str, Sequence[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8 ({error})") from error
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise DataError(f"{path} has {len(row)} cells in row {i + 1}, but {len(header)} columns; is a comma unquoted?")
    return _columns(path, header, list(zip(*rows, strict=True)))


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'headstart[tables]'") from error
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise DataError(f"{path} cannot be read as Parquet ({error})") from error
    return _columns(path, table.column_names, [column.to_pylist() for column in table.columns])


def _columns(path: Path, header: list[str], values: list[Sequence[Any]]) -> dict[str, Sequence[Any]]:
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}; rename one")
    if not values or not len(values[0]):
        raise DataError(f"{path} is empty: it has no rows under a header")
    return dict(zip(header, values, strict=True))


def _full(path: Path, name: str, values: Sequence[Any]) -> Sequence[Any]:
    for i, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise DataError(f"{path} lacks a value in row {i + 1} of {name!r}; fill it in, or leave the row out")
    return values


def _numbers(path: Path, name: str, values: Sequence[Any]) -> NDArray[np.float64]:
    """(n,) with NaN for what is missing."""
    found = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        text = str(value).strip().lower()
        try:
            found[i] = np.nan if text in MISSING else float({"true": 1, "false": 0}.get(text, text))
        except ValueError:
            found[i] = np.inf
        if np.isinf(found[i]):
            raise DataError(f"{path} has {value!r} in row {i + 1} of {name!r}, which is no finite number; leave it out of features=[…]")
    return found


def _given_splits(path: Path, name: str, values: Sequence[Any], of: NDArray[Any]) -> list[str]:
    found: dict[int, str] = {}
    for i, (value, task) in enumerate(zip(values, of.tolist(), strict=True)):
        own = SPLITS.get(str(value).strip().lower())
        if own is None or found.setdefault(task, own) != own:
            fault = "rows of its task above have another" if own else f"use one of {', '.join(SPLITS)}"
            raise DataError(f"{path} has {value!r} in row {i + 1} of {name!r}; {fault}")
    return [found[t] for t in range(len(found))]


def _drawn_splits(tasks: int, seed: int) -> list[str]:
    train, validation = round(0.64 * tasks), round(0.16 * tasks)
    splits = np.repeat(["train", "validation", "test"], [train, validation, tasks - train - validation])
    return splits[Keys(seed, SPLIT_STREAM, 0).smallest((), tasks, tasks)].tolist()


def _targets(path: Path, name: str, values: Sequence[Any], kind: Kind | None) -> tuple[NDArray[Any], Kind, list[Any]]:
    labels = [_label(v) for v in _full(path, name, values)]
    distinct = set(labels)
    if kind is None:
        kind = "regression" if len(distinct) > CLASSES or any(isinstance(v, float) for v in distinct) else "classification"
    if kind == "classification":
        classes = sorted(distinct, key=lambda v: (isinstance(v, str), v))
        place = {c: i for i, c in enumerate(classes)}
        return np.array([place[v] for v in labels], np.int64), kind, classes
    for i, value in enumerate(labels):
        if isinstance(value, str) or not math.isfinite(value):
            remedy = f"{len(distinct)} classes need kind='classification'"
            raise DataError(f"{path} has {value!r} in row {i + 1} of {name!r}, which is no finite number; {remedy}")
    return np.array(labels, np.float32), kind, []


def _label(value: Any) -> int | float | str:
    for read in (int, float) if isinstance(value, str) else ():
        try:
            return read(value)
        except ValueError:
            continue
    return value if isinstance(value, int | float) else str(value)
