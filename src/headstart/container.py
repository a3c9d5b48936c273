"""One file of tensors and JSON, never of code: what learners and adapted models are kept in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.errors import CheckpointError

FORMAT = 1
"""Of the header; a file of a later one is refused."""
KEY = "headstart"


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file by way of a temporary one, so that it is never half there.

    Raises:
        CheckpointError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}; free some space, or choose another folder with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8 by way of a temporary file."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file holds them: on the CPU, in the usual order of memory, each of its own."""
    # contiguous() drops the memory order, which is the model's business and not the file's.
    return {k: v.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def write(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file of a kind.

    Args:
        path: of the file.
        kind: what it holds, such as ``"learner"``.
        header: what JSON can hold.
        tensors: by name.

    Raises:
        CheckpointError: it cannot be written, or the header has something that JSON cannot hold.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.safetensors")
        >>> write(file, "example", {"ways": 5}, {"w": torch.ones(2)})
        >>> read(file, "example")
        ({'ways': 5}, {'w': tensor([1., 1.])})
    """
    flat = plain(tensors)
    try:
        text = json.dumps({"format": FORMAT, "kind": kind, "checksum": _checksum(flat), "header": dict(header)}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}; settings must be numbers, texts and lists") from error
    write_atomically(Path(path), lambda p: save_file(flat, p, metadata={KEY: text}))


def kind_of(path: str | Path) -> str:
    """What a file holds; "" where it is none of ours, which :func:`read` explains."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})[KEY])["kind"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return ""


def read(path: str | Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file of one of some kinds.

    Raises:
        CheckpointError: the file is missing, damaged, of a later version, or of another kind.
    """
    shown = str(path)
    try:
        with safe_open(path, framework="pt") as file:
            whole = json.loads((file.metadata() or {})[KEY])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        own, version, checksum, header = whole["kind"], whole["format"], whole["checksum"], whole["header"]
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {shown!r}; give one that save() or headstart adapt wrote") from error
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{shown!r} is damaged, or no file of a learner or an adapted model ({error!r}); save it again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise CheckpointError(
            f"{shown!r} was written by a later headstart (format {version}, and this one reads {FORMAT}); upgrade headstart"
        )
    if own not in kinds:
        raise CheckpointError(f"{shown!r} holds a {own}, and not a {' or '.join(kinds)}; load it as what it is")
    if checksum != _checksum(tensors):
        raise CheckpointError(f"{shown!r} is damaged: its numbers are not those that were written; copy or save it again")
    return header, tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
