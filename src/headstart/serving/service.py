"""What a server does with a request, apart from HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.errors import CheckpointError, TaskError
from headstart.serving.bodies import Bodies, read
from headstart.serving.examples import Reader
from headstart.serving.held import Held, Task, digest, new_id, new_token
from headstart.serving.kept import Kept, log
from headstart.serving.limits import Busy, Limits, UnknownTask
from headstart.serving.work import Work
from headstart.using import Predictor, TrainedStart


class Service:
    """A start, the tasks that were adapted from it, and the threads that do the work.

    Tasks are looked up and changed on the event loop alone; all that takes time runs in threads.

    Args:
        start: what is adapted.
        limits: what is taken.
        state: the folder that tasks are kept in; None for memory alone.

    Raises:
        CheckpointError: the folder cannot be used.
        ConfigError: the start cannot be kept in a file.
    """

    def __init__(self, start: TrainedStart, limits: Limits, state: Path | None) -> None:
        self.start, self.limits = start, limits
        self.bodies, self.reader = Bodies.of(start, limits), Reader(start, limits)
        self.work, self.held = Work(limits), Held(limits.max_tasks)
        self.kept = None if state is None else Kept(state, start)
        if self.kept is not None:
            for task in self.kept.load():
                self._let_go(self.held.add(task))
            log.info("state: %d tasks from %s", len(self.held), state)

    async def make(self, content: bytes, token: str) -> tuple[Task, str]:
        """A new task of a body; with a token it joins that client's others, else it gets a token of its own."""
        if token and not self.held.owned(token):
            raise UnknownTask
        token = token or new_token()
        x, labels = await self.work.on(self.work.workers, lambda: self._support(content))
        predictor, ms = await self._adapted(lambda: Predictor.of(self.start, x, labels))
        accuracy = await self.work.on(self.work.workers, lambda: predictor.support_accuracy)
        task = Task(new_id(), digest(token), predictor, accuracy, ms)
        await self._keep(task, predictor, lambda kept: kept.remove(task.id))
        self._let_go(self.held.add(task))
        return task, token

    async def extend(self, task: Task, content: bytes) -> None:
        """Adds the examples of a body to a task, one request after the other; if one fails the task stays as it was."""
        x, labels = await self.work.on(self.work.workers, lambda: self._support(content))
        async with task.changing:
            before = task.predictor
            if len(before.x) + len(x) > self.limits.max_images:
                raise TaskError(
                    f"the task would have {len(before.x) + len(x)} examples, and there may be {self.limits.max_images}; make another task"
                )
            predictor, ms = await self._adapted(lambda: before.with_examples(x, labels))
            accuracy = await self.work.on(self.work.workers, lambda: predictor.support_accuracy)
            changed = Task(task.id, task.owner, predictor, accuracy, ms)
            await self._keep(changed, predictor, lambda kept: kept.save(task, before) if task in self.held else kept.remove(task.id))
            if task not in self.held:  # it was deleted, or had to go, while this was done
                self._let_go([task])
                raise UnknownTask
            task.predictor, task.accuracy, task.ms = predictor, accuracy, ms

    async def predict(self, task: Task, content: bytes) -> bytes:
        """The answer to a body of examples, as JSON."""
        predictor = task.predictor
        return await self.work.on(self.work.workers, lambda: self._answers(predictor, content))

    def remove(self, task: Task) -> None:
        """Forgets a task."""
        self.held.remove(task)
        self._let_go([task])

    def close(self) -> None:
        """Waits for the threads."""
        self.work.close()

    def _support(self, content: bytes) -> tuple[Tensor, list[Any]]:
        until = time.monotonic() + self.limits.timeout
        body = read(self.bodies.support, content)
        if len(body.examples) != len(body.labels):  # before anything is decoded
            raise TaskError(f"{len(body.examples)} examples with {len(body.labels)} labels; give each example one")
        return self.reader.read(body.examples, until), body.labels

    async def _adapted(self, adapt: Callable[[], Predictor]) -> tuple[Predictor, float]:
        def timed() -> tuple[Predictor, float]:
            begun = time.perf_counter()
            predictor = adapt()
            if not all(bool(torch.isfinite(v).all()) for v in predictor.adapted.w.values()):
                raise TaskError("adapting gave numbers that are not finite; are the examples like those the start was trained on?")
            return predictor, 1000 * (time.perf_counter() - begun)

        return await self.work.on(self.work.adapter, timed)

    def _answers(self, predictor: Predictor, content: bytes) -> bytes:
        until = time.monotonic() + self.limits.timeout
        body = read(self.bodies.queries, content)
        x = self.reader.read(body.examples, until)
        begun = time.perf_counter()
        found = predictor.predict(x, body.unknown)
        answers = []
        for one in found:
            top = list(one.probabilities.items())[: body.top]
            classes = [{"label": plain(label), "probability": p} for label, p in top]
            answers.append({"label": plain(one.label), "confidence": one.confidence if top else None, "classes": classes})
        said = {"predictions": answers, "ms": round(1000 * (time.perf_counter() - begun), 3)}
        try:
            return json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise TaskError("the model gives numbers that are not finite; are the examples like those it was trained on?") from error

    async def _keep(self, task: Task, predictor: Predictor, undo: Callable[[Kept], None]) -> None:
        """Writes a task, if tasks are kept; a request that ends while it is written leaves the folder as it was."""
        kept = self.kept
        if kept is None:
            return
        try:
            await self.work.on(self.work.files, lambda: kept.save(task, predictor))
        except CheckpointError as error:  # whose message names the folder
            log.error("state: %s", error)
            self._file(lambda: undo(kept))
            raise Busy("the server cannot keep the task at the moment") from error
        except BaseException:
            self._file(lambda: undo(kept))
            raise

    def _let_go(self, tasks: list[Task]) -> None:
        kept = self.kept
        if kept is not None:
            for name in [task.id for task in tasks]:
                self._file(lambda name=name: kept.remove(name))  # type: ignore[misc]

    def _file(self, work: Callable[[], None]) -> None:
        """Something in the folder that no request waits for."""

        def said() -> None:
            try:
                work()
            except Exception:
                log.exception("state: the folder is not as it should be")

        self.work.files.submit(said)


def said_of(task: Task) -> dict[str, Any]:
    """A task as its owner sees it."""
    own = task.predictor
    classes = [plain(label) for label in own.classes]
    return {"id": task.id, "classes": classes, "examples": len(own.x), "support_accuracy": task.accuracy, "ms": round(task.ms, 3)}


def plain(value: Any) -> Any:
    """A label as JSON holds it, also where it came out of an array."""
    return value.item() if hasattr(value, "item") else value
