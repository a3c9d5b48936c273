"""Texts as vectors: by counts of words and their parts, by a pretrained language model, or by a function of the user's own."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.files.cache import fingerprint
from headstart.models.pretrained import text_encoder
from headstart.registry import Registry

WIDTH, PARTS = 1024, (3, 4, 5)
WORD = re.compile(r"\w+")
TRANSFORMERS = "transformers:"
OWN: Registry[Any] = Registry("embedding")


@OWN.register("words")
def words(texts: list[str]) -> NDArray[np.float32]:
    """(n, 1024) counts of words and of their parts of three to five letters, hashed; log(1 + count), each vector of length 1.

    It needs nothing but the texts, and learns nothing from them.

    Example:
        >>> near, other, far = words(["wake me at six", "wake me at seven", "pay the bill"])
        >>> float(near @ other) > float(near @ far)
        True
    """
    found = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in enumerate(texts):
        for word in WORD.findall(text.casefold()):
            inside = f"<{word}>"
            parts = [inside[i : i + n] for n in PARTS for i in range(len(inside) - n + 1)]
            for part in (word, *parts):
                found[row, zlib.crc32(part.encode()) % WIDTH] += 1
    found = np.log1p(found)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def embedder(name: str) -> tuple[Callable[[list[str]], Any], str | None]:
    """The function that a name stands for, and a name for what it gives, where that can be told and so be kept.

    Args:
        name: ``"words"``, ``"transformers:FOLDER_OR_NAME"`` or ``"module:name"``.

    Raises:
        ConfigError: it is none of these, or cannot be loaded.
    """
    if name.startswith(TRANSFORMERS):
        own = name.removeprefix(TRANSFORMERS)
        folder = Path(own).expanduser()
        key = f"{name} {fingerprint(*sorted(p for p in folder.iterdir() if p.is_file()))}" if folder.is_dir() else name
        return text_encoder(str(folder) if folder.is_dir() else own), key
    return OWN.find(name), None
