"""A run folder that one process writes at a time."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.container import remedy
from headstart.errors import CheckpointError
from headstart.ranks import ALONE, Ranks

LOCK = ".lock"
LEFTOVER = re.compile(r"\..+\.[0-9a-f]+\.tmp|\.tmp\w{6}")
"""What :func:`~headstart.container.write_atomically`, and safetensors within it, leave behind where a process is killed in the middle."""


@contextmanager
def held(folder: str | Path, existing: bool = False, *, mode: int = 0o777, option: str = "--out", ranks: Ranks = ALONE) -> Iterator[Path]:
    """A folder that no other process, and no other thread, may write while it is held.

    The claim is a lock on a file, which the system frees when its process ends in whatever way, so that nobody waits for the dead. Who
    holds a folder may hold it again inside.

    Args:
        folder: made if it is not there, found to be writable before any work is done, and freed of what a killed process left half-written.
        existing: refuse a folder that is not there, whose name is more likely misspelt.
        mode: of the folder, where it is made.
        option: that chooses the folder, for messages.
        ranks: processes that hold it together: the first does, for all of them.

    Raises:
        CheckpointError: another process holds it, it cannot be written, or it is not there.
    """
    with ExitStack() as stack:
        yield ranks.first(lambda: stack.enter_context(_held(folder, existing, mode, option)))


@contextmanager
def _held(folder: str | Path, existing: bool, mode: int, option: str) -> Iterator[Path]:
    path = Path(folder).absolute()
    if existing and not path.is_dir():
        raise CheckpointError(f"there is no checkpoint in {str(folder)!r}; give the folder of a run that has written one")
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        lock = FileLock(path.resolve() / LOCK, is_singleton=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise CheckpointError(
            f"another process is writing to the folder {str(folder)!r}; wait until it has ended, end it, or choose another with {option}"
        ) from error
    except (OSError, ValueError) as error:
        raise _refused(folder, error, option) from error
    try:
        try:
            for left in [p for p in path.iterdir() if LEFTOVER.fullmatch(p.name)]:
                left.unlink(missing_ok=True)
            probe = path / f".probe.{secrets.token_hex(4)}.tmp"
            try:
                probe.write_text("room?")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise _refused(folder, error, option) from error
        yield path
    finally:
        lock.release()


def _refused(folder: str | Path, error: Exception, option: str) -> CheckpointError:
    why = getattr(error, "strerror", None) or error
    return CheckpointError(f"cannot write to the folder {str(folder)!r}: {why}; {remedy(error)}choose another with {option}")
