"""The server: routes, whose tasks are whose, limits, restarts, and many clients at once."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

import headstart as hs
from headstart.cli import main
from headstart.data.sources.columns import Feature, TableColumns
from headstart.serving import Limits, app_of
from headstart.using import Predictor, Preprocessing, TrainedStart
from served import PICTURES, labels_of, made, vectors
from served import client as client
from served import start as start

# -- routes ----------------------------------------------------------------------------------------------------------------


def test_a_task_is_made_extended_asked_and_deleted(client: TestClient) -> None:
    task, own = made(client, ["a", "b", 3])
    assert labels_of(client, task, own, PICTURES[:3]) == ["a", "b", 3]
    more = client.post(f"/tasks/{task}/examples", json={"examples": PICTURES[3:5], "labels": ["new", "a"]}, headers=own).json()
    assert (more["classes"], more["examples"]) == (["a", "b", 3, "new"], 5)
    assert labels_of(client, task, own, PICTURES[1:4]) == ["b", 3, "new"]
    assert client.get("/tasks", headers=own).json()["tasks"] == [client.get(f"/tasks/{task}", headers=own).json()] == [more]
    asked = client.post(f"/tasks/{task}/predict", json={"examples": PICTURES[:1], "top": 2}, headers=own).json()["predictions"][0]
    assert len(asked["classes"]) == 2
    assert asked["confidence"] == asked["classes"][0]["probability"] > asked["classes"][1]["probability"]
    failed = client.post(f"/tasks/{task}/examples", json={"examples": [PICTURES[5], "AAAA"], "labels": ["x", "y"]}, headers=own)
    assert failed.status_code == 422
    assert client.get(f"/tasks/{task}", headers=own).json() == more, "a request that fails changes nothing"
    assert client.delete(f"/tasks/{task}", headers=own).status_code == 204
    assert client.get(f"/tasks/{task}", headers=own).status_code == 404
    assert client.get("/tasks", headers=own).json() == {"tasks": []}


def test_pages_about_the_server(client: TestClient) -> None:
    made(client, ["a", "b"])
    assert client.get("/health").json() == {"status": "ok", "kind": "pictures", "shape": [1, 28, 28], "regression": False, "labels": []}
    client.get("/nothing/here")
    text = client.get("/metrics").text
    assert 'headstart_requests_total{method="POST",route="/tasks",status="201"} 1\n' in text
    assert 'route="other",status="404"} 1\n' in text
    assert "headstart_tasks 1\n" in text
    page = client.get("/docs").text
    assert "$ref" not in page
    assert 'Body: <a href="#Support"><code>Support</code></a>' in page
    assert "<td><code>labels</code></td><td>list of at most 500: string or integer</td>" in page
    assert "POST /tasks/{id}/predict" in page
    assert "http" not in page.replace("http-equiv", "").replace("HTTP", ""), "the page must stand alone"
    support = client.get("/openapi.json").json()["components"]["schemas"]["Support"]["properties"]["examples"]
    assert support["maxItems"] == 500
    assert support["items"]["maxLength"] == 8388608


def test_no_client_sees_the_task_of_another(client: TestClient) -> None:
    one, first = made(client, ["a", "b"])
    other, second = made(client, ["b", "a"])  # contradicts the first
    assert labels_of(client, one, first, PICTURES[:2]) == ["a", "b"]
    assert labels_of(client, other, second, PICTURES[:2]) == ["b", "a"]
    body = {"examples": PICTURES[:1]}
    unknown = client.post(f"/tasks/{'0' * 32}/predict", json=body, headers=first)
    for headers in (second, {}, {"Authorization": "Bearer "}, {"Authorization": first["Authorization"][7:]}, {"Authorization": "Basic a"}):
        for method, path, sent in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/predict", body),
            ("POST", "/examples", {**body, "labels": ["a"]}),
        ):
            answer = client.request(method, f"/tasks/{one}{path}", json=sent, headers=headers)
            assert (answer.status_code, answer.json()) == (unknown.status_code, unknown.json()) == (404, unknown.json())
    assert [t["id"] for t in client.get("/tasks", headers=second).json()["tasks"]] == [other]
    assert client.get("/tasks").json() == {"tasks": []}
    third, same = made(client, ["c", "d"], token=first["Authorization"][7:])
    assert same == first
    assert [t["id"] for t in client.get("/tasks", headers=first).json()["tasks"]] == [third, one]
    assert client.post("/tasks", json={**body, "labels": ["a"]}, headers={"Authorization": "Bearer mine"}).status_code == 404


# -- limits ----------------------------------------------------------------------------------------------------------------


def test_limits_hold(start: TrainedStart) -> None:
    with TestClient(app_of(start, Limits(max_body=20_000, max_images=6, max_tasks=2))) as client:
        large = {"examples": ["A" * 30_000], "labels": ["a"]}
        assert client.post("/tasks", json=large).status_code == 413
        chunks = (json.dumps(large).encode()[i : i + 500] for i in range(0, 40_000, 500))
        answer = client.post("/tasks", content=chunks, headers={"Content-Type": "application/json"})  # no length is said
        assert answer.status_code == 413
        assert "20000 bytes" in answer.json()["detail"]
        assert client.post("/tasks", json={"examples": PICTURES[:7], "labels": list("abcdefg")}).status_code == 422
        assert client.post("/tasks", content=json.dumps({"examples": [], "labels": []})).status_code == 415
        first, own = made(client, ["a", "b"])
        answer = client.post(f"/tasks/{first}/examples", json={"examples": PICTURES[:5], "labels": list("abcde")}, headers=own)
        assert answer.status_code == 422
        assert "7 examples" in answer.json()["detail"]
        second, other = made(client, ["a", "b"])
        assert client.get(f"/tasks/{first}", headers=own).status_code == 200  # so the second is the least recently used
        made(client, ["a", "b"])
        assert client.get(f"/tasks/{second}", headers=other).status_code == 404
        assert client.get(f"/tasks/{first}", headers=own).status_code == 200
    with pytest.raises(hs.errors.ConfigError, match="max_tasks=0"):
        Limits(max_tasks=0)


def test_late_work_keeps_its_place_and_leaves_nothing_behind(start: TrainedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), Predictor.of
    body = {"examples": PICTURES[:2], "labels": ["a", "b"]}
    with TestClient(app_of(start, Limits(timeout=0.3, threads=1, waiting=1), tmp_path)) as client:
        monkeypatch.setattr(Predictor, "of", lambda *a: (go.wait(20), real(*a))[1])
        assert client.post("/tasks", json=body).status_code == 504  # this one is at work and cannot be stopped
        assert client.post("/tasks", json=body).status_code == 504  # this one waited, and will not begin
        assert "headstart_requests_at_work 1\n" in client.get("/metrics").text
        go.set()
        monkeypatch.undo()
        for _ in range(200):
            if "headstart_requests_at_work 0\n" in client.get("/metrics").text:
                break
            threading.Event().wait(0.02)
        assert client.get("/metrics").text.count("headstart_tasks 0\n") == 1
    assert not list(tmp_path.iterdir())


def test_who_finds_no_place_is_told_so(start: TrainedStart) -> None:
    async def all_at_once() -> list[int]:
        app = app_of(start, Limits(threads=1, waiting=1))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {"examples": PICTURES[:2], "labels": ["a", "b"]}
            return sorted([r.status_code for r in await asyncio.gather(*(client.post("/tasks", json=body) for _ in range(6)))])

    assert asyncio.run(all_at_once()) == [201, 201, 503, 503, 503, 503]


# -- other kinds of examples -----------------------------------------------------------------------------------------------


def test_rows_texts_and_real_targets() -> None:
    def answers(start: TrainedStart, examples: list[Any], labels: list[Any], asked: list[Any]) -> list[Any]:
        with TestClient(app_of(start)) as client:
            said = client.post("/tasks", json={"examples": examples, "labels": labels})
            if said.status_code != 201:
                return [said.status_code, said.json()["detail"]]
            own = {"Authorization": f"Bearer {said.json()['token']}"}
            return labels_of(client, said.json()["id"], own, asked)

    columns = TableColumns("", "", (Feature("size", None, 2.0), Feature("colour", "red", None), Feature("colour", "3.0", None)))
    rows = TrainedStart(vectors().learner, Preprocessing("rows", (3,), columns=columns))
    red, three, blue = {"size": 1, "colour": "red"}, {"size": 1.5, "colour": 3}, {"size": 9, "colour": "blue", "more": True}
    assert answers(rows, [red, three, blue], ["r", "t", "b"], [{**red, "size": None}, three, {**blue, "size": "8"}]) == ["r", "t", "b"]
    for wrong in ({"size": "large", "colour": "red"}, {"colour": "red"}, {"size": "inf", "colour": "red"}):
        status, said = answers(rows, [wrong], ["r"], [])
        assert status == 422
        assert "size" in said
    texts = TrainedStart(hs.protonet(hs.models.projection(features=1024, ways=2)), Preprocessing("texts", (1024,), embed="words"))
    assert answers(texts, ["wake me at six", "pay the bill"], ["clock", "money"], ["wake me"]) == ["clock"]
    learner = hs.anil(hs.models.mlp(features=3, ways=1), steps=200, lr=0.05, loss="squared_error")
    (found,) = answers(TrainedStart(learner, Preprocessing("vectors", (3,)), regression=True), [[1, 0, 0]] * 2, [2.0, 3], [[1, 0, 0]])
    assert found == pytest.approx(2.5, abs=0.2)


# -- state -----------------------------------------------------------------------------------------------------------------


def test_tasks_are_there_after_a_restart(start: TrainedStart, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tasks"
    with TestClient(app_of(start, state=folder)) as client:
        one, own = made(client, ["a", "b"])
        client.post(f"/tasks/{one}/examples", json={"examples": PICTURES[2:3], "labels": [7]}, headers=own)
        before = client.get(f"/tasks/{one}", headers=own).json()
        gone, other = made(client, ["a", "b"])
        client.delete(f"/tasks/{gone}", headers=other)
        damaged, broken = made(client, ["b", "a"]), made(client, ["b", "a"])
    assert sorted({f.stem for f in folder.iterdir()}) == sorted([one, damaged[0], broken[0]])
    assert own["Authorization"][7:].encode() not in b"".join(f.read_bytes() for f in folder.iterdir())
    assert [p.label for p in Predictor.load(folder / f"{one}.safetensors").predict(Predictor.load(folder / f"{one}.safetensors").x)] == [
        "a",
        "b",
        7,
    ]
    (folder / f"{damaged[0]}.safetensors").write_bytes(b"damaged")
    (folder / f"{broken[0]}.json").write_text('{"token_sha256": "../x"}')
    (folder / "README.json").write_text("{}")
    with TestClient(app_of(start, state=folder)) as client:
        assert client.get(f"/tasks/{one}", headers=own).json() == before
        assert labels_of(client, one, own, PICTURES[:3]) == ["a", "b", 7]
        assert client.get(f"/tasks/{damaged[0]}", headers=damaged[1]).status_code == 404
    assert caplog.text.count("is passed over") == 2
    with TestClient(app_of(vectors(), state=folder)) as client:
        assert client.get(f"/tasks/{one}", headers=own).status_code == 404
    assert "another start" in caplog.text
    with TestClient(app_of(start, Limits(max_tasks=1), state=folder)) as client:
        last, mine = made(client, ["x", "y"])
    assert {f.stem for f in folder.glob("*.json")} == {last, damaged[0], broken[0], "README"}, "whoever had to go is gone there too"
    with TestClient(app_of(start, state=folder)) as client:
        assert labels_of(client, last, mine, PICTURES[:2]) == ["x", "y"]


def test_a_folder_that_cannot_be_written_is_no_secret(start: TrainedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(app_of(start, state=tmp_path)) as client:
        monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        answer = client.post("/tasks", json={"examples": PICTURES[:2], "labels": ["a", "b"]})
        assert answer.status_code == 503
        assert str(tmp_path) not in answer.text
        assert "headstart_tasks 0\n" in client.get("/metrics").text


# -- many at once, and at random -------------------------------------------------------------------------------------------


def test_every_client_gets_its_own_answers(start: TrainedStart) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> None:
        labels = [f"{number}-{(i + number) % 4}" for i in range(4)]
        said = (await client.post("/tasks", json={"examples": PICTURES[:4], "labels": labels})).json()
        own, path = {"Authorization": f"Bearer {said['token']}"}, f"/tasks/{said['id']}"
        for turn in range(4):
            asked, added = await asyncio.gather(
                client.post(f"{path}/predict", json={"examples": PICTURES[:4]}, headers=own),
                client.post(
                    f"{path}/examples", json={"examples": PICTURES[4 + turn : 5 + turn], "labels": [f"{number}+{turn}"]}, headers=own
                ),
            )
            assert [p["label"] for p in asked.json()["predictions"]] == labels
            assert added.json()["examples"] == 5 + turn
        both = [client.post(f"{path}/examples", json={"examples": PICTURES[8:9], "labels": [name]}, headers=own) for name in ("x", "y")]
        await asyncio.gather(*both)
        assert (await client.get(path, headers=own)).json()["examples"] == 10, "of two additions at a time none is lost"

    async def all_of_them() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app_of(start)), base_url="http://server", timeout=60) as client:
            await asyncio.gather(*(one(client, number) for number in range(8)))

    asyncio.run(all_of_them())


# -- the command -----------------------------------------------------------------------------------------------------------


def test_the_command(start: TrainedStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start.save(file := tmp_path / "start.safetensors")
    ran: list[tuple[str, int]] = []

    def run(server: Any, sockets: list[socket.socket]) -> None:
        with sockets[0] as own:
            ran.append(own.getsockname())

    monkeypatch.setattr("uvicorn.Server.run", run)
    assert main(["serve", str(file), "--port", "0"]) == 0
    said = capsys.readouterr()
    assert ran[0][0] == "127.0.0.1"
    assert f":{ran[0][1]} " in said.out, "the port that was found"
    assert "TLS" not in said.err
    assert main(["serve", str(file), "--host", "0.0.0.0", "--port", "0", "--state", str(tmp_path / "tasks")]) == 0
    assert "no TLS" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        assert main(["serve", str(file), "--port", taken, "--state", str(tmp_path / "more")]) == 2
    said = capsys.readouterr()
    assert f"cannot listen at 127.0.0.1:{taken}" in said.err
    assert not said.out
    assert not (tmp_path / "more").exists(), "before anything is made"
    assert main(["serve", str(file), "--max-tasks", "0"]) == 2
    assert main(["serve", str(tmp_path / "nothing"), "--port", "0"]) == 2
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(file)]) == 2
    assert "pip install 'headstart[serve]'" in capsys.readouterr().err
