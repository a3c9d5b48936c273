from __future__ import annotations

import hashlib
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.data.files import fetch as module
from headstart.data.files.fetch import REMOTES, Remote, fetch
from headstart.errors import DataError

CONTENT = np.random.default_rng(0).bytes(700_001)


class Server(ThreadingHTTPServer):
    """A loopback server that can do without ranges, cut connections, and wait."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.version: dict[str, str] = {"ETag": '"one"'}
        self.ranges = self.if_range = self.length = True
        self.cuts: list[int] = []  # bytes after which the first, second, … answer is cut
        self.statuses: list[int] = []  # of the first, second, … answer instead of the file
        self.asked: list[tuple[str | None, str | None]] = []  # Range and If-Range
        self.arrived, self.go = threading.Event(), threading.Event()
        self.go.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/data.bin"


class Handler(BaseHTTPRequestHandler):
    timeout = 20
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        own = self.server
        asked, same = self.headers.get("Range"), self.headers.get("If-Range")
        own.asked.append((asked, same))
        own.arrived.set()
        own.go.wait(20)
        status = own.statuses.pop(0) if own.statuses else 200
        if status != 200 or len(own.asked) > 30:
            return self.send_error(status if status != 200 else 500)
        start = 0
        if asked and own.ranges and (not own.if_range or same in own.version.values()):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(own.content):
                return self.send_error(416)
            status = 206
        body = own.content[start:]
        self.send_response(status)
        for key, value in own.version.items():
            self.send_header(key, value)
        if own.length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(own.content) - 1}/{len(own.content)}")
        self.end_headers()
        self.wfile.write(body[: own.cuts.pop(0)] if own.cuts else body)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "TIMEOUT", 20.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    own = Server()
    thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield own
    own.go.set()
    own.shutdown()
    own.server_close()
    thread.join(20)


def remote(server: Server, content: bytes = CONTENT, size: int | None = None) -> Remote:
    return Remote(server.url, "data.bin", hashlib.md5(content).hexdigest(), size, "none", "ask Ada for the key")


def left(folder: Path) -> set[str]:
    return {f.name for f in folder.iterdir()} - {"data.bin.lock"}


@pytest.mark.parametrize("size", [None, len(CONTENT)])
@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, size: int | None, length: bool) -> None:
    server.length = length
    for _ in range(2):
        path = fetch(remote(server, size=size), tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "data.bin"
        assert path.read_bytes() == CONTENT
    assert server.asked == [(None, None)]
    assert left(path.parent) == {"data.bin"}


@pytest.mark.parametrize("version", [{"ETag": '"one"'}, {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_a_cut_connection_is_resumed_in_the_same_call(server: Server, tmp_path: Path, version: dict[str, str]) -> None:
    server.version, server.cuts = version, [300_000, 100_000]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    strong = version.get("Last-Modified", '"one"')
    assert server.asked == [(None, None), ("bytes=300000-", strong), ("bytes=400000-", strong)]
    assert left(tmp_path) == {"data.bin"}


def test_a_later_call_resumes(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000] + [0] * 4
    with pytest.raises(DataError, match=r"cut after 1000 of 700001 bytes.*by hand"):
        fetch(remote(server), tmp_path)
    assert len(server.asked) == module.TRIES
    assert left(tmp_path) == {"data.bin.part", "data.bin.part.version"}
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("bytes=1000-", '"one"')
    assert left(tmp_path) == {"data.bin"}


@pytest.mark.parametrize("version", [{"ETag": '"one"'}, {}])
def test_a_server_without_ranges_or_versions_sends_all_again(server: Server, tmp_path: Path, version: dict[str, str]) -> None:
    server.ranges, server.version, server.cuts = not version, version, [300_000]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("if_range", [True, False], ids=["the server minds If-Range", "it does not"])
def test_a_file_that_has_changed_is_fetched_from_its_start(server: Server, tmp_path: Path, if_range: bool) -> None:
    old = remote(server)
    server.cuts = [5000] + [0] * 4
    with pytest.raises(DataError, match="cut"):
        fetch(old, tmp_path)
    server.content, server.version, server.if_range = CONTENT[::-1], {"ETag": '"two"'}, if_range
    assert fetch(remote(server, CONTENT[::-1]), tmp_path).read_bytes() == CONTENT[::-1]
    assert server.asked[5:] == ([("bytes=5000-", '"one"')] if if_range else [("bytes=5000-", '"one"'), (None, None)])


def test_a_complete_part_is_used_and_a_wrong_one_started_over(server: Server, tmp_path: Path) -> None:
    part, version = tmp_path / "data.bin.part", tmp_path / "data.bin.part.version"
    for content in (CONTENT, CONTENT[::-1] + b"more"):
        part.write_bytes(content)
        version.write_text('"one"')
        assert fetch(remote(server), tmp_path).read_bytes() == CONTENT
        (tmp_path / "data.bin").unlink()
    assert [a for a, _ in server.asked] == ["bytes=700001-", "bytes=700005-", None]


@pytest.mark.parametrize("size", [None, 1000])
def test_a_wrong_checksum_removes_what_arrived(server: Server, tmp_path: Path, size: int | None) -> None:
    wanted = remote(server, b"something else", size)
    with pytest.raises(DataError) as caught:
        fetch(wanted, tmp_path)
    message = str(caught.value)
    if size is None:
        assert hashlib.md5(CONTENT).hexdigest() in message
    assert wanted.md5 in message
    assert f"put {server.url} at {tmp_path / 'data.bin'}; ask Ada" in message
    assert left(tmp_path) == set()
    assert len(server.asked) == 1


def test_a_file_of_ones_own_is_not_written_over(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="move it away"):
        fetch(remote(server), tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"mine"
    assert not server.asked


def test_answers_that_are_final_and_answers_that_may_pass(server: Server, tmp_path: Path) -> None:
    for status in (404, 403):
        server.statuses, server.asked = [status], []
        with pytest.raises(DataError, match=rf"answers {status} .*by hand, put http://127"):
            fetch(remote(server), tmp_path)
        assert len(server.asked) == 1
    server.statuses = [503, 429, 408]
    assert fetch(remote(server), tmp_path).read_bytes() == CONTENT


def test_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but no one listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
        with pytest.raises(DataError, match=r"no connection \(.*refused.*by hand"):
            fetch(Remote(url, "data.bin", "0" * 32), tmp_path)
        taken.listen()  # someone listens, and never answers
        monkeypatch.setattr(module, "TIMEOUT", 0.05)
        with pytest.raises(DataError, match=r"TimeoutError.*5 times.*by hand"):
            fetch(Remote(url, "data.bin", "0" * 32), tmp_path)


def test_folders_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"(Not a directory|exists).*by hand"):
        fetch(remote(server), tmp_path / "file")
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    real = Path.open

    def full(self: Path, *args: Any, **options: Any) -> Any:
        return real(Path("/dev/full") if self.suffix == ".part" else self, *args, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DataError, match=r"No space left.*by hand"):
        fetch(remote(server), tmp_path)


@pytest.mark.parametrize("first", ["thread", "process"])
def test_two_at_once_fetch_once(server: Server, tmp_path: Path, first: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    server.go.clear()
    wanted, got = remote(server), []
    threads = [threading.Thread(target=lambda: got.append(fetch(wanted, tmp_path).read_bytes()), daemon=True) for _ in range(2)]
    if first == "process":
        program = f"from headstart.data.files.fetch import *; fetch({wanted!r}, {str(tmp_path)!r})"
        process = subprocess.Popen([sys.executable, "-c", program])
        threads.pop()
    else:
        threads.pop().start()
    assert server.arrived.wait(60)
    threads[0].start()
    for _ in range(2000):
        if "another process is fetching data.bin" in caplog.text:
            break
        time.sleep(0.01)
    server.go.set()
    threads[0].join(60)
    if first == "process":
        assert process.wait(60) == 0
    assert "waiting for it" in caplog.text
    for _ in range(2000):
        if len(got) == 1 + (first == "thread"):
            break
        time.sleep(0.01)
    assert got == [CONTENT] * (1 + (first == "thread"))
    assert len(server.asked) == 1
    assert left(tmp_path) == {"data.bin"}


def test_the_remotes_are_complete() -> None:
    remotes = [r for group in REMOTES.values() for r in group]
    assert len({r.file for r in remotes}) == len(remotes) == 3
    for one in remotes:
        assert re.fullmatch(r"https://\S+/" + re.escape(one.file), one.url)
        assert re.fullmatch("[0-9a-f]{32}", one.md5)
        assert one.licence
