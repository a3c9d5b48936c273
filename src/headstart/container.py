"""One file of tensors and JSON, never of code: what learners and adapted models are kept in."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.errors import CheckpointError, DamagedError, HeadstartError

FORMAT = 2
"""Of the header; a file of a later one is refused. In those of format 1 the checksum is of the tensors alone."""
KEY = "headstart"


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Writes a file by way of a temporary one beside it, so that it is never half there, whatever ends the process.

    A link is followed. What is there and no ordinary file, such as a folder or ``/dev/null``, is not replaced.

    Raises:
        CheckpointError: it cannot be written; what was there before is still there.
    """
    with _said(path):
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            raise CheckpointError(f"cannot write {str(path)!r}: there is something that is no ordinary file; give another name")
        temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode & 0o777  # what files are given here; safetensors gives its own to their owner alone
            write(temporary)
            temporary.chmod(mode)
            with temporary.open("rb+") as file:  # else a power cut may leave the new name with nothing behind it
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text in UTF-8 by way of a temporary file."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, content: Any, indent: int | None = 1) -> None:
    """Writes JSON by way of a temporary file."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def make_folder(path: Path) -> None:
    """Makes a folder, and those that it is in.

    Raises:
        CheckpointError: it cannot be made.
    """
    with _said(path):
        path.mkdir(parents=True, exist_ok=True)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file.

    Raises:
        CheckpointError: it cannot be written.
    """
    with _said(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def copy_of(path: Path, copy: Path) -> None:
    """Gives a file a second name, under which it stays when the first is written anew; a true copy where there are no such links."""

    def second(temporary: Path) -> None:
        try:
            temporary.unlink()
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)

    write_atomically(copy, second)


@contextmanager
def _said(path: str | Path) -> Iterator[None]:
    """Turns what a system says of a file that cannot be written into what to do."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}; {remedy(error)}choose another place") from error


def remedy(error: Exception) -> str:
    """What to do where a system refuses to write, before choosing another place; "" where nothing else helps."""
    full, closed = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EACCES, errno.EPERM, errno.EROFS)
    code = error.errno if isinstance(error, OSError) else 0
    if not code and (said := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors has the system's error in its text
        code = int(said[1])
    return "free some space, or " if code in full else "get the right to write there, or " if code in closed else ""


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON in UTF-8, or is nested too deeply.
    """
    return parsed(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The tables in a file of one JSON a line, and the numbers of the lines that are damaged.

    The last line may be half there, where a process ended or a disk was full; that is no damage. No file is no lines.
    """
    found, damaged = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        with suppress(ValueError):
            entry = parsed(line)
            if isinstance(entry, dict):
                found.append(entry)
                continue
        if number < len(lines):
            damaged.append(number)
    return found, damaged


def parsed(text: str) -> Any:
    """What a text of JSON means; a ValueError where it is none, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def understood(path: str | Path, kind: type[HeadstartError] = DamagedError) -> Iterator[None]:
    """Turns whatever goes wrong while the content of a file is used into an error that names the file.

    What a file says is checked by those who use it, in a hundred places; a file that was made to deceive may pass its checksum.

    Args:
        path: of the file, for the message.
        kind: of the error.

    Raises:
        HeadstartError: of this kind, where anything but a :class:`HeadstartError` was raised.
    """
    try:
        yield
    except HeadstartError:
        raise
    except Exception as error:
        raise kind(
            f"{str(path)!r} does not hold what such a file should ({type(error).__name__}: {error}); save or fetch it again"
        ) from error


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file holds them: on the CPU, in the usual order of memory, each of its own."""
    # contiguous() drops the memory order, which is the model's business and not the file's.
    return {k: v.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}


def write(path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, finite: bool = True) -> None:
    """Writes a file of a kind.

    Args:
        path: of the file.
        kind: what it holds, such as ``"learner"``.
        header: what JSON can hold.
        tensors: by name.
        finite: whether numbers of the header must be finite.

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
        text = json.dumps({"format": FORMAT, "kind": kind, "header": dict(header)}, allow_nan=not finite)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}; settings must be numbers, texts and lists") from error
    whole = {**json.loads(text), "checksum": _checksum(text, flat)}
    write_atomically(path, lambda p: save_file(flat, p, metadata={KEY: json.dumps(whole)}))


def kind_of(path: str | Path) -> str:
    """What a file holds; "" where it is none of ours, which :func:`read` explains."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(parsed((file.metadata() or {})[KEY])["kind"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return ""


def read(path: str | Path, *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file of one of some kinds.

    Raises:
        DamagedError: the file is not as it was written.
        CheckpointError: the file is missing, of a later version, or of another kind.
    """
    return checked(path, *unchecked(path), *kinds)


def unchecked(path: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """The JSON and the tensors of a file, which may not be those that were written.

    Raises:
        DamagedError: they cannot be read.
        CheckpointError: there is no such file.
    """
    try:
        Path(path).open("rb").close()  # safetensors says of a file that may not be read that there is none
        # Tensors are copied, as those of safetensors are the file, mapped into memory: they would change with it.
        with safe_open(path, framework="pt") as file:
            return parsed((file.metadata() or {})[KEY]), {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {str(path)!r}; give one that save() or headstart adapt wrote") from error
    except PermissionError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error}; get the right to read it") from error
    except Exception as error:  # safetensors and torch have many of their own
        raise DamagedError(f"{str(path)!r} is damaged, or no file of a learner or an adapted model ({error!r}); save it again") from error


def checked(path: str | Path, whole: Any, tensors: dict[str, Tensor], *kinds: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors that :func:`unchecked` gave, if they are those that were written; errors are those of :func:`read`."""
    shown = str(path)
    with understood(path):
        own, version, checksum, header = whole["kind"], whole["format"], whole["checksum"], whole["header"]
        later = version > FORMAT
        text = "" if version == 1 else json.dumps({k: v for k, v in whole.items() if k != "checksum"})
        right = later or checksum == _checksum(text, tensors)
    if later:
        raise CheckpointError(
            f"{shown!r} was written by a later headstart (format {version}, and this one reads {FORMAT}); upgrade headstart"
        )
    if not right:
        raise DamagedError(f"{shown!r} is damaged: it does not hold what was written; copy or save it again")
    if own not in kinds:
        raise CheckpointError(f"{shown!r} holds a {own}, and not a {' or '.join(kinds)}; load it as what it is")
    return header, tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
