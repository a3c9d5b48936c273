"""The server behind the page: it keeps nothing but the last few tasks that were learned."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response

from headstart.errors import DataError, HeadstartError
from headstart.playing.about import about, drawable
from headstart.playing.asked import STEPS, Adapting, Predicting, Rate, asked, content
from headstart.playing.held_out import HeldOut
from headstart.playing.task import Learned, own_rate, seen
from headstart.using import TrainedStart

KEPT = 32
"""Tasks that are kept in memory; a page that asks for an older one learns it again."""
PAGE = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css"), "page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
T = TypeVar("T")


class Table:
    """A start, the tasks that were learned of it lately, and the one thread that the model runs in.

    Args:
        start: what learns.
    """

    def __init__(self, start: TrainedStart) -> None:
        self.start = start
        self.tasks: OrderedDict[str, Learned] = OrderedDict()
        self.held_out: asyncio.Task[HeldOut | None] | None = None
        self._thread = ThreadPoolExecutor(1, "model")  # a model's modules are changed while it runs, so that one at a time may

    async def run(self, function: Callable[[], T]) -> T:
        """What a function gives, run beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def keep(self, learned: Learned) -> str:
        """The name under which a task is kept; the oldest goes."""
        name = secrets.token_urlsafe(9)
        self.tasks[name] = learned
        while len(self.tasks) > KEPT:
            self.tasks.popitem(last=False)
        return name

    def task(self, name: str) -> Learned:
        """A task that is kept.

        Raises:
            HTTPException: it is gone (404).
        """
        if name not in self.tasks:
            raise HTTPException(404, "this task is no longer kept; teach it again")
        self.tasks.move_to_end(name)
        return self.tasks[name]

    async def episodes(self) -> HeldOut | None:
        """The held-out episodes, drawn when they are first asked for; None where there are none."""
        if self.held_out is None:
            self.held_out = asyncio.create_task(self._drawn())
        return await asyncio.shield(self.held_out)

    async def _drawn(self) -> HeldOut | None:
        try:
            tasks = await asyncio.to_thread(HeldOut.drawn, self.start)  # may take ten seconds, once on a machine; others go on
        except DataError:  # such as of fonts that are missing: the page does without
            return None
        return await self.run(lambda: HeldOut.of(self.start, tasks))


def page_app(start: TrainedStart) -> FastAPI:
    """The app of the page.

    Args:
        start: learns what is drawn.

    Raises:
        ConfigError: it takes no pictures.

    Example:
        >>> import headstart as hs
        >>> from headstart.using import Preprocessing
        >>> learner = hs.protonet(hs.models.conv4(channels=1, ways=5, size=28, filters=4))
        >>> app = page_app(TrainedStart(learner, Preprocessing("pictures", (1, 28, 28), ink="framed")))
        >>> app.title
        'headstart playground'
    """
    app = FastAPI(title="headstart playground", docs_url=None, redoc_url=None, openapi_url=None)
    # Only this machine is meant: a page from elsewhere cannot come in under a name of its own that leads here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    app.add_exception_handler(HeadstartError, _refused)
    _add_page(app)
    _add_calls(app, Table(drawable(start)))
    return app


async def _refused(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 422)


def _add_page(app: FastAPI) -> None:
    for path, (name, kind) in PAGE.items():
        text = (files("headstart") / "playing" / name).read_text(encoding="utf-8")
        answer = Response(text, media_type=kind, headers=HEADERS)
        app.add_api_route(f"/{path}", lambda answer=answer: answer, methods=["GET"], response_class=Response)


def _add_calls(app: FastAPI, table: Table) -> None:
    @app.get("/about")
    async def shown() -> dict[str, Any]:
        return about(table.start)

    @app.post("/adapt")
    async def adapt(request: Request) -> dict[str, Any]:
        """Learns a task from its drawings."""
        wanted = await asked(request, Adapting)
        names = [c.name for c in wanted.classes]
        if len(set(names)) < len(names):
            raise HTTPException(422, f"two classes have the name {max(names, key=names.count)!r}; give each its own")
        if wanted.lr is not None and own_rate(table.start.learner) is None:
            raise HTTPException(422, "this start has no single step size to change; leave lr out")
        classes = [(c.name, [content(one) for one in c.drawings]) for c in wanted.classes]
        learned = await table.run(lambda: Learned.of(table.start, classes, wanted.steps, wanted.lr))
        pictures = iter(seen(learned.predictor.x))
        return {
            "id": table.keep(learned),
            "ms": learned.ms,
            "classes": [{"name": name, "seen": [next(pictures) for _ in drawings]} for name, drawings in classes],
        }

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        """What a drawing is, by a task that was learned."""
        wanted = await asked(request, Predicting)
        task, picture = table.task(wanted.id), content(wanted.drawing)
        return await table.run(lambda: task.says(picture))

    @app.get("/curves/{name}")
    async def curves(name: str) -> dict[str, Any]:
        """The support loss and the accuracy on left-out drawings, by inner steps."""
        task = table.task(name)
        return await table.run(lambda: task.curves(STEPS))

    @app.get("/held-out")
    async def held_out(lr: Annotated[Rate | None, Query()] = None) -> dict[str, Any]:
        """The accuracy on episodes of characters that the start never saw, by inner steps; nothing where there are none at hand."""
        if lr is not None and own_rate(table.start.learner) is None:
            raise HTTPException(422, "this start has no single step size to change; leave lr out")
        found = await table.episodes()
        return {} if found is None else await table.run(lambda: found.accuracy(STEPS, lr))
