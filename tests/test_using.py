"""Predictors: what a file holds is enough, examples and classes can be added, and inputs are read as in training."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli import main
from headstart.errors import CheckpointError, DataError, DivergenceError, TaskError
from headstart.using import Predictor, Preprocessing, TrainedStart
from headstart.using.preprocessing import framed, whitened
from headstart.using.reading import read_examples

GLYPHS = hs.data.load("glyphs").test


def drawings(k: int, classes: int = 4) -> torch.Tensor:
    """Drawing k of each of some characters that the start has never seen."""
    return GLYPHS.stored(GLYPHS.starts[:classes] + k)


@pytest.fixture(scope="module")
def start() -> TrainedStart:
    return TrainedStart.load("characters")


def own(start: TrainedStart) -> Predictor:
    return Predictor.of(start, drawings(0), ["a", "b", "c", "d"])


def test_a_file_holds_all_that_is_needed(start: TrainedStart, tmp_path: Path) -> None:
    predictor = own(start)
    predictor.save(tmp_path / "task")
    again, x = Predictor.load(tmp_path / "task"), torch.cat([drawings(k) for k in range(1, 12)])
    assert again.classes == ("a", "b", "c", "d")
    torch.testing.assert_close(again.probabilities(x), predictor.probabilities(x))
    assert [p.label for p in again.predict(x)] == [p.label for p in predictor.predict(x)]
    start.save(tmp_path / "start")
    assert TrainedStart.load(tmp_path / "start").calibration == start.calibration
    with pytest.raises(CheckpointError, match="holds a trained start, and not a predictor"):
        Predictor.load(tmp_path / "start")


def test_characters_are_recognised_from_one_drawing(start: TrainedStart) -> None:
    x = torch.cat([drawings(k) for k in range(1, 12)])
    labels = list("abcd") * 11
    found = own(start).predict(x, unknown=False)
    assert sum(p.label == y for p, y in zip(found, labels, strict=True)) > 0.95 * len(labels)
    foreign = GLYPHS.stored(GLYPHS.starts[100:180])
    assert sum(p.label is None for p in own(start).predict(foreign)) > 0.8 * len(foreign)
    assert sum(p.label is None for p in own(start).predict(x)) < 0.2 * len(x)
    assert own(start).support_accuracy == 1.0
    assert own(start).predict(x[:0]) == []


def test_examples_and_classes_are_added_and_taken_away(start: TrainedStart) -> None:
    whole = Predictor.of(start, torch.cat([drawings(0), drawings(1)]), list("abcd") * 2)
    few = Predictor.of(start, drawings(0, 3), list("abc"))
    grown = few.with_examples(drawings(0)[3:], ["d"]).with_examples(drawings(1), list("abcd"))
    x = drawings(2)
    torch.testing.assert_close(grown.probabilities(x), whole.probabilities(x))
    assert few.classes == ("a", "b", "c"), "what was learned stays a value"
    torch.testing.assert_close(
        grown.without("d").probabilities(x),
        Predictor.of(start, torch.cat([drawings(0, 3), drawings(1, 3)]), list("abc") * 2).probabilities(x),
    )
    with pytest.raises(TaskError, match="no class 'z'"):
        few.without("z")


def test_it_is_what_the_learner_gives(start: TrainedStart) -> None:
    x, ready = drawings(3), start.preprocessing.ready
    split = GLYPHS.batch(GLYPHS.starts[:4] + 3)
    torch.testing.assert_close(ready(x), split)
    adapted = start.learner.adapt(ready(drawings(0)), torch.arange(4))
    calibration = start.calibration
    assert calibration is not None
    torch.testing.assert_close(own(start).probabilities(x), (adapted.logits(ready(x)) / calibration.temperature).softmax(-1))


def test_wrong_examples_are_refused(start: TrainedStart) -> None:
    with pytest.raises(TaskError, match="one class only"):
        Predictor.of(start, drawings(0), ["a"] * 4)
    with pytest.raises(TaskError, match="4 examples with 3 labels"):
        Predictor.of(start, drawings(0), ["a"] * 3)
    with pytest.raises(DataError, match="shape"):
        Predictor.of(start, torch.zeros(2, 3, 28, 28, dtype=torch.uint8), ["a", "b"])
    wild = hs.anil(hs.models.mlp(2, 1), steps=60, lr=1e3, loss="squared_error")
    real = TrainedStart(wild, Preprocessing("vectors", (2,)), regression=True)
    with pytest.raises(DivergenceError, match="diverged"):
        Predictor.of(real, 100 * torch.randn(4, 2), [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(DataError, match="no number"):
        Predictor.of(real, torch.randn(2, 2), ["one", "two"])


def test_real_targets_are_predicted_in_their_unit() -> None:
    learner = hs.r2d2(hs.models.mlp(2, 1), loss="squared_error", target_scale=hs.TargetScale((2e5,), (3e4,)))
    x = torch.randn(12, 2)
    y = 2e5 + 3e4 * x[:, 0]
    predictor = Predictor.of(TrainedStart(learner, Preprocessing("vectors", (2,)), regression=True), x, y.tolist())
    found = predictor.predict(x[:2])
    assert found[0].label == pytest.approx(float(learner.adapt(x, y).predict(x[:1])), rel=1e-6)
    assert found[0].probabilities == {}
    with pytest.raises(TaskError, match="no probabilities"):
        predictor.probabilities(x)


def test_dark_ink_on_paper_of_any_size_is_read_as_in_training(start: TrainedStart) -> None:
    from PIL import Image

    drawing = drawings(5)[0, 0].numpy()
    for paper, ink, place in ((255, 0, (10, 90)), (0, 255, (100, 20)), (230, 30, (60, 60))):
        page = np.full((200, 200), paper, np.uint8)
        large = np.asarray(Image.fromarray(drawing).resize((84, 84))) / 255
        y, x = place
        page[y : y + 84, x : x + 84] = (paper + (ink - paper) * large).astype(np.uint8)
        Image.fromarray(page).save(file := io.BytesIO(), "PNG")
        (found,) = start.preprocessing.pictures([file.getvalue()])
        assert float((found[0].float() - drawings(5)[0, 0].float()).abs().mean()) < 25
    assert framed(np.zeros((1, 112, 112), np.uint8), 28).max() == 0, "an empty page"
    assert whitened(np.full((1, 4, 4), 200, np.uint8)).max() == 0


def test_threads_may_adapt_and_predict_at_once() -> None:
    """Modules of one model hold other forwards while it runs; each thread still gets its own task's answer."""
    torch.manual_seed(0)
    learner = hs.anil(hs.models.conv4(1, 3, 16, filters=4), steps=3, lr=0.3)
    tasks = [(torch.randn(6, 1, 16, 16), torch.randperm(6) % 3) for _ in range(4)]
    expected = [learner.adapt(x, y).predict_proba(x) for x, y in tasks]
    wrong: list[Any] = []

    def work(i: int) -> None:
        x, y = tasks[i]
        try:
            for _ in range(10):
                if not torch.allclose(learner.adapt(x, y).predict_proba(x), expected[i], atol=1e-5):
                    wrong.append(i)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_table_is_read_by_the_columns_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = ["shop,weather,visitors,holiday,sales"]
    for shop in range(12):
        level = 1e5 * shop
        for _ in range(25):
            visitors, weather = rng.normal(500, 100), rng.integers(3)
            sales = level + 300 * visitors + 2e4 * weather
            lines.append(f"s{shop},{['rain', 'cloud', 'sun'][weather]},{visitors:.0f},{rng.random() < 0.1},{sales:.0f}")
    Path("t.csv").write_text("\n".join(lines))
    quick = ["--iterations", "5", "--test-episodes", "10", "--validation-episodes", "4"]
    assert main(["train", "--data", "t.csv", "--data-options", "task=shop,target=sales", "--out", "run", *quick]) == 0
    kept = hs.data.load("t.csv", task="shop", target="sales")
    Path("new.csv").write_text("\n".join([lines[0], *lines[1:11]]))
    Path("asked.csv").write_text("\n".join(["holiday,visitors,weather", "False,520,sun", "True,,hail"]))
    start = TrainedStart.load("run")
    found = read_examples(start.preprocessing, [Path("new.csv")], labelled=True)
    torch.testing.assert_close(found.x, kept.examples(np.arange(10)))
    assert main(["adapt", "run", "--support", "new.csv", "-o", "shop.safetensors"]) == 0
    capsys.readouterr()
    assert main(["predict", "shop.safetensors", "asked.csv", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["input"] for row in rows] == ["asked.csv:1", "asked.csv:2"]
    assert all(np.isfinite(row["prediction"]) for row in rows)
    Path("t.csv").rename("away.csv")
    assert main(["adapt", "run", "--support", "new.csv", "-o", "again.safetensors"]) == 0, "the data is not needed any more"
    assert Path("again.safetensors").read_bytes() == Path("shop.safetensors").read_bytes()
    Path("less.csv").write_text("visitors,weather\n500,sun\n")
    assert main(["predict", "shop.safetensors", "less.csv"]) == 2
    assert "no column 'holiday', which the start was trained on" in capsys.readouterr().err


def test_a_function_of_ones_own_for_texts_must_be_trusted() -> None:
    said = Preprocessing("texts", (3,), embed="mine:function").saved()
    with pytest.raises(CheckpointError, match=r"load with trust=\['mine:function'\]"):
        Preprocessing.load(said)
    assert Preprocessing.load(said, ["mine:function"]).embed == "mine:function"


def test_a_task_and_a_start_as_graphs(start: TrainedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    predictor, x = own(start), drawings(1)
    predictor.save("task.safetensors")
    assert main(["export", "task.safetensors"]) == 0
    said = json.loads(Path("task.json").read_text())
    assert said["classes"] == list("abcd")
    ready = Preprocessing.load(said["preprocessing"]).ready(x).numpy()
    (found,) = onnxruntime.InferenceSession("task.onnx").run(None, {"x": ready})
    calibrated = (torch.from_numpy(found).log() / said["temperature"]).softmax(-1)
    torch.testing.assert_close(calibrated, predictor.probabilities(x), atol=1e-4, rtol=1e-3)
    assert main(["export", "characters", "-o", "start.onnx"]) == 0
    session = onnxruntime.InferenceSession("start.onnx")
    given = {"support_x": start.preprocessing.ready(predictor.x).numpy(), "support_y": predictor.y.numpy(), "query_x": ready}
    sizes = {"steps": np.array(0), "lr": np.array(0.1, np.float32), "ways": np.array(4)}
    names = {i.name for i in session.get_inputs()}
    probabilities = session.run(None, {k: v for k, v in {**given, **sizes}.items() if k in names})[0]
    np.testing.assert_allclose(probabilities, found, atol=1e-4)


def test_what_the_commands_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.png").write_bytes(b"no picture")
    np.savez("two.npz", x=drawings(0).numpy(), y=list("abcd"))
    assert main(["adapt", "characters", "--support", "two.npz", "-o", "task"]) == 0
    for args, said in (
        (["adapt", "characters"], "give --support"),
        (["adapt", "characters", "--support", "none"], "there is nothing at"),
        (["adapt", "characters", "--support", "empty"], "no folders of pictures"),
        (["adapt", "nowhere", "--support", "two.npz"], "there is no 'nowhere': give a run folder"),
        (["adapt", "task", "--add", "e"], "write CLASS=PATH"),
        (["predict", "task", "bad.png"], "not a picture"),
        (["predict", "task", "empty"], "holds no pictures"),
        (["predict", "task", "two.npz", "--json", "--csv"], "exclude each other"),
        (["predict", "task", "two.npz", "--top", "0"], "top=0"),
    ):
        capsys.readouterr()
        assert main(args) == 2, args
        assert said in capsys.readouterr().err
    assert main(["predict", "task", "two.npz"]) == 0
    assert "100.0 % right of 4 examples" in capsys.readouterr().out


def test_damaged_pictures_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several; and labels that are no classes of the task count for nothing."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for k in (0, 1):
        for name, picture in zip("abc", drawings(k, 3), strict=True):
            folder = Path(("support", "new")[k]) / (name if k == 0 or name != "c" else "other")
            folder.mkdir(parents=True)
            Image.fromarray(picture[0].numpy()).save(folder / "1.png")
    for folder in ("support/a", "new/a"):
        Path(folder, "0.png").write_bytes(b"no picture")
    assert main(["adapt", "characters", "--support", "support", "-o", "task"]) == 0
    said = capsys.readouterr()
    assert "3 examples of 3 classes" in said.out
    assert "left out: support/a/0.png: not a picture" in said.err
    assert main(["predict", "task", "new"]) == 1, "some were not predicted"
    said = capsys.readouterr()
    assert "left out: new/a/0.png" in said.err
    assert "100.0 % right of 2 examples with labels" in said.out
    assert "1 examples with labels that are no classes of the task" in said.out
    assert main(["predict", "task", "new/a/0.png", "new/b/1.png"]) == 1
    assert capsys.readouterr().out.count(".png") == 1
    assert main(["predict", "task", "new/a/0.png", "new/a/0.png"]) == 2, "nothing is left"
    Path("empty").mkdir()
    assert main(["predict", "task", "new/b", "empty"]) == 2, "a folder without pictures is no damaged picture"
