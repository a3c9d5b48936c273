"""What the page may ask for, and how much of it: everything that comes over the network is bounded here."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.exceptions import HTTPException
from starlette.requests import Request

CLASSES, DRAWINGS, STEPS, ALL = 20, 20, 50, 100
"""At most so many classes, drawings of each, inner steps, and drawings of all classes together."""
PICTURE, BODY = 512 * 1024, 8 * 1024 * 1024
"""At most so many characters of a picture, and bytes of a whole request."""

Picture = Annotated[str, Field(min_length=1, max_length=PICTURE)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Asked = TypeVar("Asked", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Taught(_Strict):
    """A class with its drawings: pictures in base64, with or without ``data:…,`` before it."""

    name: Annotated[str, Field(min_length=1, max_length=40)]
    drawings: Annotated[list[Picture], Field(min_length=1, max_length=DRAWINGS)]


class Adapting(_Strict):
    """A task to learn: two classes or more, N inner steps, and α where it is not the learner's own."""

    classes: Annotated[list[Taught], Field(min_length=2, max_length=CLASSES)]
    steps: Annotated[int, Field(ge=0, le=STEPS, strict=True)] | None = None
    lr: Rate | None = None

    @field_validator("classes")
    @classmethod
    def _few(cls, classes: list[Taught]) -> list[Taught]:
        if sum(len(c.drawings) for c in classes) > ALL:
            raise ValueError(f"there are more than {ALL} drawings; teach it fewer")
        return classes


class Predicting(_Strict):
    """A drawing to recognise, by a task that was learned."""

    id: Annotated[str, Field(max_length=40)]
    drawing: Picture


async def asked(request: Request, kind: type[Asked]) -> Asked:
    """The body of a request, as what it should be.

    Raises:
        HTTPException: it is too large (413) or is something else (422).
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise HTTPException(413, f"more than {BODY >> 20} MiB at once; teach it fewer or smaller pictures")
    try:
        return kind.model_validate_json(bytes(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HTTPException(422, f"{where}: {first['msg']}" if where else first["msg"]) from error


def content(picture: str) -> bytes:
    """The bytes of a picture file.

    Raises:
        HTTPException: it is not base64.
    """
    try:
        return base64.b64decode(picture.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise HTTPException(422, "a drawing is not base64") from error
