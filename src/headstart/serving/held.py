"""The tasks that a server holds, and whose they are."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from headstart.serving.limits import UnknownTask
from headstart.using import Predictor


@dataclass(eq=False)
class Task:
    """A task of a client.

    Args:
        id: its name, drawn by the server.
        owner: the digest of the token that may use it; the token itself is kept nowhere.
        predictor: the adapted model, which is replaced when examples come.
        accuracy: the share of support examples that it gets right; None for real targets.
        ms: that adapting took.
        changing: held while examples are added, so that none is lost.
    """

    id: str
    owner: str
    predictor: Predictor
    accuracy: float | None
    ms: float
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)


def new_id() -> str:
    """A name for a task: 32 hexadecimal digits, fit for a file."""
    return secrets.token_hex(16)


def new_token() -> str:
    """A token that no one guesses."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


class Held:
    """Tasks in the order of their last use; used on the event loop alone.

    Args:
        most: how many are held.

    Example:
        >>> held = Held(2)
        >>> held.owned("some token")
        []
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._tasks: OrderedDict[str, Task] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, task: Task) -> bool:
        return self._tasks.get(task.id) is task

    def find(self, name: str, token: str) -> Task:
        """The task of a name, if the token is its own; it counts as used.

        Raises:
            UnknownTask: there is none, or it is another's.
        """
        task = self._tasks.get(name)
        own = hmac.compare_digest(digest(token), "" if task is None else task.owner)
        if task is None or not own:
            raise UnknownTask
        self._tasks.move_to_end(name)
        return task

    def owned(self, token: str) -> list[Task]:
        """All tasks of a token, the last used first."""
        own = digest(token)
        return [task for task in reversed(self._tasks.values()) if hmac.compare_digest(own, task.owner)]

    def add(self, task: Task) -> list[Task]:
        """Holds one more task; returns those that had to go for it."""
        self._tasks[task.id] = task
        gone = []
        while len(self._tasks) > self.most:
            gone.append(self._tasks.popitem(last=False)[1])
        return gone

    def remove(self, task: Task) -> None:
        """Lets go of a task."""
        self._tasks.pop(task.id, None)
