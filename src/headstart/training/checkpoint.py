"""Checkpoints: one safetensors file with the tensors and, in its header, the state; and the state as readable JSON beside it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.container import plain, write_atomically
from headstart.errors import CheckpointError
from headstart.keeping import tensors_of
from headstart.learner import MetaLearner
from headstart.ranks import ALONE, Ranks
from headstart.target_scale import TargetScale

LEFTOVER = re.compile(r"\..+\.\d+\.tmp|\.tmp\w{6}")
"""What :func:`write_atomically`, and safetensors within it, leave behind where a process is killed in the middle."""


def prepare_folder(out: Path) -> None:
    """Makes a run folder and checks that it can be written, before any work is done; removes what a killed process left half-written.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}.tmp"
        probe.touch()
        for path in [p for p in out.iterdir() if LEFTOVER.fullmatch(p.name)]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write to the folder {str(out)!r}: {error.strerror}; choose another with --out") from error


def save(path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Any]) -> None:
    """Saves what a learner has learned, the optimizer, and a state that JSON can hold."""
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
    flat = plain(tensors)
    try:
        text, readable = json.dumps(header), json.dumps(header, indent=1) + "\n"
    except TypeError as error:
        raise CheckpointError(f"the optimizer keeps something that is neither a tensor nor a number ({error}); use another") from error
    write_atomically(path, lambda p: save_file(flat, p, metadata={"headstart": text}))
    write_atomically(path.with_suffix(".json"), lambda p: p.write_text(readable))


def read_state(path: Path) -> dict[str, Any]:
    """The state that a checkpoint was saved with.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return _read(path)[0]


def load(path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer | None = None, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Loads a checkpoint into a learner, and into its optimizer if one is given; returns the state. The first rank reads it for all.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    state, tensors = ranks.first(lambda: _read(path))
    if learner.inner.undecided and "lr" in state:
        learner.use_lr(state["lr"])
    own = tensors_of(learner)
    for key, value in own.items():
        if key not in tensors or tensors[key].shape != value.shape:
            found = f"has shape {tuple(tensors[key].shape)}" if key in tensors else "is missing"
            raise CheckpointError(
                f"{str(path)!r} is of another model: {key} {found}, and the model has {tuple(value.shape)};"
                " build the learner with the settings in config.json"
            )
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])
    learner.target_scale = TargetScale.load(state.get("target_scale"))
    if optimizer is not None:
        _load_optimizer(path, learner, optimizer, state, tensors)
    return state


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        return json.loads(metadata["headstart"]), tensors
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; give the folder of a run that has written one") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is damaged or not one of headstart's ({error});"
            " use the other of best.safetensors and last.safetensors, or train again"
        ) from error


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


def _placed(key: str, value: Any, parameter: Tensor) -> Any:
    """Moments get the parameter's own device and memory order; a counter stays a scalar on the CPU."""
    if not isinstance(value, Tensor) or key == "step" or (value.dim() == 0 and parameter.dim() > 0):
        return value
    if value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.to(parameter.device)
