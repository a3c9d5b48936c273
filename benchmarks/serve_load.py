"""Load on ``headstart serve`` over loopback: many clients that adapt and predict, and each checks its own answers.

    python benchmarks/serve_load.py [--clients 32] [--seconds 120] [--start characters]

Clients work in pairs on the same pictures with contradicting labels. Labels name the client and its turn, so that an answer out of
another's task shows: it is counted as foreign. All else that is not as it should be is wrong. Without ``--start`` one is made on the
spot; it is not trained, but each support picture is nearest to itself, so that its answers are known.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

import headstart as hs
from common import machine
from headstart.using import Preprocessing, TrainedStart

WAYS, SIZE = 5, 28


@dataclass
class Seen:
    """What clients saw."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    foreign: int = 0
    checked: int = 0


def small_start(path: Path) -> None:
    torch.manual_seed(0)
    model = hs.models.conv4(channels=1, ways=WAYS, size=SIZE, filters=32)
    for _ in range(20):
        model(torch.randn(16, 1, SIZE, SIZE))
    TrainedStart(hs.protonet(model), Preprocessing("pictures", (1, SIZE, SIZE), (0.5,), (0.5,))).save(path)


def pictures(seed: int) -> list[str]:
    """Five strokes on white, as drawings are."""
    found, random = [], np.random.default_rng(seed)
    for _ in range(WAYS):
        pixels = np.full((32, 32), 255, np.uint8)
        for x, y in random.integers(2, 24, (6, 2)):
            pixels[y : y + random.integers(1, 8), x : x + random.integers(1, 8)] = 0
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


async def client(number: int, http: httpx.AsyncClient, until: float, seen: Seen) -> None:
    """Makes a task, asks it some times, adds a class, asks again, forgets it, and begins anew."""
    own = pictures(number // 2)  # two clients have the same pictures

    async def asked(route: str, method: str, path: str, headers: dict[str, str], body: Any = None) -> Any:
        begun = time.perf_counter()
        try:
            answer = await http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            seen.statuses[f"{route} {type(error).__name__}"] += 1
            return None
        seen.seconds[route].append(time.perf_counter() - begun)
        seen.statuses[f"{route} {answer.status_code}"] += 1
        return answer.json() if answer.status_code in (200, 201) else {} if answer.status_code == 204 else None

    turn = 0
    while time.perf_counter() < until:
        turn += 1
        labels = [f"{number}/{turn}/{(i + number % 2) % WAYS}" for i in range(WAYS)]
        said = await asked("make", "POST", "/tasks", {}, {"examples": own, "labels": labels})
        if said is None:
            continue
        headers, path = {"Authorization": f"Bearer {said['token']}"}, f"/tasks/{said['id']}"
        if number % 4 == 0:
            stranger = await asked("another's token", "GET", path, {"Authorization": "Bearer x"})
            seen.foreign += stranger is not None
        for question in range(10):
            if question == 6:
                more = await asked("add", "POST", f"{path}/examples", headers, {"examples": own[:1], "labels": labels[:1]})
                seen.wrong += more is not None and more["examples"] != WAYS + 1
            order = np.random.default_rng(question).permutation(WAYS)
            body = {"examples": [own[i] for i in order], "unknown": False}
            found = await asked("predict", "POST", f"{path}/predict", headers, body)
            if found is not None:
                seen.checked += 1
                answers = [p["label"] for p in found["predictions"]]
                seen.wrong += answers != [labels[i] for i in order]
                seen.foreign += not set(answers) <= set(labels)
        if turn % 2:  # half of the tasks stay, until they are the least recently used
            await asked("delete", "DELETE", path, headers)


async def load(address: str, clients: int, seconds: float, pid: int) -> tuple[Seen, list[float]]:
    """All clients; what they saw, and the server's memory at the start, in the middle and at the end."""
    seen, memory = Seen(), [rss(pid)]
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as http:
        until = time.perf_counter() + seconds

        async def middle() -> None:
            await asyncio.sleep(seconds / 2)
            memory.append(rss(pid))

        await asyncio.gather(middle(), *(client(number, http, until, seen) for number in range(clients)))
    return seen, [*memory, rss(pid)]


def rss(pid: int) -> float:
    """MiB."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--start", default="")
    parser.add_argument("--max-tasks", type=int, default=200)
    parser.add_argument("--state", action="store_true", help="keep tasks in a folder too")
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        start = said.start or f"{folder}/start.safetensors"
        if not said.start:
            small_start(Path(start))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, "-m", "headstart.cli", "serve", start, "--port", str(port), "--max-tasks", str(said.max_tasks)]
        server = subprocess.Popen([*command, *(["--state", f"{folder}/tasks"] if said.state else [])], stdout=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            ready(address, server)
            seen, memory = asyncio.run(load(address, said.clients, said.seconds, server.pid))
            report(said, seen, memory, httpx.get(f"{address}/metrics").text)
        finally:
            server.terminate()
            server.wait(30)


def ready(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("the server did not start")
        try:
            httpx.get(f"{address}/health")
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    sys.exit("the server does not answer")


def report(said: argparse.Namespace, seen: Seen, memory: list[float], metrics: str) -> None:
    total = sum(map(len, seen.seconds.values()))
    refused = {k: v for k, v in sorted(seen.statuses.items()) if not k.endswith(("200", "201", "204")) and k != "another's token 404"}
    print(f"{machine()}\n{said.clients} clients, {said.seconds:g} s: {total} requests, {total / said.seconds:.0f} a second")
    print(f"errors: {refused or 'none'}; wrong answers: {seen.wrong} of {seen.checked} checked, foreign: {seen.foreign}")
    for route, seconds in seen.seconds.items():
        ms = [1000 * s for s in sorted(seconds)]
        print(f"{route:<16} {len(ms):>7} requests, p50 {statistics.median(ms):7.1f} ms, p99 {ms[int(0.99 * (len(ms) - 1))]:7.1f} ms")
    print("memory of the server at the start, in the middle, at the end: " + ", ".join(f"{m:.0f} MiB" for m in memory))
    print(next(line for line in metrics.splitlines() if line.startswith("headstart_tasks ")))


if __name__ == "__main__":
    main()
