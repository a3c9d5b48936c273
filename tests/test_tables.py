from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart.data.samplers.tables import Kind, TableEpisodes, TableTasks
from headstart.data.samplers.waves import Sinusoid
from headstart.data.sources.tables import fsmol, read_table
from headstart.errors import ConfigError, DataError

FSMOL = Path(__file__).parents[2] / "shared" / "data" / "fsmol" / "fsmol.npz"


def write(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def table(counts: list[int], labels: Any = None, kind: Kind = "classification") -> TableTasks:
    """Tasks whose one feature is the number of the row."""
    n = sum(counts)
    y = np.arange(n) % 2 if labels is None else np.asarray(labels)
    return TableTasks(
        np.arange(n, dtype=np.float32)[:, None], y, counts, [f"t{i}" for i in range(len(counts))], ["train"] * len(counts), kind
    )


def test_a_csv_becomes_tasks(tmp_path: Path) -> None:
    """Rows of a task are brought together; features are standardised by the training rows, computed here by hand."""
    text = '\ufefftask,b,y,a,split\nq,1,2,5,train\np,9,10,0.5,test\nq,3,10,5,train\n"p",True,2,0.5,TEST\n\nr,0,2,5,valid\n'
    got = read_table(write(tmp_path, text))
    assert (got.kind, list(got.classes), list(got.names), list(got.splits)) == (
        "classification",
        [2, 10],
        ["p", "q", "r"],
        ["test", "train", "validation"],
    )
    # b is 1 and 3 in training: mean 2, standard deviation 1. a is 5 there: constant, so it is only centred.
    np.testing.assert_array_equal(got.features, np.array([[7, -4.5], [-1, -4.5], [-1, 0], [1, 0], [-2, 0]], np.float32))
    assert got.target.tolist() == [1, 0, 0, 1, 0]
    assert got.train.ranges.tolist() == [[2, 4]]
    assert got.test.ranges.tolist() == [[0, 2]]
    assert got.validation.names == ["r"]
    raw = read_table(write(tmp_path, text), features=["a", "b"], standardise=False, kind="regression")
    np.testing.assert_array_equal(raw.features[:2], np.array([[0.5, 9], [0.5, 1]], np.float32))
    assert raw.target.tolist() == [10, 2, 2, 10, 2]


@pytest.mark.parametrize(
    ("targets", "kind", "classes"),
    [
        (["0", "1", "1"], "classification", [0, 1]),
        (["no", "yes", "3"], "classification", [3, "no", "yes"]),
        (["True", "False", "True"], "classification", ["False", "True"]),
        (["1.0", "2.0", "1.0"], "regression", []),
        ([str(i) for i in range(20)], "classification", list(range(20))),
        ([str(i) for i in range(21)], "regression", []),
    ],
)
def test_the_kind_follows_the_targets(targets: list[str], kind: str, classes: list[Any], tmp_path: Path) -> None:
    got = read_table(write(tmp_path, "task,x,y\n" + "".join(f"a,{i},{y}\n" for i, y in enumerate(targets))))
    assert (got.kind, list(got.classes)) == (kind, classes)
    assert got.target.dtype == (np.int64 if classes else np.float32)


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("", {}, "is empty"),
        ("task,x,y\n", {}, "is empty"),
        ("task,x,x,y\na,1,2,3\n", {}, "two columns 'x'"),
        ("name,x,y\na,1,2\n", {}, "no column 'task', but 'name', 'x', 'y'"),
        ("task,x,y\na,1,2\n", {"features": ["z"]}, "no column 'z'"),
        ("task,y\na,1\n", {}, "no feature columns"),
        ("task,x,y\na,1,2\na,1\n", {}, "2 cells in row 2, but 3 columns"),
        ("task,x,y\na,1,2\na,red,2\n", {}, "'red' in row 2 of 'x'"),
        ("task,x,y\na,1,2\na,1e999,2\n", {}, "inf in row 2 of 'x'"),
        ("task,x,z,y\na,1,1,2\na,1,,2\n", {"missing": "refuse"}, r"row 2 of 'z'.*missing=mean"),
        ("task,x,z,y\na,1,,2\na,1,NaN,2\n", {"missing": "mean"}, r"row 1 of 'z'.*exclude=.z"),
        ("task,x,y\na,1,\n", {}, "row 1 of 'y'"),
        ("task,x,y\n,1,2\n", {}, "row 1 of 'task'"),
        ("task,x,y\na,1,1.5\na,1,nan\n", {}, "nan in row 2 of 'y'"),
        ("task,x,y\na,1,1.5\na,1,b\n", {}, "'b' in row 2 of 'y'.*classification"),
        ("task,split,x,y\na,train,1,1\na,test,1,1\n", {}, "'test' in row 2 of 'split'; rows of its task"),
        ("task,split,x,y\na,dev,1,1\n", {}, "'dev' in row 1 of 'split'; use one of"),
        ("task,split,x,y\na,test,1,1\n", {}, "no training rows"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(text: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read_table(write(tmp_path, text), **options)


ODD = (
    "a;40;f;True;2024-01-02;7;one\na;?;m;False;2024-01-03;8;two\na;60;;True;2024-01-04;7;three\n"
    "b;50;d;NA;2024-02-01;9;four\nb;70;f;False;2024-02-02;7;five\n"
)


def odd_table(folder: Path) -> Path:
    names = ["clinic", "age", "sex", "smoker", "visit", "code", "note # [1], x", "y"]
    return write(folder, "\n".join([";".join(names), *(f"{row};{i}" for i, row in enumerate(ODD.splitlines()))]) + "\n")


def test_odd_columns_become_features_or_are_refused_with_the_way_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By hand: tasks a is for training, b for test; the mean age there is 50; d and 9 do not occur in training."""
    path = odd_table(tmp_path)
    text = path.read_text().replace("clinic", "split;clinic", 1).replace("\na;", "\ntrain;a;").replace("\nb;", "\ntest;b;")
    path.write_text(text)
    options: dict[str, Any] = {"task": "clinic", "kind": "regression", "standardise": False}
    with pytest.raises(DataError, match=r"dates in 'visit', such as '2024-01-02'.*exclude=\[visit\]"):
        read_table(path, **options)
    note = "note # [1], x"
    got = read_table(path, exclude=["visit", note], **options)
    # age, f, m, smoker, code
    expected = [[40, 1, 0, 1, 7], [50, 0, 1, 0, 8], [60, 0, 0, 1, 7], [50, 0, 0, 0.5, 9], [70, 1, 0, 0, 7]]
    np.testing.assert_allclose(got.features, np.array(expected) + np.array([0, 0, 0, 1, 0]) * [[0], [0], [0], [1 / 6], [0]], rtol=1e-6)
    assert "2 missing values" in caplog.text
    coded = read_table(path, features=["code"], categorical="code", **options)
    np.testing.assert_array_equal(coded.features, [[1, 0], [0, 1], [1, 0], [0, 0], [1, 0]])
    assert read_table(path, features="age", **options).features.shape == (5, 1)
    assert read_table(path, features=[note, "age"], **options).features.shape == (5, 4)
    with pytest.raises(DataError, match="no column 'nope'"):
        read_table(path, exclude=["nope"], **options)


def test_all_columns_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    lines = [f"{i % 4},{i},2024-01-{i % 28 + 1:02},words {i} of its own,{i / 3}" for i in range(60)]
    (tmp_path / "a.csv").write_text("task,target,visit,note,x\n" + "\n".join(lines))
    with pytest.raises(DataError, match=r"dates in 'visit'.*; .*60 different texts in 'note'"):
        read_table(tmp_path / "a.csv", target="target")
    with pytest.raises(DataError, match=r"no column 'where', but .*; say which to use: --data-options task=COLUMN,target=COLUMN"):
        read_table(tmp_path / "a.csv", task="where")


def test_long_texts_and_other_dates_are_refused(tmp_path: Path) -> None:
    words = write(tmp_path, "task,x,y\n" + "".join(f"a,text number {i},{i % 2}\n" for i in range(60)))
    with pytest.raises(DataError, match=r"60 different texts in 'x', such as 'text number 0'.*categorical=\[x\]"):
        read_table(words)
    days = write(tmp_path, "task,x,y\n" + "".join(f"a,{i + 1}.3.2024,{i % 2}\n" for i in range(20)))
    with pytest.raises(DataError, match="dates in 'x', such as"):
        read_table(days)


@pytest.mark.parametrize(("targets", "kind", "classes"), [("0.0 1.0 1.0", "classification", [0, 1]), ("0.0 1.0 0.5", "regression", [])])
def test_zero_and_one_are_classes_however_they_are_written(targets: str, kind: str, classes: list[int], tmp_path: Path) -> None:
    got = read_table(write(tmp_path, "split,task,x,y\n" + "".join(f"train,a,{i},{y}\n" for i, y in enumerate(targets.split()))))
    assert (got.kind, list(got.classes)) == (kind, classes)


def test_files_that_are_no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_table(tmp_path / "nowhere.csv")
    (tmp_path / "b.csv").write_bytes(b"task,x,y\n\xff,1,2\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_table(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="median"):
        read_table(tmp_path / "b.csv", missing="median")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'headstart\[tables\]'"):
        read_table(tmp_path / "a.parquet")


def test_missing_features_become_training_means(tmp_path: Path) -> None:
    text = "task,split,x,y\na,train,1,0\na,train,,1\na,train,5,0\nb,test,NA,1\n"
    got = read_table(write(tmp_path, text), missing="mean", standardise=False)
    assert got.features[:, 0].tolist() == [1, 3, 5, 3]
    scaled = read_table(write(tmp_path, text), missing="mean").features[:, 0]
    np.testing.assert_allclose(scaled, np.array([-2, 0, 2, 0]) / math.sqrt(8 / 3), rtol=1e-6)


def test_tasks_are_split_by_the_seed_and_not_by_the_order_of_rows(tmp_path: Path) -> None:
    rows = [f"t{i:02},{i},{i % 3}\n" for i in range(50)]
    first = read_table(write(tmp_path, "task,x,y\n" + "".join(rows)))
    assert [len(v.names) for v in (first.train, first.validation, first.test)] == [32, 8, 10]
    assert read_table(write(tmp_path, "task,x,y\n" + "".join(rows[::-1]))).splits == first.splits
    assert read_table(write(tmp_path, "task,x,y\n" + "".join(rows)), seed=1).splits != first.splits


@pytest.mark.parametrize(("tasks", "sizes"), [(2, [2, 0, 0]), (3, [1, 1, 1]), (4, [2, 1, 1]), (9, [6, 1, 2]), (100, [64, 16, 20])])
def test_every_split_has_a_task_where_there_are_three(tasks: int, sizes: list[int], tmp_path: Path) -> None:
    got = read_table(write(tmp_path, "task,x,y\n" + "".join(f"t{i},{i},{i % 2}\n" for i in range(tasks))))
    assert [len(v.names) for v in (got.train, got.validation, got.test)] == sizes


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {
        "task": ["a", "b", "a"],
        "split": ["train", "test", "train"],
        "x": [1.5, None, 3.0],
        "flag": [True, False, True],
        "y": [0, 1, 1],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    text = ",".join(columns) + "\n" + "".join(",".join("" if v is None else str(v) for v in row) + "\n" for row in zip(*columns.values()))  # noqa: B905
    a, b = (read_table(p, missing="mean") for p in (tmp_path / "t.parquet", write(tmp_path, text)))
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.target, b.target)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="bad"):
        read_table(tmp_path / "bad.parquet")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_episodes_draw_distinct_rows_of_one_task_with_their_targets(kind: Kind) -> None:
    own = table([9, 14, 7, 30], np.arange(60) % 3, kind)
    sampler = TableEpisodes(own.train, support=5, queries=6, tasks=4, seed=3)
    starts = own.train.ranges
    for index in range(20):
        tasks = sampler.batch(index)
        assert tasks.ways == (3 if kind == "classification" else None)
        assert tasks.support.index.shape == (4, 5)
        seen = set()
        for t in range(4):
            real = torch.ones(6) if tasks.query.weight is None else tasks.query.weight[t] > 0
            rows = torch.cat([tasks.support_x[t, :, 0], tasks.query_x[t, real > 0, 0]]).long()
            y = torch.cat([tasks.support_y[t], tasks.query_y[t, real > 0]])
            assert len(rows.unique()) == len(rows)
            task = next(i for i, (a, b) in enumerate(starts) if a <= rows[0] < b)
            seen.add(task)
            assert bool(((starts[task][0] <= rows) & (rows < starts[task][1])).all())
            assert len(rows) == 5 + min(6, own.counts[task] - 5)
            assert torch.equal(y.long(), rows % 3)
        assert len(seen) == 4
        again = TableEpisodes(own.train, support=5, queries=6, tasks=4, seed=3).batch(index)
        assert torch.equal(again.examples, tasks.examples)
    assert not torch.equal(sampler.batch(0).examples, sampler.batch(1).examples)


def test_short_query_sets_have_weights_and_equal_ones_none() -> None:
    tasks = TableEpisodes(table([7, 15]).train, support=5, queries=8, tasks=2).batch(0)
    assert tasks.query.weight is not None
    short = int((tasks.query.weight > 0).sum(1).argmin())
    assert sorted(tasks.query.weight[short].tolist()) == [0] * 6 + [0.5] * 2
    assert TableEpisodes(table([7, 15]).train, support=5, queries=2, tasks=2).batch(0).query.weight is None


def test_the_support_has_every_label_in_proportion() -> None:
    """One of 60 rows is of class 0, 20 of class 1 and 39 of class 2; which rows stand in the support is uniform within a class."""
    own = table([60], [0] + [1] * 20 + [2] * 39)
    times = np.zeros(60)
    for index in range(400):
        tasks = TableEpisodes(own.train, support=12, queries=48, tasks=1).batch(index)
        counts = np.bincount(tasks.support_y[0].numpy(), minlength=3)
        assert counts[0] == 1
        assert counts[1] in (3, 4, 5)
        times[tasks.support_x[0, :, 0].long()] += 1
    assert np.ptp(times[1:21]) < 6 * np.sqrt(times[1:21].mean())
    assert np.ptp(times[21:]) < 6 * np.sqrt(times[21:].mean())


def test_tasks_that_cannot_be_used_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    own = table([4, 6, 6, 5], [0, 1, 0, 1] + [1] * 6 + [0, 1] * 3 + [0, 1, 0, 1, 0])
    sampler = TableEpisodes(own.train, support=4, queries=2, tasks=2)
    assert sampler.ranges.tolist() == [[10, 16], [16, 21]]
    assert "2 of 4 train tasks are left out" in caplog.text
    with pytest.raises(DataError, match="tasks=3, but 2 train tasks"):
        TableEpisodes(own.train, support=4, tasks=3)
    with pytest.raises(DataError, match="0 test tasks"):
        TableEpisodes(own.test)
    regression = table(list(own.counts), own.target.astype(np.float32), "regression")
    assert len(TableEpisodes(regression.train, support=4, tasks=3).ranges) == 3
    with pytest.raises(ConfigError, match="support=0"):
        TableEpisodes(own.train, support=0)
    with pytest.raises(ConfigError, match="stream"):
        TableEpisodes(own.train, stream="final")
    with pytest.raises(DataError, match="give one of each"):
        TableTasks(own.features, own.target, [21], ["a", "b"], ["train"] * 2, "regression")


def test_fsmol_is_unpacked_when_it_is_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bits = random.integers(2, size=(10, 16), dtype=np.uint8)
    parts: dict[str, Any] = {
        "ecfp_bits": np.packbits(bits, axis=1),
        "mol": random.permutation(np.arange(30) % 10).astype(np.int32),
        "task": random.permutation(np.repeat(np.arange(3, dtype=np.int16), 10)),
        "y": (np.arange(30) % 2).astype(np.int8),
        "task_id": np.array(["A", "B", "C"]),
        "split": np.array(["train", "valid", "test"]),
    }
    np.savez(tmp_path / "f.npz", **parts)
    got = fsmol(tmp_path / "f.npz")
    assert got.packed
    for view, t in ((got.train, 0), (got.validation, 1), (got.test, 2)):
        rows = np.arange(*view.ranges[0])
        own = parts["task"] == t
        np.testing.assert_array_equal(got.examples(rows).numpy(), bits[parts["mol"][own]])
        np.testing.assert_array_equal(got.target[rows], parts["y"][own])
    assert TableEpisodes(got.train, support=4, queries=4, tasks=1).batch(0).examples.shape == (8, 16)
    for key, value in (("y", np.full(30, 2)), ("task", np.full(30, 3)), ("mol", np.full(30, 10)), ("split", np.array(["a"] * 3))):
        np.savez(tmp_path / "bad.npz", **(parts | {key: value}))
        with pytest.raises(DataError, match="bad"):
            fsmol(tmp_path / "bad.npz")
    whole = (tmp_path / "f.npz").read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match="bad"):
            fsmol(tmp_path / "bad.npz")


@pytest.mark.slow
@pytest.mark.skipif(not FSMOL.exists(), reason="the real FS-Mol is not at ../shared/data/fsmol")
def test_the_real_fsmol() -> None:
    got = fsmol(FSMOL)
    assert str(got) == ("classification over 2 classes, 2048 features, 482933 rows: 4935 train tasks, 39 validation tasks, 157 test tasks")
    for view in (got.train, got.validation, got.test):
        tasks = TableEpisodes(view, support=16, queries=16, tasks=8).batch(0)
        assert tasks.ways == 2
        assert bool((tasks.support_y.float().mean(1) > 0).all())
        assert tasks.support_x.shape == (8, 16, 2048)
        assert set(tasks.examples.unique().tolist()) == {0.0, 1.0}


def test_sine_waves_are_what_the_paper_says() -> None:
    """The parameters, found again from the points by linear least squares, lie in and fill their ranges; the curve fits exactly."""
    tasks = Sinusoid(shots=20, queries=30, tasks=500, seed=1).batch(0)
    x = torch.cat([tasks.support_x, tasks.query_x], 1).double()
    y = torch.cat([tasks.support_y, tasks.query_y], 1).double()[..., None]
    basis = torch.cat([torch.sin(x), -torch.cos(x)], -1)  # a·sin(x - p) = a·cos(p)·sin(x) - a·sin(p)·cos(x)
    found = torch.linalg.lstsq(basis, y).solution[..., 0]
    torch.testing.assert_close((basis @ found[..., None]), y, atol=1e-5, rtol=0)
    amplitude, phase = found.norm(dim=1), torch.atan2(found[:, 1], found[:, 0])
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, math.pi), (x, -5.0, 5.0)):
        assert low - 1e-5 <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high + 1e-5
        assert abs(float(values.mean()) - (low + high) / 2) < 0.05 * (high - low)
    assert torch.equal(Sinusoid(tasks=3).batch(5).examples, Sinusoid(tasks=3).batch(5).examples)
    for other in (Sinusoid(tasks=3, seed=1).batch(5), Sinusoid(tasks=3, stream="test").batch(5), Sinusoid(tasks=3).batch(6)):
        assert not torch.equal(other.examples, Sinusoid(tasks=3).batch(5).examples)
    with pytest.raises(ConfigError, match="shots=0"):
        Sinusoid(shots=0)
