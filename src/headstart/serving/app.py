"""The HTTP side of a server: routes, errors and the schema."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.requests import ClientDisconnect

from headstart.errors import CheckpointError, HeadstartError
from headstart.serving.bodies import Answers, Body, Health, Problem, TaskMade, TaskSaid, TasksSaid
from headstart.serving.limits import Busy, Limits, Refusal, TooLarge, WrongType
from headstart.serving.metrics import Measured, Metrics
from headstart.serving.page import page
from headstart.serving.service import Service, plain, said_of
from headstart.using import TrainedStart
from headstart.version import __version__

log = logging.getLogger("headstart")
TOKEN, MESSAGE = 200, 600
"""Letters of a token and of a message; longer ones are cut."""
ABOUT = "A server that learns a task from a few examples. Tasks are private: each answers to the token that came with it."
WHY = {
    404: "no such task, or another's",
    413: "too large a body",
    415: "not application/json",
    422: "not such as is taken",
    503: "too much to do",
    504: "it took too long",
}
CLOSING = (413, 415, 503, 504)
"""After which the rest of a body is not waited for."""
NO_TASK, NO_WORK = (404,), (413, 415, 422, 503, 504)


def app_of(start: TrainedStart, limits: Limits | None = None, state: str | Path | None = None) -> FastAPI:
    """The application that serves a start; one for each start, as a learner adapts one task at a time.

    Args:
        start: what tasks are adapted from.
        limits: what is taken.
        state: the folder that tasks are kept in, and read from now; None for memory alone.

    Raises:
        CheckpointError: the folder cannot be used.
        ConfigError: the start cannot be kept in a file.

    Example:
        >>> import headstart as hs
        >>> from headstart.using import Preprocessing
        >>> app = app_of(TrainedStart(hs.protonet(hs.models.mlp(features=2, ways=2)), Preprocessing("vectors", (2,))))
        >>> sorted(app.openapi()["paths"])[-3:]
        ['/tasks/{id}', '/tasks/{id}/examples', '/tasks/{id}/predict']
    """
    service = Service(start, limits or Limits(), None if state is None else Path(state))
    metrics = Metrics()

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="headstart", version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=life)
    app.add_middleware(Measured, metrics=metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HeadstartError, _mistaken)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _broken)
    _task_routes(app, service)
    _other_routes(app, service, metrics)
    app.openapi = lambda: _schema(app, service)  # type: ignore[method-assign]
    return app


def _task_routes(app: FastAPI, service: Service) -> None:
    support, queries = service.bodies.support, service.bodies.queries

    @app.post("/tasks", status_code=201, response_model=TaskMade, **_said((*NO_TASK, *NO_WORK), support))
    async def make(request: Request) -> Response:
        """Learns a new task from labelled examples. The answer has its token, which is told only here; with a token of an earlier task
        in the request the new one answers to that too."""
        async with service.work.place():
            task, token = await service.make(await _content(request, service.limits.max_body), _token(request))
        return JSONResponse({**said_of(task), "token": token}, 201)

    @app.get("/tasks", response_model=TasksSaid, **_said(()))
    async def owned(request: Request) -> Response:
        """The tasks of a token, the last used first; none for a token that is not known."""
        return JSONResponse({"tasks": [said_of(task) for task in service.held.owned(_token(request))]})

    @app.get("/tasks/{id}", response_model=TaskSaid, **_said(NO_TASK))
    async def one(id: str, request: Request) -> Response:
        """A task."""
        return JSONResponse(said_of(service.held.find(id, _token(request))))

    @app.delete("/tasks/{id}", status_code=204, **_said(NO_TASK))
    async def remove(id: str, request: Request) -> Response:
        """Forgets a task, its examples and its files."""
        service.remove(service.held.find(id, _token(request)))
        return Response(status_code=204)

    @app.post("/tasks/{id}/examples", response_model=TaskSaid, **_said((*NO_TASK, *NO_WORK), support))
    async def extend(id: str, request: Request) -> Response:
        """Adds labelled examples; labels that are not known yet are further classes. A request that fails changes nothing."""
        task = service.held.find(id, _token(request))
        async with service.work.place():
            await service.extend(task, await _content(request, service.limits.max_body))
        return JSONResponse(said_of(task))

    @app.post("/tasks/{id}/predict", response_model=Answers, **_said((*NO_TASK, *NO_WORK), queries))
    async def predict(id: str, request: Request) -> Response:
        """The class or number of each example. The label is null where the calibration is too unsure, unless unknown is false."""
        task = service.held.find(id, _token(request))
        async with service.work.place():
            found = await service.predict(task, await _content(request, service.limits.max_body))
        return Response(found, media_type="application/json")


def _other_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    start = service.start

    @app.get("/health", response_model=Health)
    async def health() -> Response:
        """What the server takes. It answers also while there is much to do."""
        own, labels = start.preprocessing, [plain(v) for v in start.classes]
        said = {"status": "ok", "kind": own.kind, "shape": list(own.shape), "regression": start.regression, "labels": labels}
        return JSONResponse(said)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def measured() -> str:
        """Counts and times, in the text format of Prometheus."""
        return metrics.text({"headstart_tasks": len(service.held), "headstart_requests_at_work": service.work.taken})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        return page(app.openapi())


async def _content(request: Request, most: int) -> bytes:
    """The body, which is read no further than it may be long."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise WrongType("send JSON, with the header Content-Type: application/json")  # no web page sends that elsewhere unasked
    said = request.headers.get("content-length", "")
    message = f"the body has more than {most} bytes; send less at a time"
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > most):
        raise TooLarge(message)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TooLarge(message)
        parts.append(part)
    return b"".join(parts)


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip()[:TOKEN] if scheme.lower() == "bearer" else ""


def _problem(status: int, detail: str) -> JSONResponse:
    headers = {"Connection": "close"} if status in CLOSING else {}
    return JSONResponse({"detail": detail[:MESSAGE]}, status, headers | ({"Retry-After": "1"} if status == Busy.status else {}))


async def _refused(_: Request, error: Exception) -> Response:
    return _problem(getattr(error, "status", 422), str(error))


async def _mistaken(request: Request, error: Exception) -> Response:
    if isinstance(error, CheckpointError):  # its message names files of the server
        return await _broken(request, error)
    return _problem(422, str(error))


async def _gone(_: Request, error: Exception) -> Response:
    return _problem(400, "the client went away")  # no one reads it, but it is counted


async def _broken(request: Request, error: Exception) -> Response:
    log.error("%s %s failed: %r", request.method, getattr(request.scope.get("route"), "path", "?"), error)
    return _problem(500, "the server failed; its log says more")


def _said(refusals: tuple[int, ...], body: type[Body] | None = None) -> dict[str, Any]:
    """What the schema says of a route beside its answer."""
    extra: dict[str, Any] = {"security": [{"token": []}]}
    if body is not None:
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"responses": {status: {"model": Problem, "description": WHY[status]} for status in refusals}, "openapi_extra": extra}


def _schema(app: FastAPI, service: Service) -> dict[str, Any]:
    """The schema, with the bodies, which are read in threads and not by FastAPI."""
    if app.openapi_schema is None:
        found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = found.setdefault("components", {})
        bodies = (service.bodies.support, service.bodies.queries)
        parts.setdefault("schemas", {}).update(
            {b.__name__: b.model_json_schema(ref_template="#/components/schemas/{model}") for b in bodies}
        )
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = json.loads(json.dumps(found))
    return app.openapi_schema
