"""Texts through an embedding: what is read from files, what is held out, what is checked — and unseen intents of CLINC150."""

from __future__ import annotations

import itertools
import json
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.data import Source, embedded
from headstart.data.sources.splitting import split_classes
from headstart.data.sources.texts import by_domain, read_text
from headstart.errors import ConfigError, DataError
from real import DATA

CLINC = DATA / "clinc150"
WORDS = "ant bee cat dog elk fox".split()  # noqa: SIM905
PAIRS = [(f"{word} number {i}", word) for i in range(4) for word in WORDS]
SPLITS = dict(zip(WORDS, ["train", "train", "val", "validation", "test", "test"], strict=True))


def bag_of_words(texts: list[str], width: int = 512) -> np.ndarray:
    """Words and neighbouring words, hashed."""
    out = np.zeros((len(texts), width), np.float32)
    for row, text in zip(out, texts, strict=True):
        words = text.lower().split()
        for token in [*words, *map(" ".join, itertools.pairwise(words))]:
            code = zlib.crc32(token.encode())
            row[code % width] += 1 if code & 1 << 31 else -1
    return out / np.linalg.norm(out, axis=1, keepdims=True).clip(1e-9)


def number(texts: list[str]) -> list[list[float]]:
    """A vector from which the text can be told."""
    return [[float(zlib.crc32(text.encode()) % 2**20), 1.0] for text in texts]


def members(source: Source) -> list[list[str]]:
    return [list(split.classes) for split in (source.train, source.validation, source.test)]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> str:
    return "\n".join(r.getMessage() for r in caplog.records if r.levelno == level)


def clinc(file: Path, **parts: Any) -> Path:
    """Every intent in every part, as CLINC150 has it."""
    content = {part: [[f"{word} of {part} {i}", word] for word in WORDS for i in range(2)] for part in ("val", "train", "test")}
    file.write_text(json.dumps(content | {"oos_train": [["what?", "oos"]], "oos_test": [["why?", "oos"], ["how?", "oos"]]} | parts))
    return file


@pytest.mark.parametrize("kind", [np.array, torch.tensor, list, lambda v: tuple(torch.tensor(one, requires_grad=True) for one in v)])
def test_vectors_stand_with_their_classes(kind: Callable[[Any], Any]) -> None:
    source = embedded(PAIRS, lambda texts: kind(number(texts)))
    assert members(source) == list(split_classes(WORDS).values())
    for split in (source.train, source.validation, source.test):
        assert split.examples.dtype == torch.float32
        want = [number([text])[0] for label in split.classes for text, own in PAIRS if own == label]
        assert split.examples.tolist() == want
        batch = hs.data.Episodes(split, ways=2, shots=1, queries=2, tasks=3).batch(0)
        assert batch.support_x.shape == (3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_numbers_of_any_type(dtype: torch.dtype) -> None:
    source = embedded(PAIRS, lambda texts: torch.ones(len(texts), 3, dtype=dtype))
    assert torch.equal(source.test.examples, torch.ones(8, 3))


def test_texts_are_given_in_batches_and_without_gradients() -> None:
    sizes = []
    layer = torch.nn.Linear(2, 3)
    texts = [(f"{word} {i}", word) for word in WORDS for i in range(100)]

    def embed(batch: list[str]) -> torch.Tensor:
        sizes.append(len(batch))
        out = layer(torch.tensor(number(batch)))
        assert not out.requires_grad
        return out

    source = embedded(texts, embed)
    assert sizes == [256, 256, 88]
    assert len(source.train) + len(source.validation) + len(source.test) == 600
    kept = np.zeros((256, 2), np.float32)  # a function that uses one array for all batches

    def again(batch: list[str]) -> np.ndarray:
        kept[: len(batch)] = number(batch)
        return kept[: len(batch)]

    assert torch.equal(embedded(texts, again).train.examples, embedded(texts, number).train.examples)


def test_splits_by_example_and_by_class(caplog: pytest.LogCaptureFixture) -> None:
    want = [["ant", "bee"], ["cat", "dog"], ["elk", "fox"]]
    assert members(embedded([(text, label, SPLITS[label]) for text, label in PAIRS], number)) == want
    assert members(embedded(PAIRS, number, splits=SPLITS)) == want
    numbered = [(text, WORDS.index(label)) for text, label in PAIRS]
    assert members(embedded(numbered, number, splits={WORDS.index(w): s for w, s in SPLITS.items()})) == [
        ["0", "1"],
        ["2", "3"],
        ["4", "5"],
    ]  # type: ignore[misc]
    assert not said(caplog)
    fewer = {k: s for k, s in SPLITS.items() if k not in ("cat", "dog")} | {"cat": "train", "dog": "train"}
    train, validation, test = members(embedded(PAIRS, number, splits=fewer))
    assert (len(train), len(validation), test) == (2, 2, ["elk", "fox"])
    pairs = [*PAIRS, ("gnu 1", "gnu"), ("gnu 2", "gnu")]
    assert members(embedded(pairs, number, splits=SPLITS)) == want
    assert "text: classes left out that splits does not list (1): gnu; add them" in said(caplog)


def test_what_occurs_twice_is_in_one_place_and_named(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [*PAIRS, ("Ant  NUMBER 0 ", "ant"), ("elk number 1", "ant"), (" ", "bee"), ("alone", "hen")]
    source = embedded(pairs, number, splits=SPLITS | {"hen": "test"}, name="animals")
    assert dict(zip(source.train.classes, source.train.counts, strict=True)) == {"ant": 5, "bee": 4}
    assert dict(zip(source.test.classes, source.test.counts, strict=True)) == {"elk": 3, "fox": 4}
    assert "texts left out that occur twice in their class (1): [24] 'Ant  NUMBER 0 ' = [0] 'ant number 0'" in said(caplog)
    assert "identical texts in two classes, perhaps mislabelled (1): [25] 'elk number 1' = [10] 'elk number 1'" in said(caplog)
    assert "texts left out that are empty (1): [26] of bee" in said(caplog)
    assert "classes left out with fewer than 2 usable texts (1): hen" in said(caplog)


def test_clinc150_pools_the_examples_and_splits_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    file = clinc(tmp_path / "data.json")
    source = embedded(file, number)
    assert members(source) == list(split_classes(WORDS).values())
    assert [set(s.counts) for s in (source.train, source.validation, source.test)] == [{6}] * 3
    assert "3 out-of-scope texts left out" in said(caplog, logging.INFO)
    assert {split for _, _, split in read_text(file)} == {None}


def test_tables_of_texts(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    lines = [f'"{text}, ""please""\nnow",{label},{SPLITS[label]}' for text, label in PAIRS]
    file.write_text("\r\n".join(["\ufefftext,label,split", *lines]), encoding="utf-8", newline="")
    assert read_text(file)[0] == ('ant number 0, "please"\nnow', "ant", "train")
    assert members(embedded(str(file), number)) == [["ant", "bee"], ["cat", "dog"], ["elk", "fox"]]
    file.write_text("source,label,text\n" + "".join(f"web,{label},{text}\u2028it is\n" for text, label in PAIRS))
    assert read_text(file)[1] == ("bee number 0\u2028it is", "bee", None)
    assert len(embedded(file, number).train.classes) == 2


def test_the_cache_belongs_to_its_name_and_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    calls = []

    def embed(texts: list[str]) -> list[list[float]]:
        calls.append(len(texts))
        return number(texts)

    first = embedded(PAIRS, embed, cache="number 1")
    again = embedded(PAIRS, embed, cache="number 1", seed=1)
    assert calls == [24]
    assert members(first) != members(again)
    embedded(PAIRS, embed, cache="number 2")
    embedded([*PAIRS, ("ant number 5", "ant")], embed, cache="number 1")
    for _ in range(2):
        embedded(PAIRS, embed)
    assert calls == [24, 24, 25, 24, 24]
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 3
    with pytest.raises(DataError):
        embedded(PAIRS, lambda texts: np.full((len(texts), 2), np.nan), cache="broken")
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 3


@pytest.mark.parametrize(
    ("embed", "message"),
    [
        (lambda texts: [1.0] * len(texts), r"embed gave shape \(256,\) for 256 texts; it must give \(256, D\)"),
        (lambda texts: np.ones((len(texts), 2, 2)), r"gave shape \(256, 2, 2\)"),
        (lambda texts: np.ones((len(texts) - 1, 2)), r"gave shape \(255, 2\)"),
        (lambda texts: np.ones((len(texts), 0)), r"gave shape \(256, 0\)"),
        (lambda texts: [], r"gave shape \(0,\)"),
        (lambda texts: np.ones((len(texts), len(texts))), r"length 256 first, and of 44 for texts from 256 on"),
        (lambda texts: [[float("nan") if t == "bee 3" else 0.0] for t in texts], r"too large values for 1 texts: \[53\] 'bee 3'; correct"),
        (lambda texts: np.full((len(texts), 2), 1e300), r"too large values for 256 texts: \[0\] 'ant 0'"),
        (lambda texts: [["a"]] * len(texts), r"embed gave no numbers .* list \(values of type <U1\)"),
        (lambda texts: [[1.0], [1.0, 2.0]] * (len(texts) // 2), r"embed gave no numbers"),
        (lambda texts: None, r"embed gave no numbers .* NoneType"),
        (lambda texts: {"input_ids": 1}, r"embed gave no numbers .* dict"),
        (lambda texts: torch.ones(len(texts), 2, dtype=torch.complex64), r"values of type complex64"),
        (lambda texts: [torch.ones(2), torch.ones(3)], r"embed gave no numbers"),
    ],
)
def test_embeddings_that_cannot_be_used(embed: Callable[[list[str]], Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        embedded([(f"{word} {i}", word) for word in WORDS for i in range(50)], embed)
    assert str(error.value).startswith("text: ")


@pytest.mark.parametrize(
    ("pairs", "splits", "message"),
    [
        ([], None, r"there are no texts"),
        ([("", "a")], None, r"there are no texts"),
        (["ab"], None, r"example 0 is 'ab'; give \(text, label\)"),
        ([("a",)], None, r"example 0 is \('a',\); give"),
        ([(1, "a")], None, r"the text must be text"),
        ([("a", None)], None, r"example 0 is \('a', None\); the text must be text, and the label"),
        ([("a", " ")], None, r"and the label text or a whole number"),
        ([("a", "b", "trian")], None, r"has the split 'trian'; use 'train'"),
        ([*PAIRS, ("x", "ant", "train")], None, r"24 of 25 examples have no split; give one to each, or to none"),
        ([(t, c, "train" if "0" in t else "test") for t, c in PAIRS], None, r"class 'ant' is in both train and test; the splits must"),
        ([(t, c, "train") for t, c in PAIRS], None, r"no class is given for test"),
        (PAIRS, {"ant": "trian"}, r"splits holds 'trian'"),
        (PAIRS, {"ant": "train", "gnu": "test"}, r"no text has a class that splits lists \(1\): gnu"),
        (PAIRS, {"ant": "train"}, r"no class is given for test"),
        (PAIRS[:5], None, r"0 usable classes; for train"),
        ([p for p in PAIRS if p[1] != "fox"], None, r"5 usable classes: ant, bee, cat, dog, elk; for train"),
        (PAIRS, {w: "test" if w == "fox" else "train" for w in WORDS}, r"1 usable classes for test: fox"),
    ],
)
def test_examples_that_cannot_be_used(pairs: list[Any], splits: dict[str, str] | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        embedded(pairs, number, splits=splits)
    assert str(error.value).startswith("text: ")


def test_too_few_classes_are_said_before_the_work() -> None:
    with pytest.raises(DataError, match="5 usable classes"):
        embedded([p for p in PAIRS if p[1] != "fox"], lambda texts: pytest.fail("embedded"))


def test_arguments_of_another_kind() -> None:
    with pytest.raises(ConfigError, match="embed='e5': give a function"):
        embedded(PAIRS, "e5")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cache='': give a name"):
        embedded(PAIRS, number, cache="")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json is damaged, or not JSON"),
        ("a.json", "[1]", r'holds a list; it should be \{"train"'),
        ("a.json", '{"trian": []}', r"has a part 'trian'"),
        ("a.json", '{"train": [["a", "b", "c"]]}', r"train\[0\] is \['a', 'b', 'c'\]; it should be \[text, label\]"),
        ("a.json", '{"train": [["a", "b"], ["a", 1]]}', r"train\[1\] is"),
        ("a.json", '{"train": "ab"}', r"train\[0\] is 'ab'"),
        ("a.json", '{"oos_train": [["a", "oos"]]}', r"holds no texts"),
        ("a.csv", "", r"a\.csv has the columns none"),
        ("a.csv", "utterance,intent\na,b\n", r"has the columns 'utterance', 'intent'; it needs 'text' and 'label'"),
        ("a.csv", "text,label\n", r"holds no texts"),
        ("a.csv", "text,label\nno, thanks,b\n", r"a\.csv, line 2: more than 2 cells; put texts with commas"),
        ("a.csv", "text,label\na\n", r"line 2: fewer than 2 cells"),
        ("a.csv", 'text,label\n"a,b\n', r"is not a CSV file that can be read"),
        ("a.csv", "text,label,split\na,b,tset\n", r"has the split 'tset'"),
        ("a.csv", "text,label\na,\n", r"and the label text"),
        ("a.csv", "text,label\n\udcff,a\n", r"a\.csv is not text in UTF-8"),
        ("", "", r"cannot be read \(.*\); give a \.json or \.csv"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: str, message: str, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / name)


def test_whole_domains_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "domains.json"
    file.write_text(json.dumps({"pets": ["cat", "dog"], "wild": ["elk", "fox"], "small": ["ant", "bee"]} | {d: [d] for d in "xyz"}))
    splits = by_domain(file)
    assert splits["cat"] == splits["dog"]
    assert splits["elk"] == splits["fox"]
    assert sorted(set(splits.values())) == ["test", "train", "validation"]
    assert any(by_domain(file, seed) != splits for seed in range(1, 5))
    for content, message in (
        ("{", "cannot be read as JSON"),
        ('{"a": "b"}', "should hold {domain"),
        ("[]", "should hold {domain"),
        ('{"a": ["x", "y"], "b": ["y"]}', r"listed more than once \(1\): y"),
        ('{"a": ["x", "y"]}', r"the domains of .*: 1 usable classes: a; for"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=message):
            by_domain(file)


@pytest.mark.parametrize("domains", [False, True])
def test_prototypes_of_unseen_intents_beat_chance(domains: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not CLINC.exists():
        pytest.skip(f"CLINC150 is not at {CLINC}")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    splits = by_domain(CLINC / "domains.json") if domains else None
    source = embedded(CLINC / "data_small.json", bag_of_words, splits=splits, name="clinc150")
    assert sum(map(len, members(source))) == 150
    assert not set(source.train.classes) & set(source.test.classes)
    if domains:
        assert [len(m) for m in members(source)] == [60, 45, 45]
    own = hs.protonet(hs.models.mlp(512, 5, hidden=(256,)))
    result = hs.evaluate(own, source.test, shots=5, episodes=200)
    assert result.mean - result.ci95 > 0.6  # chance is 0.2, and the projection is untrained
    torch.manual_seed(0)
    x = source.test.examples
    shuffled = hs.data.Split(x[torch.randperm(len(x))], source.test.classes, source.test.counts, "test")
    chance = hs.evaluate(own, shuffled, shots=5, episodes=200)
    assert abs(chance.mean - 0.2) < 3 * chance.ci95
