"""Reads tasks from tables: CSV and Parquet files, and FS-Mol."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headstart.data.samplers.draws import Keys
from headstart.data.samplers.tables import Kind, TableTasks
from headstart.data.sources.columns import TableColumns, columns_of, features_of, learned, read_columns
from headstart.errors import ConfigError, DataError

log = logging.getLogger("headstart")
SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
SPLIT_STREAM = 17  # those of episodes are smaller, and 16 splits classes
CLASSES = 20  # whole numbers and text are classes if they are no more


def read_table(
    path: str | Path,
    *,
    task: str = "task",
    target: str = "y",
    split: str = "split",
    features: Sequence[str] | str | None = None,
    exclude: Sequence[str] | str = (),
    categorical: Sequence[str] | str = (),
    kind: Kind | None = None,
    missing: Literal["mean", "refuse"] = "mean",
    standardise: bool = True,
    scale_targets: bool = True,
    seed: int = 0,
) -> TableTasks:
    """Tasks from a CSV (UTF-8, with a header; commas, semicolons or tabs) or Parquet file.

    Numbers, truth values and columns of a few texts become features, the last one feature for each text that occurs in training rows.
    Dates and longer texts are refused, with what to do.

    Args:
        path: the file; ``.parquet`` and ``.pq`` are Parquet, all else CSV.
        task, target: columns with the task of a row, and with its target.
        split: column with "train", "validation" or "test", the same for all rows of a task; without it 64, 16 and 20 percent of the
            tasks are drawn from ``seed``.
        features: columns; None for all others.
        exclude: columns to leave out.
        categorical: columns whose numbers are names of categories, or that hold more than 50 different texts.
        kind: None for "classification" if the target is text, booleans, 0.0 and 1.0, or whole numbers (1, not 1.0) with at most 20
            distinct values, else "regression".
        missing: "mean" puts the mean of the training rows in the place of a missing number, and says how many; a missing category is none
            of them. "refuse" names the first.
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
    if kind not in (None, "classification", "regression") or missing not in ("mean", "refuse"):
        raise ConfigError(f'kind={kind!r}, missing={missing!r}: use "classification" or "regression", and "mean" or "refuse"')
    table = read_columns(path, (task, target, split))
    listed, exclude, categorical = _names(features), _names(exclude) or [], _names(categorical) or []
    for name in (task, target, *(listed or ()), *exclude, *categorical):
        if name not in table.column_names:
            there = ", ".join(map(repr, table.column_names))
            raise DataError(f"{path} has no column {name!r}, but {there}; say which to use: --data-options task=COLUMN,target=COLUMN")
    wanted = [c for c in (listed or table.column_names) if c not in exclude and (listed or c not in (task, target, split))]
    if not wanted:
        raise DataError(f"{path} has no feature columns besides {task!r}, {target!r} and {split!r}")
    names, of = np.unique([str(v) for v in _full(path, task, table[task].to_pylist())], return_inverse=True)
    given = split in table.column_names
    splits = _given_splits(path, split, table[split].to_pylist(), of) if given else _drawn_splits(len(names), seed)
    train = np.array([part == "train" for part in splits])[of]
    columns = columns_of(path, table, wanted, categorical)
    if not train.any():
        raise DataError(f"{path} has no training rows; name some in {split!r}")
    made = learned(path, columns, train, fill=missing == "mean", standardise=standardise)
    x, filled = features_of(path, columns, made)
    if filled:
        log.warning("%s: %d missing values are the mean of their column's training rows; missing=refuse names them", path, filled)
    y, own, classes = _targets(path, target, table[target].to_pylist(), kind)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of).tolist()
    read_as = TableColumns(task, target, tuple(made))
    return TableTasks(x[order], y[order], counts, names.tolist(), splits, own, classes, scale_targets=scale_targets, columns=read_as)


def _names(given: Sequence[str] | str | None) -> list[str] | None:
    """A list of names of columns; one name alone is a list of one."""
    return None if given is None else [given] if isinstance(given, str) else [str(name) for name in given]


def fsmol(path: str | Path) -> TableTasks:
    """FS-Mol (Stanley et al., NeurIPS Datasets and Benchmarks 2021) from an .npz: active or not, from fingerprints of molecules.

    Args:
        path: the file, or the folder of ``fsmol.npz``. It holds ``ecfp_bits`` (M, D/8) uint8, ``mol``, ``task`` and ``y`` (n,), and
            ``task_id`` and ``split`` (tasks,).

    Raises:
        DataError: the file is missing or damaged, or holds something else.

    Example:
        >>> import tempfile
        >>> own = {"ecfp_bits": np.zeros((3, 2), np.uint8), "mol": np.arange(3), "task": np.arange(3), "y": np.array([0, 1, 0])}
        >>> path = tempfile.mkdtemp() + "/fsmol.npz"
        >>> np.savez(path, **own, task_id=np.array(["a", "b", "c"]), split=np.array(["train", "valid", "test"]))
        >>> print(fsmol(path))
        classification over 2 classes, 16 features, 3 rows: 1 train tasks, 1 validation tasks, 1 test tasks
    """
    path = Path(path) / "fsmol.npz" if Path(path).is_dir() else path
    try:
        with np.load(path, allow_pickle=False) as file:
            bits, mol, task, y, names, splits = (file[k] for k in ("ecfp_bits", "mol", "task", "y", "task_id", "split"))
    except Exception as error:  # a damaged archive can raise almost anything
        raise DataError(f"{path} is not FS-Mol as an .npz ({error})") from error
    fits = bits.ndim == 2 and bits.dtype == np.uint8 and len(mol) == len(task) == len(y) and len(names) == len(splits) and len(y)
    if not fits or not 0 <= task.min() <= task.max() < len(names) or not 0 <= mol.min() <= mol.max() < len(bits):
        raise DataError(f"{path}: its arrays do not fit together, so it is not FS-Mol as an .npz")
    if not np.isin(y, (0, 1)).all() or not set(splits.tolist()) <= set(SPLITS):
        raise DataError(f"{path}: labels must be 0 or 1, and splits one of {', '.join(SPLITS)}")
    order = np.argsort(task, kind="stable")
    counts, parts = np.bincount(task, minlength=len(names)).tolist(), [SPLITS[s] for s in splits.tolist()]
    return TableTasks(bits, y[order].astype(np.int64), counts, names.tolist(), parts, "classification", (0, 1), mol[order], packed=True)


def _full(path: Path, name: str, values: Sequence[Any]) -> Sequence[Any]:
    for i, value in enumerate(values):
        if value is None or value == "" or value != value:
            raise DataError(f"{path} lacks a value in row {i + 1} of {name!r}; fill it in, or leave the row out")
    return values


def _given_splits(path: Path, name: str, values: Sequence[Any], of: NDArray[Any]) -> list[str]:
    found: dict[int, str] = {}
    for i, (value, task) in enumerate(zip(values, of.tolist(), strict=True)):
        own = SPLITS.get(str(value).strip().lower())
        if own is None or found.setdefault(task, own) != own:
            fault = "rows of its task above have another" if own else f"use one of {', '.join(SPLITS)}"
            raise DataError(f"{path} has {value!r} in row {i + 1} of {name!r}; {fault}")
    return [found[t] for t in range(len(found))]


def _drawn_splits(tasks: int, seed: int) -> list[str]:
    least = 1 if tasks >= len(set(SPLITS.values())) else 0  # with three tasks, one each
    validation, test = max(least, round(0.16 * tasks)), max(least, round(0.2 * tasks))
    splits = np.repeat(["train", "validation", "test"], [tasks - validation - test, validation, test])
    return splits[Keys(seed, SPLIT_STREAM, 0).smallest((), tasks, tasks)].tolist()


def _targets(path: Path, name: str, values: Sequence[Any], kind: Kind | None) -> tuple[NDArray[Any], Kind, list[Any]]:
    labels = [_label(v) for v in _full(path, name, values)]
    distinct = set(labels)
    if kind is None:
        real = any(isinstance(v, float) for v in distinct) and distinct != {0.0, 1.0}
        kind = "regression" if len(distinct) > CLASSES or real else "classification"
    if kind == "classification":
        labels = [int(v) if isinstance(v, float) and v.is_integer() else v for v in labels]
        distinct = set(labels)
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
