"""What tests of the server share: small starts, pictures, and a client."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import headstart as hs
from headstart.serving import app_of
from headstart.using import Preprocessing, TrainedStart

PIXELS = np.random.default_rng(0).integers(0, 255, (12, 32, 32), np.uint8)


def encoded(pixels: Any, kind: str = "PNG", **how: Any) -> str:
    Image.fromarray(pixels).save(file := io.BytesIO(), kind, **how)
    return base64.b64encode(file.getvalue()).decode()


PICTURES = [encoded(one) for one in PIXELS]


@pytest.fixture(scope="module")
def start() -> TrainedStart:
    torch.manual_seed(0)
    model = hs.models.conv4(channels=1, ways=5, size=28, filters=4)
    for _ in range(20):  # batch statistics, so that features of different pictures differ
        model(torch.randn(16, 1, 28, 28))
    return TrainedStart(hs.protonet(model), Preprocessing("pictures", (1, 28, 28), (0.5,), (0.5,)))


def vectors(**how: Any) -> TrainedStart:
    return TrainedStart(hs.protonet(hs.models.projection(features=3, ways=2)), Preprocessing("vectors", (3,)), **how)


@pytest.fixture
def client(start: TrainedStart) -> Iterator[TestClient]:
    with TestClient(app_of(start), raise_server_exceptions=False) as found:
        yield found


def made(client: TestClient, labels: list[Any], first: int = 0, token: str = "") -> tuple[str, dict[str, str]]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    body = {"examples": PICTURES[first : first + len(labels)], "labels": labels}
    answer = client.post("/tasks", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    said = answer.json()
    assert said["support_accuracy"] == 1.0
    return said["id"], {"Authorization": f"Bearer {said['token']}"}


def labels_of(client: TestClient, task: str, own: dict[str, str], pictures: list[str]) -> list[Any]:
    answer = client.post(f"/tasks/{task}/predict", json={"examples": pictures, "unknown": False}, headers=own)
    assert answer.status_code == 200, answer.text
    return [one["label"] for one in answer.json()["predictions"]]
