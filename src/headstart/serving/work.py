"""Threads off the event loop: so many places, so much time, and nothing that piles up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from headstart.serving.limits import Busy, Late, Limits

T = TypeVar("T")


class Work:
    """Runs what requests ask for.

    Adaptation runs in one thread: while a learner adapts, the forward of its modules is another, so two at a time would disturb each
    other. What it gives is a value, so predictions run in parallel, and beside an adaptation. Files have one thread too, which keeps
    them in order.

    Args:
        limits: how much at a time, and how long.
    """

    def __init__(self, limits: Limits) -> None:
        self.seconds, self.places = limits.timeout, limits.threads + limits.waiting
        self.workers = ThreadPoolExecutor(limits.threads, "predicting")
        self.adapter = ThreadPoolExecutor(1, "adapting")
        self.files = ThreadPoolExecutor(1, "keeping")
        self.taken = 0
        self._lock = threading.Lock()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """A place among the requests that are at work, for as long as a request may take.

        Raises:
            Busy: there is none left.
            Late: the time is over.
        """
        if self.taken >= self.places:
            raise Busy("the server has as much to do as it takes; try again in a moment")
        self._count(1)
        try:
            async with asyncio.timeout(self.seconds):
                yield
        except TimeoutError as error:
            raise Late(f"the request took longer than {self.seconds:g} seconds; send less at a time") from error
        finally:
            self._count(-1)

    async def on(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """What some work gives, done in a thread of a pool."""
        future = pool.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancel() and not future.done():
                # No one can stop a thread: it keeps its place until it is through, so that late work does not pile up.
                self._count(1)
                future.add_done_callback(self._through)
            raise

    def close(self) -> None:
        """Waits for what is running; what has not begun does not begin, but for files."""
        for pool in (self.workers, self.adapter):
            pool.shutdown(cancel_futures=True)
        self.files.shutdown()

    def _through(self, _: Future[T]) -> None:
        self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self.taken += more
