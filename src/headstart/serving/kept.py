"""Tasks in a folder: a predictor file and a small JSON each, which are there after a restart."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from headstart import container
from headstart.errors import CheckpointError, HeadstartError
from headstart.keeping import tensors_of
from headstart.serving.held import Task
from headstart.using import Predictor, TrainedStart
from headstart.using.predictor import PREDICTOR

log = logging.getLogger("headstart")
ID = re.compile(r"[0-9a-f]{32}")
OWNER = re.compile(r"[0-9a-f]{64}")


class Kept:
    """The folder of a server's tasks; its names are drawn by the server, never by a client.

    Args:
        folder: made if it is not there; no one but its owner may look into it.
        start: what the tasks are of.

    Raises:
        CheckpointError: the folder cannot be made.
        ConfigError: the start cannot be kept in a file.
    """

    def __init__(self, folder: Path, start: TrainedStart) -> None:
        self.folder, self.start = folder, start
        self._header = json.loads(json.dumps(start.header()))  # as files give it back
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {str(folder)!r}: {error}; give another --state") from error

    def save(self, task: Task, predictor: Predictor) -> None:
        """Writes a task; first its predictor, so that a JSON never stands for nothing."""
        predictor.save(self._file(task.id))
        said = {"token_sha256": task.owner, "support_accuracy": task.accuracy, "ms": task.ms}
        container.write_text(self.folder / f"{task.id}.json", json.dumps(said) + "\n")

    def remove(self, name: str) -> None:
        """Deletes the files of a task, if they are there."""
        for file in (self.folder / f"{name}.json", self._file(name)):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                log.warning("state: %s cannot be deleted (%s)", file, error)

    def load(self) -> Iterator[Task]:
        """The tasks that are kept, those that were made or changed first first; what is damaged is left where it is, and said."""
        files = [file for file in self.folder.glob("*.json") if ID.fullmatch(file.stem)]
        for file in sorted(files, key=lambda f: (f.stat().st_mtime_ns, f.name)):
            try:
                yield self._task(file)
            except (HeadstartError, OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
                log.warning("state: the task in %s is passed over: %s", file, error)

    def _task(self, file: Path) -> Task:
        said = json.loads(file.read_text(encoding="utf-8"))
        owner, accuracy = said["token_sha256"], said["support_accuracy"]
        if not OWNER.fullmatch(owner):
            raise CheckpointError("it has no digest of a token")
        predictor = self._predictor(self._file(file.stem))
        return Task(file.stem, owner, predictor, None if accuracy is None else float(accuracy), float(said["ms"]))

    def _predictor(self, path: Path) -> Predictor:
        """As ``Predictor.load``, but with the one start of the server: a thousand tasks do not need a thousand networks."""
        header, tensors = container.read(path, PREDICTOR)
        x, y = tensors.pop("support/x"), tensors.pop("support/y")
        if not self._same(header, tensors):
            raise CheckpointError("it was learned from another start than this server has; serve that one, or delete the file")
        labels: list[Any] = y.tolist() if self.start.regression else [header["labels"][place] for place in y.tolist()]
        return Predictor.of(self.start, x, labels, header["steps"])

    def _same(self, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bool:
        own = tensors_of(self.start.learner)
        alike = all(header.get(k) == self._header[k] for k in ("learner", "preprocessing", "classes", "regression"))
        return alike and own.keys() == tensors.keys() and all(torch.equal(v.detach().cpu(), tensors[k]) for k, v in own.items())

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"
