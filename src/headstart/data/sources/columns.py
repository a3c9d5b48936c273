"""Columns of CSV and Parquet files, and what they are as features: numbers, truth values and categories, with holes filled."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.errors import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
CATEGORIES = 50  # distinct texts up to which a column is one of categories; with more it is text
MENTIONED = 5  # columns that one message is about
DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T].*)?")
TRUTH = {"true": 1.0, "false": 0.0}
WRONG_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")  # a handler of pyarrow's own stumbles over what is not UTF-8
PARQUET = (".parquet", ".pq")


def read_columns(path: Path, as_text: Collection[str]) -> Any:
    """The pyarrow table of a file; ``.parquet`` and ``.pq`` are Parquet, all else CSV by commas, semicolons or tabs.

    Args:
        path: the file.
        as_text: columns of a CSV that are kept as they are written, such as the names of tasks.

    Raises:
        DataError: the file is missing, damaged or empty, or has a column twice.
    """
    try:
        arrow = importlib.import_module("pyarrow")
        table = _parquet(path) if path.suffix.lower() in PARQUET else _csv(arrow, path, as_text)
    except ImportError as error:
        raise DataError(f"reading {path} needs pyarrow: pip install 'headstart[tables]'") from error
    names = table.column_names
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path} has two columns {twice[0]!r}; rename one")
    if not table.num_rows or not names:
        raise DataError(f"{path} is empty: it has no rows under a header")
    return table.combine_chunks()


def _parquet(path: Path) -> Any:
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path).read()
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError, MemoryError) as error:  # pyarrow's own errors are of these
        raise DataError(f"{path} cannot be read as Parquet ({error})") from error


def _csv(arrow: Any, path: Path, as_text: Collection[str]) -> Any:
    csv = importlib.import_module("pyarrow.csv")
    try:
        with path.open("rb") as file:
            header = file.readline()
        if not header.strip():
            raise DataError(f"{path} is empty: it has no rows under a header")
        mark = max((b",", b";", b"\t"), key=header.count).decode()
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),  # with threads a wrong row has no number
            parse_options=csv.ParseOptions(delimiter=mark, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(as_text, arrow.string()), null_values=_spellings(), strings_can_be_null=False
            ),
        )
        _ = table.column_names  # pyarrow reads names that are not UTF-8, and gives them to nobody
        return table
    except (OSError, ValueError, KeyError) as error:
        if wrong := WRONG_ROW.search(str(error)):
            row, columns, cells = map(int, wrong.groups())
            raise DataError(f"{path} has {cells} cells in row {row - 1}, but {columns} columns; is a {mark!r} unquoted?") from error
        raise DataError(f"{path} cannot be read as CSV in UTF-8 ({error})") from error


def _spellings() -> list[str]:
    return sorted({spelt for word in MISSING for spelt in (word, word.upper(), word.title(), word.capitalize(), "NaN", "N/a")})


@dataclass(frozen=True)
class Column:
    """One column as numbers.

    Args:
        name: of the column.
        kind: ``"number"`` or ``"category"``.
        values: (n,) numbers, NaN where one is missing; of a category the place in ``categories``.
        categories: the texts that places stand for.
    """

    name: str
    kind: str
    values: NDArray[np.float64]
    categories: Sequence[str] = ()


def columns_of(path: Path, table: Any, names: Sequence[str], categorical: Collection[str]) -> list[Column]:
    """The columns of some names.

    Raises:
        DataError: some cannot be read as they are; all of them are named.
    """
    found, wrong = list[Column](), list[str]()
    for name in names:
        try:
            found.append(column_of(path, name, table[name], name in categorical))
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        more = f"; and {len(wrong) - MENTIONED} more columns" if len(wrong) > MENTIONED else ""
        raise DataError("; ".join(wrong[:MENTIONED]) + more)
    return found


def column_of(path: Path, name: str, column: Any, categorical: bool) -> Column:
    """A column as numbers, or as categories where it holds a few texts or is said to.

    Args:
        path: of the file, for messages.
        name: of the column.
        column: the pyarrow column.
        categorical: whether numbers are categories too.

    Raises:
        DataError: it holds dates, texts that are no categories, or values that are no finite numbers.
    """
    types = importlib.import_module("pyarrow").types
    kind = column.type
    if types.is_temporal(kind):
        raise DataError(_dates(path, name, _first(column)))
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if plain and not categorical:
        return Column(name, "number", _finite(path, name, _plain(column)))
    encoded = column.combine_chunks().dictionary_encode() if hasattr(column, "combine_chunks") else column.dictionary_encode()
    encoded = encoded.combine_chunks() if hasattr(encoded, "combine_chunks") else encoded
    texts = ["" if v is None else str(v).strip() for v in encoded.dictionary.to_pylist()]
    place = np.array([-1 if v is None else v for v in encoded.indices.to_pylist()], np.int64)
    return _of_texts(path, name, texts, place, categorical)


def _of_texts(path: Path, name: str, texts: list[str], place: NDArray[np.int64], categorical: bool) -> Column:
    """A column of distinct texts and the (n,) place of each row among them, -1 for none."""
    there = [text for text in texts if text.lower() not in MISSING]
    numbers = {text: _number(text) for text in there}
    known = [text for text in there if numbers[text] is not None]
    if not categorical and len(known) * 2 >= len(there):  # a column of numbers; one that is none is a mistake
        values = np.array([math.nan if text.lower() in MISSING else _or_inf(numbers[text]) for text in texts] + [math.nan])
        found = values[place]
        wrong = np.flatnonzero(np.isinf(found))
        if len(wrong):
            raise DataError(_no_number(path, name, texts[place[wrong[0]]], int(wrong[0])))
        return Column(name, "number", found)
    if not categorical and sum(bool(DATE.fullmatch(text)) for text in there) * 2 > len(there):
        raise DataError(_dates(path, name, there[0]))
    if len(there) > CATEGORIES and not categorical:
        raise DataError(
            f"{path} has {len(there)} different texts in {name!r}, such as {there[0][:40]!r}: give exclude=[{name}] to leave the column"
            f" out, categorical=[{name}] to make a category of each, or turn texts into vectors (docs/data.md)"
        )
    order = sorted(set(there))
    at = {text: i for i, text in enumerate(order)}
    own = np.array([at.get(text, math.nan) for text in texts] + [math.nan])
    return Column(name, "category", own[place], order)


def _plain(column: Any) -> NDArray[np.float64]:
    arrow = importlib.import_module("pyarrow")
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    array = array.cast(arrow.uint8()) if arrow.types.is_boolean(array.type) else array
    return np.asarray(array.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)


def _finite(path: Path, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    wrong = np.flatnonzero(np.isinf(values))
    if len(wrong):
        raise DataError(_no_number(path, name, float(values[wrong[0]]), int(wrong[0])))
    return values


def _number(text: str) -> float | None:
    try:
        return TRUTH[text.lower()] if text.lower() in TRUTH else float(text)
    except ValueError:
        return None


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value


def _first(column: Any) -> Any:
    return next((v for v in column.to_pylist() if v is not None), None)


def _no_number(path: Path, name: str, value: object, row: int) -> str:
    return f"{path} has {value!r} in row {row + 1} of {name!r}, which is no finite number; correct it, or give exclude=[{name}]"


def _dates(path: Path, name: str, value: object) -> str:
    return (
        f"{path} has dates in {name!r}, such as {str(value)!r}: make numbers of them first, such as days since a first day or the hour, or"
        f" give exclude=[{name}] to leave the column out"
    )


@dataclass(frozen=True)
class Feature:
    """How one feature is made of a column; what was learned from training rows is kept, so that later rows are read alike.

    Args:
        column: its name.
        category: the text that it says yes to; None for a number.
        fill: what stands for a missing number; None where none was missing in training rows and holes are refused.
        mean, std: that it is standardised with.
    """

    column: str
    category: str | None
    fill: float | None
    mean: float = 0.0
    std: float = 1.0

    def of(self, column: Column) -> NDArray[np.float32]:
        """(n,) of a column that may have other categories; a category that is missing or new is none of them."""
        values = column.values
        if self.category is not None:
            place = column.categories.index(self.category) if self.category in column.categories else -1
            values = (values == place).astype(np.float64)
        elif self.fill is not None:
            values = np.where(np.isnan(values), self.fill, values)
        return ((values - self.mean) / self.std).astype(np.float32)


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a file tasks were read from, and how.

    Args:
        task, target: the columns of a row's task and target.
        features: how features are made of the others.
    """

    task: str
    target: str
    features: tuple[Feature, ...]


def learned(path: Path, columns: Sequence[Column], train: NDArray[np.bool_], *, fill: bool, standardise: bool) -> list[Feature]:
    """The features that columns give, by their training rows.

    Numbers: what is missing becomes the mean over the training rows, and with ``standardise`` all get mean 0 and standard deviation 1
    there. Categories: one feature for each that occurs in the training rows, 1 or 0 before standardising.

    Args:
        path: of the file, for messages.
        columns: what :func:`column_of` gave.
        train: (n,) which rows are for training.
        fill: whether holes are filled; if not they are refused.
        standardise: as above.

    Raises:
        DataError: there is a hole that may not be filled, or no training row to fill it by.
    """
    found: list[Feature] = []
    for column in columns:
        holes = np.isnan(column.values)
        if holes.any():
            row = int(np.flatnonzero(holes)[0]) + 1
            if not fill:
                raise DataError(f"{path} lacks a value in row {row} of {column.name!r}; fill it in, or give missing=mean")
            if holes[train].all() and column.kind == "number":  # so there is no mean
                raise DataError(
                    f"{path} lacks a value in row {row} of {column.name!r}, and has none in training rows; give exclude=[{column.name}]"
                )
        there = column.values[train & ~holes]
        if column.kind == "category":
            raw = [Feature(column.name, column.categories[int(place)], None) for place in np.unique(there)]
        else:
            raw = [Feature(column.name, None, float(there.mean()) if fill and len(there) else None)]
        found += [_standardised(one, column, train) if standardise else one for one in raw]
    return found


def _standardised(one: Feature, column: Column, train: NDArray[np.bool_]) -> Feature:
    own = one.of(Column(column.name, column.kind, column.values[train], column.categories)).astype(np.float64)
    if one.category is None:  # in double precision: an offset may be far larger than what varies
        own = np.where(np.isnan(column.values[train]), one.fill if one.fill is not None else np.nan, column.values[train])
    mean, std = float(own.mean()), float(own.std())
    return replace(one, mean=mean, std=std if std > 1e-12 * abs(mean) else 1.0)  # a constant column has nothing to scale


def features_of(path: Path, columns: Sequence[Column], features: Sequence[Feature]) -> tuple[NDArray[np.float32], int]:
    """(n, D) features of rows, and how many numbers were filled in.

    Args:
        path: of the file, for messages.
        columns: what :func:`column_of` gave, one of each name that a feature has.
        features: what :func:`learned` gave, from these rows or from others.

    Raises:
        DataError: a number is missing where none may be.
    """
    by_name = {column.name: column for column in columns}
    refused = {f.column for f in features if f.category is None and f.fill is None}
    filled = 0
    for column in columns:
        holes = np.isnan(column.values) if column.kind == "number" else np.zeros(0, bool)
        if holes.any() and column.name in refused:
            row = int(np.flatnonzero(holes)[0]) + 1
            raise DataError(f"{path} lacks a value in row {row} of {column.name!r}; fill it in")
        filled += int(holes.sum())
    parts = [feature.of(by_name[feature.column]) for feature in features]
    size = len(columns[0].values) if columns else 0
    return np.stack(parts, 1) if parts else np.zeros((size, 0), np.float32), filled
