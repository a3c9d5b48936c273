"""What requests and answers look like: bounds are part of the types, so that the schema says them too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, StrictInt, StrictStr, ValidationError, create_model

from headstart.serving.limits import Limits, Refusal
from headstart.using import TrainedStart

LARGEST = 1e15
"""Of a number in an example: its square is far from the end of float32."""
LABEL, TEXT, CELL, NAME = 100, 5000, 1000, 200
"""Letters of a label, a text, a cell and the name of a column."""
FURTHER = 64
"""Columns of a row that the start does not know."""
TOP = 50
SHOWN = 5
"""Errors of a body that are told."""

Real = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False, strict=True)]
Label = Annotated[StrictStr, Field(min_length=1, max_length=LABEL)] | Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
Cell = Annotated[StrictStr, Field(max_length=CELL)] | Real | StrictBool | None


class Body(BaseModel):
    """A request; what it does not know is refused, and no error repeats what was sent."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TaskSaid(BaseModel):
    """A task, as its owner sees it."""

    id: str
    classes: list[str | int | float]
    examples: int
    support_accuracy: float | None
    ms: float


class TaskMade(TaskSaid):
    """A new task; the token is told once."""

    token: str


class TasksSaid(BaseModel):
    """The tasks of one token."""

    tasks: list[TaskSaid]


class ClassSaid(BaseModel):
    """A class and its probability."""

    label: str | int | float
    probability: float


class Answer(BaseModel):
    """Of one example: its class, null where it belongs to none; or its number, which has no classes."""

    label: str | int | float | list[float] | None
    confidence: float | None
    classes: list[ClassSaid]


class Answers(BaseModel):
    """Of all examples, in order."""

    predictions: list[Answer]
    ms: float


class Health(BaseModel):
    """What the server takes, and that it is there."""

    status: str
    kind: str
    shape: list[int]
    regression: bool
    labels: list[str | int | float]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


@dataclass(frozen=True)
class Bodies:
    """The bodies that a start takes.

    Args:
        support: examples with labels.
        queries: examples to predict.
    """

    support: type[Body]
    queries: type[Body]

    @classmethod
    def of(cls, start: TrainedStart, limits: Limits) -> Bodies:
        """For the kind of examples of a start."""
        many: Any = (Field(min_length=1, max_length=limits.max_images), FailFast())
        item, label = _item(start, limits), Real if start.regression else Label
        examples: Any = (Annotated[list[item], *many], ...)  # type: ignore[valid-type]
        labels: Any = (Annotated[list[label], *many], ...)  # type: ignore[valid-type]
        top: Any = (Annotated[int, Field(ge=1, le=TOP, strict=True, description="classes to tell of each example")], 5)
        unknown: Any = (Annotated[bool, Field(strict=True, description="whether the label may be null, for none of the classes")], True)
        support = create_model("Support", __base__=Body, examples=examples, labels=labels)
        queries = create_model("Queries", __base__=Body, examples=examples, top=top, unknown=unknown)
        return cls(support, queries)


def read(model: type[Body], content: bytes) -> Any:
    """A body as what it is.

    Raises:
        Refusal: it is no JSON, or not what is asked for.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        said = [f"{'.'.join(str(p)[:40] for p in one['loc']) or 'body'}: {one['msg'][:160]}" for one in found[:SHOWN]]
        raise Refusal("; ".join(said) + (f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else "")) from None


def _item(start: TrainedStart, limits: Limits) -> Any:
    own = start.preprocessing
    if own.kind == "pictures":
        extra: Any = {"contentEncoding": "base64"}
        said = f"base64 of the bytes of a PNG or JPEG with at most {limits.max_pixels} pixels"
        return Annotated[StrictStr, Field(min_length=1, max_length=limits.max_body, description=said, json_schema_extra=extra)]
    if own.kind == "texts":
        return Annotated[StrictStr, Field(max_length=TEXT)]
    if own.kind == "rows":
        assert own.columns is not None
        names = list(dict.fromkeys(f.column for f in own.columns.features))
        name = Annotated[str, Field(max_length=max(NAME, *map(len, names)))]
        said = f"values of the columns {', '.join(names[:20])}{' …' if len(names) > 20 else ''}; null where one is missing"
        return Annotated[dict[name, Cell], Field(max_length=len(names) + FURTHER, description=said)]  # type: ignore[valid-type]
    size = math.prod(own.shape)
    return Annotated[list[Real], Field(min_length=size, max_length=size), FailFast()]
