"""Checkpoints: one safetensors file with the tensors and, in its header, the state; and the state as readable JSON beside it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.errors import CheckpointError
from headstart.learner import MetaLearner


def prepare_folder(out: Path) -> None:
    """Makes a run folder and checks that it can be written, before any work is done.

    Raises:
        CheckpointError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write to the folder {str(out)!r}: {error.strerror}; choose another with --out") from error


def write_atomically(path: Path, write: Any) -> None:
    """Writes a file by way of a temporary one, so that it is never half there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error}; free some space, or choose another folder with --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer | None, state: Mapping[str, Any]) -> None:
    """Saves what a learner has learned, the optimizer, and a state that JSON can hold."""
    tensors = tensors_of(learner)
    if optimizer is not None:
        for name, parameter in learner.parameters().items():
            tensors.update({f"optimizer/{name}/{k}": v for k, v in optimizer.state.get(parameter, {}).items()})
    # contiguous() drops the memory order, which is the model's business and not the file's.
    flat = {k: v.detach().cpu().contiguous().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(flat, p, metadata={"headstart": json.dumps(dict(state))}))
    write_atomically(path.with_suffix(".json"), lambda p: p.write_text(json.dumps(dict(state), indent=1) + "\n"))


def load(path: Path, learner: MetaLearner, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Loads a checkpoint into a learner, and into its optimizer if one is given; returns the state.

    Raises:
        CheckpointError: the file is missing, damaged, or of another model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        state: dict[str, Any] = json.loads(metadata["headstart"])
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {str(path)!r}; give the folder of a run that has written one") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint {str(path)!r} is damaged or not one of headstart's ({error});"
            " use the other of best.safetensors and last.safetensors, or train again"
        ) from error
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
    if optimizer is not None:
        for name, parameter in learner.parameters().items():
            prefix = f"optimizer/{name}/"
            moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if not moments:
                raise CheckpointError(f"{str(path)!r} holds no optimizer state for {name}; resume from last.safetensors")
            # Moments get the parameter's own device and memory order; the step counter stays a scalar on the CPU.
            optimizer.state[parameter] = {
                k: v if v.dim() == 0 and k == "step" else torch.empty_like(parameter).copy_(v) for k, v in moments.items()
            }
    return state


def tensors_of(learner: MetaLearner) -> dict[str, Tensor]:
    """Everything a learner has learned: parameters and persistent buffers, each tied tensor once, and the inner solver's own."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in learner.model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            out[f"model/{name}"] = value
    return out | {f"inner/{k}": v for k, v in learner.theta.items()}
