"""The page to play with: its server, and the page in a browser."""

from __future__ import annotations

import base64
import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from headstart.errors import ConfigError
from headstart.using import Preprocessing, TrainedStart

pytest.importorskip("fastapi", reason="the page needs headstart[serve]")
pytest.importorskip("uvicorn", reason="the page needs headstart[serve]")
from fastapi.testclient import TestClient

from headstart.cli import main
from headstart.playing import app as served
from headstart.playing import page_app
from headstart.playing.asked import ALL, BODY, CLASSES, DRAWINGS
from played import PICTURES, SYMBOLS, draw, drawing, said, start, task, teach, until


def client(own: TrainedStart | None = None) -> TestClient:
    return TestClient(page_app(own or start()), base_url="http://127.0.0.1")


# -- the server ----------------------------------------------------------------------------------------------------------


def test_it_learns_a_task_and_recognises_a_drawing() -> None:
    with client() as page:
        said = page.get("/about").json()
        assert (said["steps"], said["lr"], said["threshold"], said["size"]) == (3, 0.01, 0.3, 28)
        found = page.post("/adapt", json={"classes": task(*SYMBOLS), "steps": 2}).json()
        assert [c["name"] for c in found["classes"]] == list(SYMBOLS)
        assert all(c["seen"][0].startswith("data:image/png;base64,") for c in found["classes"])
        for name in ("A", "C", "D"):
            answer = page.post("/predict", json={"id": found["id"], "drawing": drawing(SYMBOLS[name], 0.7)}).json()
            assert answer["best"] == name
            assert len(answer["probabilities"]) == 5
            assert sum(answer["probabilities"]) == pytest.approx(1)
    with client(start(threshold=1.1)) as strict:
        found = strict.post("/adapt", json={"classes": task("A", "C")}).json()
        answer = strict.post("/predict", json={"id": found["id"], "drawing": "data:image/png;base64," + drawing(SYMBOLS["C"])}).json()
        assert (answer["label"], answer["best"]) == (None, "C")


def test_unknown_by_the_distance_in_the_features_of_the_head() -> None:
    for threshold, label in ((-1e9, "C"), (0.5, None)):
        with client(start(threshold=threshold, by="nearness")) as page:
            assert page.get("/about").json()["by"] == "nearness"
            found = page.post("/adapt", json={"classes": task("A", "C")}).json()
            answer = page.post("/predict", json={"id": found["id"], "drawing": drawing(SYMBOLS["C"], 0.7)}).json()
            assert (answer["label"], answer["best"]) == (label, "C")
            assert answer["score"] < 0


def test_what_it_shows_is_what_the_model_gets() -> None:
    from PIL import Image

    with client() as page:
        content = drawing(SYMBOLS["B"], 0.5)
        found = page.post("/adapt", json={"classes": [{"name": "x", "drawings": [content]}, *task("A")]}).json()
    shown = Image.open(io.BytesIO(base64.b64decode(found["classes"][0]["seen"][0].partition(",")[2])))
    wanted = PICTURES.pictures([base64.b64decode(content)])[0, 0]
    assert torch.equal(torch.tensor(list(shown.tobytes()), dtype=torch.uint8).view(28, 28), wanted)


def test_curves_are_those_of_the_learner() -> None:
    own = start()
    with client(own) as page:
        classes = task("A", "B", "C", twice=("A", "B"))
        found = page.post("/adapt", json={"classes": classes, "steps": 2}).json()
        curves = page.get(f"/curves/{found['id']}").json()
    assert len(curves["loss"]) == len(curves["accuracy"]) == 51
    assert (curves["left_out"], curves["of_classes"]) == (4, 2)
    x = own.preprocessing.ready(own.preprocessing.pictures([base64.b64decode(d) for c in classes for d in c["drawings"]]))
    y = torch.tensor([0, 0, 1, 1, 2])
    for steps in (0, 7):
        logits = own.learner.adapt(x, y, steps).logits(x)
        assert curves["loss"][steps] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)), rel=1e-3, abs=1e-5)
        right = []
        for i in range(4):
            rest = [j for j in range(5) if j != i]
            right.append(float(own.learner.adapt(x[rest], y[rest], steps).predict(x[i : i + 1]) == y[i]))
        assert curves["accuracy"][steps] == pytest.approx(sum(right) / 4)


def test_another_step_size_leaves_the_start_as_it_is() -> None:
    own = start()
    with client(own) as page:
        curves = []
        for lr in ({}, {"lr": 1e-5}, {"lr": 1e6}, {}):
            found = page.post("/adapt", json={"classes": task("A", "B"), **lr}).json()
            curves.append(page.get(f"/curves/{found['id']}").json()["loss"])
            answer = page.post("/predict", json={"id": found["id"], "drawing": drawing(SYMBOLS["A"])})
            assert answer.status_code == 200, "also where steps are too long"
    assert curves[0] == curves[3] != curves[1]
    assert own.learner.inner == hs.GradientDescent(3, 0.01)


def test_held_out_accuracy_is_of_episodes_of_test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from fakes import source

    monkeypatch.setattr("headstart.data.load", lambda name: source())
    with client() as page:
        assert page.get("/held-out").json() == {}, "nothing is known of its data"
    learner = hs.protomaml(hs.models.conv4(channels=1, ways=3, size=source().test.shape[-1], filters=4), steps=2, lr=0.01)
    own = start(learner, about={"data": "glyphs", "ways": 3, "shots": 1})
    with client(own) as page:
        found = page.get("/held-out?lr=0.1").json()
        assert page.get("/held-out?lr=-1").status_code == 422
    assert len(found["accuracy"]) == 51
    assert (found["ways"], found["shots"], found["answers"]) == (3, 1, 60 * 3 * 5)
    assert all(0 <= v <= 1 for v in found["accuracy"])


def test_other_learners() -> None:
    body = hs.models.conv4(channels=1, ways=5, size=28, filters=4)
    with client(start(hs.r2d2(body))) as page:
        assert page.get("/about").json()["steps"] is page.get("/about").json()["lr"] is None
        found = page.post("/adapt", json={"classes": task("A", "B", twice=("A",))}).json()
        assert len(page.get(f"/curves/{found['id']}").json()["loss"]) == 2
        assert page.post("/adapt", json={"classes": task("A", "B"), "lr": 0.1}).status_code == 422
        assert page.get("/held-out?lr=0.1").status_code == 422
    with client(start(hs.maml(body, steps=2, lr=0.01))) as page:
        found = page.post("/adapt", json={"classes": task("A", "B", "C"), "steps": 4}).json()
        assert len(page.get(f"/curves/{found['id']}").json()["loss"]) == 5, "of more than a head only the steps that are asked for"
        many = [{"name": n, "drawings": [drawing(SYMBOLS[n])] * 7} for n in ("A", "B")]
        found = page.post("/adapt", json={"classes": many, "steps": 1}).json()
        assert page.get(f"/curves/{found['id']}").json()["left_out"] == 7, "of fourteen every second"
        six = [{"name": str(i), "drawings": [drawing(SYMBOLS["A"])]} for i in range(6)]
        answer = page.post("/adapt", json={"classes": six})
        assert answer.status_code == 422
        assert "5 outputs" in answer.json()["detail"]


def test_bad_requests_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"classes": task("A", "B")}
    name = {"name": "A", "drawings": [drawing(SYMBOLS["A"])]}
    with client() as page:
        for bad in (
            {},
            [],
            {"classes": task("A")},
            {"classes": [name, name]},
            {"classes": [name, {"name": "", "drawings": name["drawings"]}]},
            {"classes": [name, {"name": "b", "drawings": []}]},
            {"classes": [name, {"name": "b", "drawings": ["%%%"]}]},
            {"classes": [name, {"name": "b", "drawings": [base64.b64encode(b"no picture").decode()]}]},
            {"classes": [name, {"name": "b", "drawings": name["drawings"] * (DRAWINGS + 1)}]},
            {"classes": [{**name, "name": str(i)} for i in range(CLASSES + 1)]},
            {"classes": [{"name": str(i), "drawings": name["drawings"] * DRAWINGS} for i in range(ALL // DRAWINGS + 1)]},
            {**good, "steps": 51},
            {**good, "steps": -1},
            {**good, "steps": 1.5},
            {**good, "lr": 0},
            {**good, "more": 1},
        ):
            answer = page.post("/adapt", json=bad)
            assert answer.status_code == 422, bad
            assert isinstance(answer.json()["detail"], str)
        assert page.post("/adapt", content=b"{").status_code == 422
        assert page.post("/adapt", content=b'{"classes": [], "lr": NaN}').status_code == 422
        assert page.post("/adapt", content=b" " * (BODY + 1)).status_code == 413
        assert page.post("/predict", json={"id": "gone", "drawing": name["drawings"][0]}).status_code == 404
        assert page.get("/curves/gone").status_code == 404
        assert page.get("/docs").status_code == 404
        assert page.get("/about", headers={"Host": "elsewhere.example"}).status_code == 400
        monkeypatch.setattr(served, "KEPT", 2)
        names = [page.post("/adapt", json=good).json()["id"] for _ in range(3)]
        assert [page.get(f"/curves/{n}").status_code for n in names] == [404, 200, 200]


def test_only_starts_of_pictures_are_taken() -> None:
    vectors = start(hs.protonet(hs.models.mlp(features=4, ways=2)), preprocessing=Preprocessing("vectors", (4,)))
    with pytest.raises(ConfigError, match=r"takes vectors.*trained on pictures"):
        page_app(vectors)


def test_the_page_stands_alone() -> None:
    with client() as page:
        texts = [page.get(path) for path in ("/", "/page.css", "/page.js")]
    assert all(t.status_code == 200 and "default-src 'none'" in t.headers["content-security-policy"] for t in texts)
    for text in texts:
        assert "http" not in text.text.replace("http://www.w3.org/2000/svg", "")
    folder = Path(served.__file__).parent
    assert {"page.html", "page.css", "page.js"} <= {f.name for f in folder.iterdir()}


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start().save(file := tmp_path / "start.safetensors")
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        assert main(["playground", str(file), "--port", str(taken.getsockname()[1])]) == 2
    assert "give another with --port" in capsys.readouterr().err
    assert main(["playground", str(file), "--port", "70000"]) == 2
    assert main(["playground", str(tmp_path)]) == 2
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["playground", str(file)]) == 2
    assert "pip install 'headstart[serve]'" in capsys.readouterr().err


# -- the page in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the page is served, from a thread."""
    import uvicorn

    own = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(page_app(start()), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{own.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    own.close()


@pytest.fixture
def page(page: Any, address: str) -> Any:
    """The playground, when it is ready."""
    page.goto(address)
    page.locator("#classes .pad").nth(4).wait_for()
    return page


def test_drawing_five_symbols_and_a_sixth(page: Any) -> None:
    teach(page)
    assert page.locator("#ways").inner_text() == "5"
    assert page.locator(".drawings img").count() == 5, "what the model sees"
    page.locator("#strict").uncheck()
    query = page.locator("#query .pad")
    draw(page, query, [[(0.5, 0), (0.5, 1)]], lift=False)
    said(page, "C")  # while the pen is down
    box = query.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.8)
    page.mouse.up()
    page.locator("#query-clear").click()
    said(page, "Nothing drawn yet")
    draw(page, query, SYMBOLS["D"])
    said(page, "D")
    draw(page, query, [])
    page.locator("#query-clear").click()
    draw(page, query, SYMBOLS["A"][:1], lift=True)
    before = page.locator("#bars").inner_text()
    draw(page, query, SYMBOLS["A"][1:])
    until(page, f"document.getElementById('bars').innerText !== {json.dumps(before)}")
    said(page, "A")
    page.locator("#classes .name input").nth(0).fill("cross")
    said(page, "cross")


def test_sliders_and_pads_by_keyboard(page: Any) -> None:
    teach(page)
    page.locator("#steps").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert page.locator("#steps-out").inner_text() == "6"
    until(page, "document.getElementById('loss-said').textContent.includes('after 6')")
    page.locator("#rate").focus()
    page.keyboard.press("ArrowLeft")
    assert "own" not in page.locator("#rate-out").inner_text()
    page.locator("#query .pad").focus()
    page.locator("#strict").uncheck()
    page.locator("#query .pad").focus()
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    said(page, "C")
    assert page.locator("#spoken").inner_text() == "pen up"
    page.keyboard.press("Delete")
    said(page, "Nothing drawn yet")


def test_classes_come_and_go_and_hold_several_drawings(page: Any) -> None:
    teach(page)
    page.locator("#add").click()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Name of class F"
    picture = base64.b64decode(drawing(SYMBOLS["B"], 0.6))
    card = page.locator("#classes .card").nth(5)
    card.locator("input[type=file]").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": picture})
    until(page, "document.querySelectorAll('#bars li').length === 6")
    card.get_by_role("button", name="Remove F").click()
    until(page, "document.querySelectorAll('#bars li').length === 5")
    first = page.locator("#classes .card").nth(0)
    first.get_by_role("button", name="More drawings of A").click()
    draw(page, first.locator(".pad"), SYMBOLS["A"])
    until(page, "document.getElementById('accuracy-said').textContent.includes('each of 2 drawings')")
    assert page.locator("#shots").inner_text() == "1–2"
    page.locator("#query-file").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": picture})
    page.locator(".sees").wait_for()
    page.locator("#query-file").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#problem").wait_for()
    assert "no picture that the browser can read" in page.locator("#problem").inner_text()
    page.locator("#empty").click()
    said(page, "Teach it two symbols")


def test_the_example_and_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#example").click()
    until(page, "document.querySelectorAll('#bars li').length === 5 && !document.querySelector('.sees').hidden")
    for width in (390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, canvas')].filter(e => !e.closest('[hidden]')
        && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)""")
    assert unnamed == []
