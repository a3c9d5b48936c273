"""What hostile or careless clients send to the server: it refuses, in bounded time, and goes on for the others."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

import headstart as hs
from headstart.serving import Limits, app_of
from headstart.using import Preprocessing, TrainedStart
from served import PICTURES, PIXELS, encoded, labels_of, made, vectors
from served import client as client
from served import start as start


def png(width: int, height: int, data: bytes = b"") -> str:
    """A grey PNG whose header says what it is told to."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


JPEG = base64.b64decode(encoded(PIXELS[0], "JPEG", progressive=True))
SCAN = JPEG.rindex(b"\xff\xda")
HOSTILE = {
    "a bomb": [png(30_000, 30_000, bytes(30_000 * 3750))],
    "huge dimensions": [png(2**31 - 1, 2**31 - 1)],
    "no dimensions": [png(0, 0)],
    "many large ones": [png(4000, 4000, bytes(4000 * 500))] * 6,
    "too small": [encoded(PIXELS[0, :3, :3])],
    "truncated": [base64.b64encode(base64.b64decode(PICTURES[0])[:300]).decode()],
    "truncated JPEG header": [base64.b64encode(JPEG[:30]).decode()],
    "many scans": [base64.b64encode(JPEG[:SCAN] + JPEG[SCAN:-2] * 100 + JPEG[-2:]).decode()],
    "another format": [encoded(PIXELS[0], "TIFF")],
    "no picture": [base64.b64encode(b"/etc/passwd").decode()],
    "a path": ["/etc/passwd"],
    "a data URL": ["data:image/png;base64," + PICTURES[0]],
    "no base64": ["ö\0"],
    "a number": [1],
    "lists": [[["x"]]],
    "null": None,
    "nothing": [],
    "an object": {"a": 1},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_pictures_that_are_none_are_refused(client: TestClient, name: str) -> None:
    found = HOSTILE[name]
    labels = ["a"] * (len(found) if isinstance(found, list) else 1)
    task, own = made(client, ["a", "b"])
    for answer in (
        client.post("/tasks", json={"examples": found, "labels": labels}),
        client.post(f"/tasks/{task}/predict", json={"examples": found}, headers=own),
    ):
        assert answer.status_code == 422, answer.text
        assert len(answer.content) < 1000
        assert not any(word in answer.text for word in ("Traceback", "BytesIO", str(Path(hs.__file__).parent), "site-packages"))
    assert labels_of(client, task, own, PICTURES[:2]) == ["a", "b"]


BODIES = [
    b"",
    b"{",
    b"null",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"\xff\xfe",
    b'{"examples": ["\\ud800"], "labels": ["a"]}',
    b'{"examples": [[NaN, 0, 0], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[Infinity, 0, 0], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[1e999, 0, 0], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[1e38, 0, 0], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[' + b"9" * 5000 + b', 0, 0], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [["1", true, null], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[1, 1], [1, 1, 1]], "labels": ["a", "b"]}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", "b"], "steps": 1000000}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", NaN]}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", true]}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", "' + b"b" * 1000 + b'"]}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a"]}',
    b'{"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", "a"]}',
    b'{"examples": [' + b'["",""],' * 200_000 + b'[]], "labels": ["a"]}',
]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b[:40].decode("latin-1"))
def test_bodies_that_are_none_are_refused(body: bytes) -> None:
    with TestClient(app_of(vectors()), raise_server_exceptions=False) as client:
        answer = client.post("/tasks", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, answer.text
        assert len(answer.content) < 1000
        good = client.post("/tasks", json={"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", "b"]}).json()
        asked = client.post(
            f"/tasks/{good['id']}/predict", json={"examples": [[0, 1, 1]]}, headers={"Authorization": "Bearer " + good["token"]}
        )
        assert asked.json()["predictions"][0]["label"] == "a"


def test_more_classes_than_the_network_has_outputs() -> None:
    learner = hs.anil(hs.models.mlp(features=3, ways=2), steps=2, lr=0.1)
    with TestClient(app_of(TrainedStart(learner, Preprocessing("vectors", (3,))))) as client:
        answer = client.post("/tasks", json={"examples": [[0, 0, float(i)] for i in range(400)], "labels": list(range(400))})
        assert answer.status_code == 422
    with TestClient(app_of(vectors())) as client:
        answer = client.post("/tasks", json={"examples": [[0, 0, float(i)] for i in range(400)], "labels": list(range(400))})
        assert (answer.status_code, len(answer.json()["classes"])) == (201, 400)


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def tried(operation: Any, task: dict[str, Any]) -> None:
    @settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        if len(case.path_parameters.get("id", "")) % 2:  # else every task would be unknown
            case.path_parameters = {"id": task["id"]}
            case.headers["Authorization"] = f"Bearer {task['token']}"
        elif not case.path_parameters:
            case.headers.pop("Authorization", None)  # a token of no one makes no task
        if isinstance(case.body, dict) and isinstance(case.body.get("labels"), list):  # a schema cannot say that they are as many
            size = min(len(case.body["examples"]), len(case.body["labels"]))
            case.body = {k: v[:size] for k, v in case.body.items()}
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    statuses: set[int] = set()
    run()
    assert min(statuses) < 300, "some of what the schema allows is taken"


def test_what_the_schema_allows_never_breaks_the_server() -> None:
    app = app_of(vectors(), Limits(max_tasks=50))
    client = TestClient(app)
    operations = [found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()]
    assert len(operations) == 8
    for operation in operations:
        tried(operation, client.post("/tasks", json={"examples": [[1, 1, 1], [0, 0, 0]], "labels": ["a", "b"]}).json())
