"""Batches prepared while the last one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")


class Batches(Generic[T]):
    """Draws the batches of an outer loop, one ahead, in a thread of its own.

    What is drawn depends on the index alone, so the numbers are the same; an error is raised when its batch is asked for. A sampler
    of the user's own may draw from torch's global random numbers: it is asked in the caller's thread, one batch at a time, unless
    it has ``prefetch = True``.

    Args:
        draw: gives the batch with an index, or what this process does of it.
        last: no batch from this index on is asked for.
        ahead: whether it may be asked in another thread.

    Example:
        >>> from headstart.data import Sinusoid
        >>> with Batches(Sinusoid(tasks=2).batch, last=3, ahead=True) as batches:
        ...     batches[0]
        TaskBatch(2 tasks, 10 support and 10 query examples each)
    """

    def __init__(self, draw: Callable[[int], T], last: int, ahead: bool) -> None:
        self._by_index, self._last, self._ahead = draw, last, ahead
        self._next: tuple[int, Future[T]] | None = None

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(1, "headstart-batches", _begin, (self._threads > 1,))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __getitem__(self, index: int) -> T:
        if not self._ahead:
            return self._by_index(index)
        ready = self._next[1] if self._next is not None and self._next[0] == index else self._draw(index)
        batch = ready.result()
        if self._next is None and self._threads > 1:
            # The thread took one core for itself; the setting is global for threads to come, though not for this one.
            torch.set_num_threads(self._threads)
        self._next = (index + 1, self._draw(index + 1)) if index + 1 < self._last else None
        return batch

    def _draw(self, index: int) -> Future[T]:
        return self._pool.submit(self._by_index, index)


def _begin(several: bool) -> None:
    torch.set_flush_denormal(True)  # as in the thread that trains: it is a setting of each thread
    if several:
        torch.set_num_threads(1)  # a second set of threads would wait for work on the cores that train
