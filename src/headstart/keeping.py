"""What a file says of a learner and of an adapted model, so that they can be made again: names, options and tensors, no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from headstart import container
from headstart.hypergradient import HYPERGRADIENTS
from headstart.inner import SOLVERS, STARTS
from headstart.loss import Loss
from headstart.losses import LOSSES
from headstart.models.recipe import recipe_of
from headstart.program.description import default_output
from headstart.registry import Registry

LEARNER, ADAPTED = "learner", "adapted model"


def tensors_of(learner: Any) -> dict[str, Tensor]:
    """Everything a learner has learned: parameters and persistent buffers, each tied tensor once, and the inner solver's own."""
    return _of_module(learner.model) | {f"inner/{k}": v for k, v in learner.theta.items()}


def _of_module(module: nn.Module) -> dict[str, Tensor]:
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            out[f"model/{name}"] = value
    return out


def learner_header(learner: Any, model: str = "", arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a learner is made of, for JSON.

    Raises:
        ConfigError: it is not known how its model was built.
    """
    own = learner.hypergradient
    return {
        "model": recipe_of(learner.model, model, arguments),
        "adapt": learner.partition.adapt,
        "frozen_norms": learner.partition.frozen_norms(),
        "inner": _part(SOLVERS, learner.inner),
        "start": _part(STARTS, learner.start),
        "hypergradient": None if own is None else _part(HYPERGRADIENTS, own),
        "loss": _loss(learner.loss),
        "own_output": learner.output is not default_output,
        "step_weights": None if learner.step_weights is None else learner.step_weights.tolist(),
        "support_chunk": learner.support_chunk,
        "precision": learner.precision,
        "target_scale": None if learner.target_scale is None else learner.target_scale.saved(),
    }


def adapted_header(adapted: Any, model: str = "", arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What an adapted model is made of, for JSON.

    Raises:
        ConfigError: it is not known how its model was built.
    """
    reading = adapted.reading
    return {
        "model": recipe_of(adapted.module, model, arguments),
        "w": list(adapted.w),
        "loss": _loss(reading.loss),
        "own_output": adapted.output is not default_output,
        "kind": reading.kind,
        "class_dim": reading.class_dim,
        "unseen": None if reading.unseen is None else reading.unseen.tolist(),
        "target_scale": None if adapted.target_scale is None else adapted.target_scale.saved(),
    }


class KeptLearner:
    """Saving, for a learner."""

    def save(self: Any, path: str | Path, *, model: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        """Writes the learner into one file of tensors and JSON, which :func:`headstart.load` reads.

        Args:
            path: of the file, such as ``"start.safetensors"``.
            model: ``"module:name"`` of the function or class that makes the model; networks of :mod:`headstart.models`, and those of a
                run, know how they were made.
            arguments: that it is called with, as JSON holds them.

        Raises:
            ConfigError: it is not known how the model was built, or what was given makes another.
            CheckpointError: the file cannot be written.

        Example:
            >>> import headstart as hs, tempfile
            >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
            >>> learner.save(file := tempfile.mkdtemp() + "/start.safetensors")
            >>> hs.load(file).inner
            GradientDescent(steps=3, lr=0.5, l2=0.0, momentum=0.0, prox=0.0, clip=None)
        """
        container.write(path, LEARNER, learner_header(self, model, arguments), tensors_of(self))


class KeptAdapted:
    """Saving, for an adapted model."""

    def save(self: Any, path: str | Path, *, model: str = "", arguments: Mapping[str, Any] | None = None) -> None:
        """Writes the adapted model into one file of tensors and JSON, which :func:`headstart.load_adapted` reads.

        Args:
            path: of the file.
            model: ``"module:name"`` of the function or class that makes the model, where it does not know.
            arguments: that it is called with, as JSON holds them.

        Raises:
            ConfigError: it is not known how the model was built, or what was given makes another.
            CheckpointError: the file cannot be written.

        Example:
            >>> import headstart as hs, tempfile, torch
            >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
            >>> adapted = learner.adapt(torch.randn(6, 4), torch.tensor([0, 1] * 3))
            >>> adapted.save(file := tempfile.mkdtemp() + "/task.safetensors")
            >>> x = torch.randn(3, 4)
            >>> torch.equal(hs.load_adapted(file).predict_proba(x), adapted.predict_proba(x))
            True
        """
        container.write(path, ADAPTED, adapted_header(self, model, arguments), _of_module(self.module))


def _part(registry: Registry[Any], own: Any) -> dict[str, Any]:
    """A part by name and options; one of the user's own by where it is imported from."""
    name = next((n for n in registry if registry.find(n) is type(own)), f"{type(own).__module__}:{type(own).__qualname__}")
    return {"name": name, "options": {f.name: getattr(own, f.name) for f in fields(own) if f.init} if is_dataclass(own) else {}}


def _loss(loss: Loss) -> str | None:
    """A loss by name; None where it must be given again."""
    return loss.name if loss.name in LOSSES and LOSSES.build(loss.name) == loss else None
