"""Checkpoints: one checked file of tensors and the state, the one before it, and the state as readable JSON beside it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from headstart import container
from headstart.errors import CheckpointError, ConfigError, DamagedError
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.ranks import ALONE, Ranks
from headstart.target_scale import TargetScale

CHECKPOINT, CALLBACK = "checkpoint", "callback"
log = logging.getLogger("headstart")


class Stateful(Protocol):
    """What keeps a state of its own in checkpoints, under its name."""

    @property
    def name(self) -> str: ...

    def state(self) -> Mapping[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


def before(path: Path) -> Path:
    """Where the checkpoint before this one is kept."""
    return path.with_suffix(".previous.safetensors")


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, or the one before it."""
    return path.exists() or before(path).exists()


def remove(path: Path) -> None:
    """Deletes a checkpoint, the one before it, and what can be read beside it."""
    for one in (path, before(path), path.with_suffix(".json")):
        one.unlink(missing_ok=True)


def save(
    path: Path,
    learner: MetaLearner,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any],
    others: Sequence[Stateful] = (),
    whole: bool = True,
) -> None:
    """Saves what a learner has learned, the optimizer, and a state that JSON can hold; the checkpoint that was there is kept beside it.

    Args:
        path: of the file.
        learner, optimizer: what is saved.
        state: where training stands.
        others: whose states are kept, too.
        whole: whether what is there is known to be good; what is not never takes the place of the one before it.
    """
    tensors, header = tensors_of(learner), dict(state)
    if learner.target_scale is not None:
        header["target_scale"] = learner.target_scale.saved()
    lr = getattr(learner.inner, "lr", None)
    if isinstance(lr, float):  # which may have been measured
        header["lr"] = lr
    if optimizer is not None:
        entries = {f"{name}/{k}": v for name, p in learner.parameters().items() for k, v in optimizer.state.get(p, {}).items()}
        tensors.update({f"optimizer/{k}": v for k, v in entries.items() if isinstance(v, Tensor)})
        header["optimizer"] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
    for other, entries in _states(others).items():
        tensors.update({f"{CALLBACK}/{other}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)})
        header.setdefault(CALLBACK, {})[other] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
    try:
        readable = json.dumps(header, indent=1) + "\n"
    except TypeError as error:
        raise CheckpointError(
            f"the optimizer or a callback keeps something that is neither a tensor nor what JSON can hold ({error}); use another"
        ) from error
    if whole and path.exists():
        container.copy_of(path, before(path))
    container.write(path, CHECKPOINT, header, tensors, finite=False)
    container.write_text(path.with_suffix(".json"), readable)


def _states(others: Sequence[Stateful]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for other in others:
        own = dict(other.state())
        if own and other.name in found:
            raise ConfigError(f"two callbacks that keep a state are named {other.name!r}; give one of them another name")
        if own:
            found[other.name] = own
    return found


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Args:
        path: where it was read.
        state: that it was saved with.
        tensors: by name.
        note: what to say where it is the one before a damaged one; else "".
    """

    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    note: str = ""

    def into(
        self, learner: MetaLearner, optimizer: torch.optim.Optimizer | None = None, others: Sequence[Stateful] = (), all_there: bool = True
    ) -> None:
        """Puts everything into a learner, and with an optimizer, into it and the others whose states were kept.

        Args:
            learner, optimizer, others: what it is put into.
            all_there: whether the state of one who is not among the others is an error; of several processes only the first has loggers.

        Raises:
            CheckpointError: it is of another model, or has the state of one who is not there.
        """
        learner.partition.seen_training(learner.partition.frozen_norms() or ())
        with container.understood(self.path):
            self._into(learner)
            if optimizer is not None:
                _load_optimizer(self.path, learner, optimizer, self.state, self.tensors)
                kept = self.state.get(CALLBACK, {})
                if all_there and (gone := [name for name in kept if name not in {other.name for other in others}]):
                    raise CheckpointError(
                        f"{str(self.path)!r} holds the state of the callback {gone[0]!r}, without which the run would differ; give it again"
                    )
                _load_others(others, kept, self.tensors)

    def _into(self, learner: MetaLearner) -> None:
        if learner.inner.undecided and "lr" in self.state:
            learner.use_lr(self.state["lr"])
        own = tensors_of(learner)
        for key, value in own.items():
            if key not in self.tensors or self.tensors[key].shape != value.shape:
                found = f"has shape {tuple(self.tensors[key].shape)}" if key in self.tensors else "is missing"
                raise CheckpointError(
                    f"{str(self.path)!r} is of another model: {key} {found}, and the model has {tuple(value.shape)};"
                    " build the learner with the settings in config.json"
                )
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(self.tensors[key])
        learner.target_scale = TargetScale.load(self.state.get("target_scale"))


def read(path: Path) -> Saved:
    """A checkpoint; where it is damaged or lost, the one before it, with a note that says so.

    Raises:
        CheckpointError: there is none, or both are damaged.
    """
    try:
        return _read(path)
    except DamagedError as error:
        damaged = str(error)
    except FileNotFoundError as error:
        if not before(path).exists():
            raise CheckpointError(f"there is no checkpoint {str(path)!r}; give the folder of a run that has written one") from error
        damaged = f"the checkpoint {str(path)!r} is gone"
    try:
        saved = _read(before(path))
    except (DamagedError, FileNotFoundError) as error:
        one = "is not there" if isinstance(error, FileNotFoundError) else "is damaged too"
        raise CheckpointError(
            f"{damaged}, and the one before it, {before(path).name}, {one}; use the other of best.safetensors and last.safetensors, bring"
            " the file back from a copy, or train again with --overwrite"
        ) from error
    return replace(saved, note=f"{damaged}; used instead: {before(path).name}, of step {saved.state['iteration']}")


def load(path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer | None = None, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Loads a checkpoint, or the one before a damaged one, into a learner, and into its optimizer if one is given; returns the state.

    Of several processes the first reads it for all.

    Raises:
        CheckpointError: there is none, all are damaged, or it is of another model.
    """
    saved = ranks.first(lambda: read(path))
    if saved.note and ranks.is_first:
        log.warning("%s", saved.note)
    saved.into(learner, optimizer)
    return saved.state


def _read(path: Path) -> Saved:
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        whole, tensors = container.unchecked(path)
        if isinstance(whole, dict) and "iteration" in whole:  # from before checkpoints had a checksum
            return Saved(path, whole, tensors)
        state, tensors = container.checked(path, whole, tensors, CHECKPOINT)
    except DamagedError as error:
        raise DamagedError(f"the checkpoint {str(path)!r} is damaged, or none of headstart's") from error
    return Saved(path, state, tensors)


def _load_optimizer(
    path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Puts an optimizer's state back; before the first step there is none, and some optimizers never have one."""
    entries: dict[str, Any] = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")}
    entries |= state.get("optimizer", {})
    for name, parameter in learner.parameters().items():
        own = {k.removeprefix(f"{name}/"): v for k, v in entries.items() if k.startswith(f"{name}/")}
        if not own and "optimizer" not in state and state["iteration"] > 0:
            raise CheckpointError(f"{str(path)!r} holds no optimizer state for {name}; resume from last.safetensors")
        if own:
            optimizer.state[parameter] = {k: _placed(k, v, parameter) for k, v in own.items()}


def _load_others(others: Sequence[Stateful], kept: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Puts the states of others back, tensors on the CPU; one that had no state then begins anew."""
    for other in others:
        if other.name in kept:
            prefix = f"{CALLBACK}/{other.name}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            other.load_state({**kept[other.name], **found})


def _placed(key: str, value: Any, parameter: Tensor) -> Any:
    """Moments get the parameter's own device and memory order; a counter stays a scalar on the CPU."""
    if not isinstance(value, Tensor) or key == "step" or (value.dim() == 0 and parameter.dim() > 0):
        return value
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device)
