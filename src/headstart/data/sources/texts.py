"""Texts through an embedding that the user brings: whole classes held out, each text turned into a vector once.

Two kinds of file are read: the JSON of CLINC150, ``{"train": [[text, intent], …], "val": …, "test": …, "oos_train": …}``, and CSV
with the columns ``text``, ``label`` and optionally ``split``. The parts of CLINC150 divide the examples of every intent; few-shot
learning needs other classes at test, so they are pooled, and the classes are split anew.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.container import parsed
from headstart.data.files.cache import cached
from headstart.data.source import Source
from headstart.data.sources.embedding import embedder
from headstart.data.sources.splitting import LEAST_EXAMPLES, SPELLINGS, Labelled, assemble, some, split_classes, warn
from headstart.errors import ConfigError, DataError

log = logging.getLogger("headstart")
Example: TypeAlias = tuple[str, str, str | None]
BATCH = 256
OUT_OF_SCOPE = "oos"


def load(
    path: Path,
    *,
    embed: str = "words",
    text: str = "text",
    label: str = "label",
    domains: str | None = None,
    seed: int = 0,
    standardise: bool | None = None,
) -> Source:
    """The data source ``texts:FILE``: texts with labels, as vectors.

    Args:
        path: the file, as for :func:`read_text`.
        embed: what makes vectors of texts, as for :func:`~headstart.data.sources.embedding.embedder`.
        text, label: columns of a CSV.
        domains: a file for :func:`by_domain`.
        seed: of the choice of classes or domains for each split, where the file does not make it.
        standardise: whether the vectors are standardised by the training classes; None for all but those of words, which have length 1
            and lose by it (docs/choosing.md).

    Raises:
        DataError, ConfigError: as those functions.
    """
    standardise = embed != "words" if standardise is None else standardise
    function, key = embedder(embed)
    splits = by_domain(domains, seed) if domains else None
    examples = read_text(path, text, label)
    return embedded(examples, function, splits=splits, name=f"texts:{path}", seed=seed, cache=key, standardise=standardise)


def read_text(path: str | Path, text: str = "text", label: str = "label") -> list[Example]:
    """Texts, labels and splits (None where the file gives none for classes) from a JSON or CSV file, as the module's text says.

    Args:
        path: the file; ``.json`` is JSON, all else CSV (UTF-8, with a header).
        text, label: columns of a CSV.

    Raises:
        DataError: the file is missing, damaged or not of these kinds.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.csv")
        >>> _ = file.write_text("text,label\\nwake me at six,alarm\\n")
        >>> read_text(file)
        [('wake me at six', 'alarm', None)]
    """
    path = Path(path).expanduser()
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a .json or .csv file of texts") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error
    examples = _json(path, content) if path.suffix.lower() == ".json" else _csv(path, content, text, label)
    if not examples:
        raise DataError(f"{path} holds no texts; give each a line")
    return examples


def by_domain(path: str | Path, seed: int = 0) -> dict[str, str]:
    """The split of each class such that whole domains are held out, by 64/16/20 %; for ``splits`` of :func:`embedded`.

    Args:
        path: a JSON file ``{domain: [class, …], …}``, such as ``domains.json`` of CLINC150.
        seed: of the choice of domains.

    Raises:
        DataError: the file is not like that, a class is in two domains, or there are not two domains for each split.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "domains.json")
        >>> _ = file.write_text(json.dumps({domain: [domain + "1", domain + "2"] for domain in "abcdef"}))
        >>> [label for label, split in by_domain(file).items() if split == "test"]
        ['e1', 'e2', 'f1', 'f2']
    """
    path = Path(path).expanduser()
    try:
        domains = parsed(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); give a file of domains and their classes") from error
    listed = isinstance(domains, dict) and all(isinstance(c, list) and all(isinstance(n, str) for n in c) for c in domains.values())
    if not listed:
        raise DataError(f"{path} should hold {{domain: [class, …], …}}; write each domain's classes so")
    twice = sorted(name for name, count in Counter(name for classes in domains.values() for name in classes).items() if count > 1)
    if twice:
        raise DataError(f"{path}: classes that are listed more than once ({len(twice)}): {some(twice)}; each belongs to one domain")
    parts = split_classes(domains, seed, source=f"the domains of {path}")
    place = {domain: part for part, members in parts.items() for domain in members}
    return {name: place[domain] for domain, classes in domains.items() for name in classes}


def embedded(
    examples: str | Path | Iterable[Sequence[Any]],
    embed: Callable[[list[str]], Any],
    *,
    splits: Mapping[str, str] | None = None,
    name: str = "text",
    seed: int = 0,
    cache: str | None = None,
    standardise: bool = True,
) -> Source:
    """Texts as a source of vectors, from any function that turns texts into vectors.

    Texts that differ in case and white space only count as identical: of one class, one is kept; of two classes in two splits, the one
    of the earlier split. What is left out is named in warnings.

    Args:
        examples: a file for :func:`read_text`, or (text, label) or (text, label, split) for each example; the split must be the same
            for all examples of a class.
        embed: takes a list of up to 256 texts and gives an (n, D) tensor, array or list of vectors; called without gradients.
        splits: the split of each class, "train", "validation" or "test"; others are left out. None for those of ``examples``, or if
            there are none for 64/16/20 % of the classes. Where there is no validation, some of the training classes are taken.
        name: what to call the source.
        seed: of the choice of classes.
        cache: a name for ``embed`` — another one for every model, and every version of it — under which its vectors are kept for
            these texts; None to keep nothing.
        standardise: whether the vectors are standardised by the training classes.

    Raises:
        DataError: an example is not like that, splits contradict each other, there are too few classes, or ``embed`` gives something
            other than a vector of finite numbers, always of one length, for each text.
        ConfigError: ``embed`` or ``cache`` is not of its kind.

    Example:
        >>> texts = [(f"{word} number {i}", word) for word in "ant bee cat dog elk fox".split() for i in range(5)]
        >>> print(embedded(texts, lambda batch: [[ord(text[0]), len(text)] for text in batch]))
        text: 2 train classes (10 examples), 2 validation classes (10 examples), 2 test classes (10 examples)
    """
    if not callable(embed):
        raise ConfigError(f"embed={embed!r}: give a function that takes a list of texts and gives a vector for each")
    if cache is not None and (not isinstance(cache, str) or not cache):
        raise ConfigError(f"cache={cache!r}: give a name of the embedding, such as 'MiniLM-L6 of 2024', or None")
    whole = read_text(examples) if isinstance(examples, str | Path) else [_example(name, i, one) for i, one in enumerate(examples)]
    shown = [f"[{i}] {text[:40]!r}" for i, (text, _, _) in enumerate(whole)]
    rows = [i for i, (text, _, _) in enumerate(whole) if text.strip()]
    empty = [f"[{i}] of {label}" for i, (text, label, _) in enumerate(whole) if not text.strip()]
    warn(name, "texts left out that are empty", empty, "write them")
    if not rows:
        raise DataError(f"{name}: there are no texts; give pairs of a text and its label")
    texts, labels = [whole[i][0] for i in rows], [whole[i][1] for i in rows]
    given = _of_classes(name, [whole[i] for i in rows]) if splits is None else _listed(name, splits, labels)
    classes = [label if given is None or label in given else None for label in labels]
    alike = [" ".join(text.casefold().split()) for text in texts]
    if given is None:  # before the work: with too few classes there will be no split
        sizes = Counter(label for label, _ in set(zip(labels, alike, strict=True)))
        split_classes([label for label, size in sizes.items() if size >= LEAST_EXAMPLES], seed, source=name)
    if cache is None:
        vectors = _embed(name, texts, embed)
    else:
        key = hashlib.sha256(json.dumps([cache, texts]).encode()).hexdigest()[:32]
        note = f"{name}: embedding {len(texts)} texts (once) ..."
        vectors = cached(f"text-1-{key}", lambda: {"vectors": _embed(name, texts, embed)}, note=note)["vectors"]
    return assemble(Labelled(name, vectors, classes, [shown[i] for i in rows], alike, "texts", standardise), given, seed)


def _json(path: Path, content: str) -> list[Example]:
    try:
        parts = parsed(content)
    except ValueError as error:
        raise DataError(f"{path} is damaged, or not JSON ({error}); fetch it again") from error
    if not isinstance(parts, dict):
        raise DataError(f'{path} holds a {type(parts).__name__}; it should be {{"train": [[text, label], …], "val": …, "test": …}}')
    examples: list[Example] = []
    left_out = 0
    for part, pairs in parts.items():
        if part.partition("_")[0] != OUT_OF_SCOPE and part not in SPELLINGS:
            raise DataError(f"{path} has a part {part!r}; it should be train, val, test, or begin with oos_")
        for i, pair in enumerate(pairs if isinstance(pairs, list) else [pairs]):
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) for one in pair)):
                raise DataError(f"{path}: {part}[{i}] is {_short(pair)}; it should be [text, label]")
            if part.partition("_")[0] == OUT_OF_SCOPE or pair[1] == OUT_OF_SCOPE:
                left_out += 1  # out of scope is no class: its texts have nothing in common
            else:
                examples.append((pair[0], pair[1], None))
    if left_out:
        log.info("%s: %d out-of-scope texts left out, which are no class", path, left_out)
    return examples


def _csv(path: Path, content: str, text: str, label: str) -> list[Example]:
    examples: list[Example] = []
    try:
        reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
        columns = reader.fieldnames or []
        if not {text, label} <= set(columns):
            have = ", ".join(map(repr, columns)) or "none"
            raise DataError(f"{path} has the columns {have}; it needs {text!r} and {label!r}, or say which: text=…,label=…")
        for row in reader:
            if None in row or None in row.values():
                more = "more" if None in row else "fewer"
                raise DataError(f"{path}, line {reader.line_num}: {more} than {len(columns)} cells; put texts with commas into quotes")
            examples.append((row[text], row[label], row.get("split") or None))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file that can be read ({error}); save it again") from error
    return [_example(str(path), i, example) for i, example in enumerate(examples)]


def _example(source: str, i: int, example: Any) -> Example:
    if isinstance(example, str) or not isinstance(example, Sequence) or len(example) not in (2, 3):
        raise DataError(f"{source}: example {i} is {_short(example)}; give (text, label) or (text, label, split)")
    text, label = example[:2]
    if not isinstance(text, str) or isinstance(label, bool) or not isinstance(label, str | int | np.integer) or not str(label).strip():
        raise DataError(f"{source}: example {i} is {_short(example)}; the text must be text, and the label text or a whole number")
    split = example[2] if len(example) == 3 else None
    if split is not None and split not in SPELLINGS:
        raise DataError(f"{source}: example {i} has the split {split!r}; use 'train', 'validation' or 'test', or leave it out for all")
    return text, str(label), split


def _of_classes(source: str, examples: Sequence[Example]) -> dict[str, str] | None:
    """The split of each class by those of its examples; None if there are none."""
    without = sum(split is None for _, _, split in examples)
    if without == len(examples):
        return None
    if without:
        raise DataError(f"{source}: {without} of {len(examples)} examples have no split; give one to each, or to none")
    given: dict[str, str] = {}
    for _, label, split in examples:
        part = SPELLINGS[str(split)]
        if given.setdefault(label, part) != part:
            raise DataError(
                f"{source}: class {label!r} is in both {given[label]} and {part}; the splits must hold different classes — leave"
                " split out, and whole classes are held out"
            )
    _check_needed(source, given)
    return given


def _listed(source: str, splits: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    unknown = sorted({str(part) for part in splits.values() if part not in SPELLINGS})
    if unknown:
        raise DataError(f"{source}: splits holds {some(map(repr, unknown))}; use 'train', 'validation' or 'test'")
    given = {str(label): SPELLINGS[part] for label, part in splits.items()}
    absent = sorted(set(given) - set(labels))
    if absent:
        raise DataError(f"{source}: no text has a class that splits lists ({len(absent)}): {some(absent)}; correct splits")
    _check_needed(source, given)
    warn(source, "classes left out that splits does not list", sorted(set(labels) - set(given)), "add them to splits")
    return given


def _check_needed(source: str, given: Mapping[str, str]) -> None:
    missing = {"train", "test"} - set(given.values())
    if missing:
        raise DataError(f"{source}: no class is given for {' and '.join(sorted(missing))}; give some, or leave the splits out")


def _embed(source: str, texts: Sequence[str], embed: Callable[[list[str]], Any]) -> NDArray[np.float32]:
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), BATCH):
        batch = list(texts[start : start + BATCH])
        with torch.no_grad():
            part = _vectors(source, embed(batch))
        if part.ndim != 2 or len(part) != len(batch) or not part.shape[1]:
            raise DataError(f"{source}: embed gave shape {part.shape} for {len(batch)} texts; it must give ({len(batch)}, D)")
        if parts and part.shape[1] != parts[0].shape[1]:
            was = parts[0].shape[1]
            raise DataError(f"{source}: embed gave vectors of length {was} first, and of {part.shape[1]} for texts from {start} on")
        bad = np.flatnonzero(~np.isfinite(part).all(1))
        if len(bad):
            shown = some(f"[{start + i}] {batch[i][:40]!r}" for i in bad)
            raise DataError(f"{source}: embed gave NaN, infinite or too large values for {len(bad)} texts: {shown}; correct it")
        parts.append(part)
    return np.concatenate(parts)


def _vectors(source: str, output: Any) -> NDArray[np.float32]:
    """32-bit floats of whatever kind of array it is, as a copy: the function may use its own again."""
    try:
        if isinstance(output, list | tuple) and output and isinstance(output[0], torch.Tensor):
            output = torch.stack(list(output))
        if isinstance(output, torch.Tensor):
            output = output.detach().cpu()
            output = (output.float() if output.dtype == torch.bfloat16 else output).numpy()  # which NumPy does not have
        array = np.asarray(output)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"values of type {array.dtype}")
        with np.errstate(over="ignore"):
            return np.array(array, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{source}: embed gave no numbers for texts, but {type(output).__name__} ({error}); give (n, D) floats") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
