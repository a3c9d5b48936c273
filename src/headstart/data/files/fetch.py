"""Downloads of data sets: resumed where they were cut, checked, and done by one process at a time."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from headstart.errors import DataError

log = logging.getLogger("headstart")
TRIES = 5
TIMEOUT = 30.0  # seconds without a byte
PAUSE = 1.0  # seconds before the second try, doubled from one to the next
CHUNK = 2**18


@dataclass(frozen=True)
class Remote:
    """A file that can be fetched.

    Args:
        url: http or https address.
        file: name to keep it under.
        md5: of the whole file, in hexadecimal.
        size: in bytes, or None if it is not known.
        licence: one line.
        by_hand: what else to say to those who fetch it themselves.
    """

    url: str
    file: str
    md5: str
    size: int | None = None
    licence: str = ""
    by_hand: str = ""

    def instruction(self, folder: Path) -> str:
        """How to do without :func:`fetch`."""
        return f"to fetch it by hand, put {self.url} at {folder / self.file}" + (f"; {self.by_hand}" if self.by_hand else "")


_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
REMOTES: dict[str, tuple[Remote, ...]] = {
    "cifar-100": (
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            169001437,
            "no formal licence; research use; cite Krizhevsky (2009)",
        ),
    ),
    "omniglot": tuple(
        Remote(_OMNIGLOT + file, file, md5, licence="MIT, Brenden Lake")
        for file, md5 in (
            ("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
            ("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
        )
    ),
}


def fetch(remote: Remote, folder: str | Path, *, progress: bool = True) -> Path:
    """A checked copy of a remote file in a folder, fetched if it is not there yet.

    What arrives is kept in ``FILE.part`` and moved into place once its checksum is right, so a download that was cut goes on where
    it stopped, in this call or a later one, unless the server's file has changed.

    Args:
        remote: what to fetch.
        folder: where to; made if it does not exist.
        progress: whether to show a bar, on a terminal.

    Raises:
        DataError: no connection, no such file, no room, a folder that cannot be written, or a wrong checksum; with what to do by hand.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "note.txt").write_bytes(b"hello")
        ...     remote = Remote("https://example.org/note.txt", "note.txt", "5d41402abc4b2a76b9719d911017c592")
        ...     fetch(remote, folder).name  # it is there, and right
        'note.txt'
    """
    folder = Path(folder)
    try:
        if _there(remote, folder):
            return folder / remote.file
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{remote.file}.lock"):
            if not _there(remote, folder):  # another process may have fetched it while this one waited
                _Download(remote, folder, progress).run()
    except OSError as error:
        part = folder / f"{remote.file}.part"
        raise DataError(f"{part} cannot be written or read ({error.strerror or error}); {remote.instruction(folder)}") from error
    return folder / remote.file


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _there(remote: Remote, folder: Path) -> bool:
    target = folder / remote.file
    if not target.is_file():
        return False
    found = _md5(target)
    if found != remote.md5:  # it may be someone's own, so it is not written over
        raise DataError(f"{target} has md5 {found}, not {remote.md5}; move it away, and it is fetched anew; {remote.instruction(folder)}")
    return True


def _lock(path: Path) -> AbstractContextManager[Any]:
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is fetching %s; waiting for it", path.stem)
        return lock.acquire()


class _Cut(Exception):
    """The connection failed in a way that may pass."""


class _Download:
    def __init__(self, remote: Remote, folder: Path, progress: bool) -> None:
        self.remote, self.folder, self.progress = remote, folder, progress
        self.target = folder / remote.file
        self.part = folder / f"{remote.file}.part"
        self.version = folder / f"{remote.file}.part.version"  # the server's name for what the part is a part of

        self.arrived = False

    def run(self) -> None:
        reason = ""
        for trial in range(TRIES):
            if trial:
                time.sleep(PAUSE * 2 ** (trial - 1))
            try:
                self._more()
                break
            except _Cut as cut:
                log.info("%s: %s (try %d of %d)", self.remote.url, cut, trial + 1, TRIES)
                reason = str(cut)
        else:
            self._fail(f"{reason}, {TRIES} times; calling again goes on where it stopped")
        found = _md5(self.part)
        if found != self.remote.md5:
            self._forget()
            self._fail(f"what arrived has md5 {found}, not the expected {self.remote.md5}, and was removed")
        os.replace(self.part, self.target)
        self._forget()

    def _fail(self, what: str) -> None:
        raise DataError(f"{self.remote.url}: {what}; {self.remote.instruction(self.folder)}")

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def _more(self) -> None:
        """One request, for what is not there yet."""
        have = self.part.stat().st_size if self.part.is_file() else 0
        version = self.version.read_text() if have and self.version.is_file() else ""
        if not version:
            have = 0  # nothing says that the part belongs to the file as it is now
        ask = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.remote.url, headers=ask), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and have:
                if _md5(self.part) != self.remote.md5:
                    self._forget()
                    raise _Cut("the server has no more than what was there, which is wrong") from error
                return
            if error.code >= 500 or error.code in (408, 429):
                raise _Cut(f"the server answers {error.code} {error.reason}") from error
            self._fail(f"the server answers {error.code} {error.reason}")
        except urllib.error.URLError as error:  # no connection at all
            if not self.arrived:
                self._fail(f"no connection ({error.reason})")
            raise _Cut(f"no connection ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(f"the connection failed ({type(error).__name__}: {error})") from error
        with answer:
            self._receive(answer, have)

    def _receive(self, answer: Any, have: int) -> None:
        etag = answer.headers.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified", "")
        if answer.status == 206:
            start = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if start is None or int(start[1]) != have or version not in ("", self.version.read_text()):
                self._forget()
                raise _Cut("the server sent another part than the one asked for")
        else:  # the whole file: no part was asked for, or the server cannot, or its file has changed
            have = 0
            self._forget()
            self.version.write_text(version)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else self.remote.size
        # disable=None: only on a terminal.
        bar = tqdm(desc=self.remote.file, total=total, initial=have, unit="B", unit_scale=True, disable=None if self.progress else True)
        with bar, self.part.open("ab") as out:
            while self.remote.size is None or have <= self.remote.size:  # more than that is wrong, and need not fill the disk
                try:
                    chunk = answer.read(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _Cut(f"the connection was cut after {have} bytes ({type(error).__name__})") from error
                if not chunk:
                    if total is not None and have < total:
                        raise _Cut(f"the connection was cut after {have} of {total} bytes")
                    break
                out.write(chunk)
                have += len(chunk)
                self.arrived = True
                bar.update(len(chunk))
