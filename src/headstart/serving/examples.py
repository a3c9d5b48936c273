"""Examples out of a request as they are kept: bytes of pictures, vectors or rows."""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.data.sources.embedding import embedder
from headstart.errors import DataError
from headstart.serving.limits import Late, Limits
from headstart.using import TrainedStart
from headstart.using.reading import features_of_rows

FORMATS = ("PNG", "JPEG")
SCANS = 64
"""Passes over a JPEG: a progressive one has some ten, and each costs as much as a whole picture."""
TOGETHER = 4
"""Pixels of a request, in largest pictures."""
TEXTS = 32
"""That are embedded before one looks at the clock."""
REQUEST = Path("the request")
"""What messages about tables call it."""


class Reader:
    """Makes tensors of the examples of requests; many threads may use it.

    Args:
        start: whose preprocessing it is.
        limits: how large pictures may be.
    """

    def __init__(self, start: TrainedStart, limits: Limits) -> None:
        self.own, self.limits = start.preprocessing, limits
        self._embed: Callable[[list[str]], Any] | None = embedder(self.own.embed)[0] if self.own.kind == "texts" else None
        self._lock = threading.Lock()  # tokenizers of transformers are not for many threads

    def read(self, examples: Sequence[Any], until: float) -> Tensor:
        """(n, …) examples as they are kept.

        Args:
            examples: n of them, as the body holds them.
            until: when to give up, on the monotonic clock.

        Raises:
            DataError: one of them cannot be read.
            Late: it is too late.
        """
        ways: dict[str, Callable[[Any, float], Tensor]] = {
            "pictures": self._pictures,
            "texts": self._texts,
            "vectors": self._vectors,
            "rows": self._rows,
        }
        return ways[self.own.kind](examples, until)

    def _pictures(self, examples: Sequence[str], until: float) -> Tensor:
        contents, pixels = [], 0
        for i, text in enumerate(examples):
            try:
                contents.append(base64.b64decode(text, validate=True))
                pixels += pixels_of(contents[-1], self.limits.max_pixels)
            except (binascii.Error, ValueError) as error:
                raise DataError(f"picture {i + 1} is no base64: give the bytes of a PNG or JPEG in it, without a prefix") from error
            except DataError as error:
                raise DataError(f"picture {i + 1}: {error}") from error
            if pixels > TOGETHER * self.limits.max_pixels:
                raise DataError(f"the pictures have more than {TOGETHER * self.limits.max_pixels} pixels together; scale them down")
        found = []
        for i, content in enumerate(contents):
            if time.monotonic() > until:
                raise Late("the pictures took too long to read; send fewer or smaller ones")
            try:
                found.append(self.own.pictures([content]))
            except DataError as error:
                raise DataError(f"picture {i + 1}: {error}") from error
        return torch.cat(found)

    def _texts(self, examples: Sequence[str], until: float) -> Tensor:
        assert self._embed is not None
        parts = []
        for i in range(0, len(examples), TEXTS):
            with self._lock:
                if time.monotonic() > until:
                    raise Late("the texts took too long to embed; send fewer or shorter ones")
                parts.append(np.asarray(self._embed(list(examples[i : i + TEXTS])), np.float32))
        return self.own.checked(torch.from_numpy(np.concatenate(parts)))

    def _vectors(self, examples: Sequence[Sequence[float]], until: float) -> Tensor:
        return self.own.checked(torch.tensor(examples, dtype=torch.float32).reshape(len(examples), *self.own.shape))

    def _rows(self, examples: Sequence[dict[str, Any]], until: float) -> Tensor:
        columns = self.own.columns
        assert columns is not None
        arrow = importlib.import_module("pyarrow")
        known: dict[str, set[str]] = {}
        for feature in columns.features:
            known.setdefault(feature.column, set()).update(() if feature.category is None else (feature.category,))
        found = {}
        for name, categories in known.items():
            lacking = next((i for i, row in enumerate(examples) if name not in row), None)
            if lacking is not None:
                raise DataError(f"row {lacking + 1} has no {name!r}, which the start was trained on; give null where the value is missing")
            found[name] = _column(arrow, [row[name] for row in examples], categories)
        return features_of_rows(self.own, REQUEST, arrow.table(found))


def pixels_of(content: bytes, most: int) -> int:
    """How many pixels a picture has, by its header; nothing is decoded.

    Raises:
        DataError: it is no PNG or JPEG, or has too many.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            kind = image.format
    except Image.DecompressionBombError as error:
        raise DataError(f"too large: there may be {most} pixels") from error
    except Exception as error:  # a damaged header can raise almost anything
        raise DataError("not a picture, or of a kind that is not taken: give a PNG or JPEG") from error
    if width * height > most:
        raise DataError(f"too large: {width}×{height} pixels, and there may be {most}; scale it down")
    if kind == "JPEG" and content.count(b"\xff\xda") > SCANS:
        raise DataError(f"a JPEG in more than {SCANS} passes; save it anew")
    return int(width * height)


def _column(arrow: Any, values: list[Any], categories: set[str]) -> Any:
    """An arrow column as a file would give it: numbers where all are, else texts."""
    if not categories and not any(isinstance(v, str) for v in values):
        return arrow.array([None if v is None else float(v) for v in values], arrow.float64())
    return arrow.array([None if v is None else _text(v, categories) for v in values], arrow.string())


def _text(value: Any, categories: set[str]) -> str:
    """A value as the category that it stands for: 3 and 3.0 are one number, and files may have either."""
    spelt = [str(value)]
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        spelt += [str(int(value)), str(float(value))]
    return next((text for text in spelt if text in categories), spelt[0])
