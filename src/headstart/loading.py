"""Learners and adapted models, made again from their files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart import container
from headstart.adapted import Adapted, Reading, fitted_head
from headstart.errors import CheckpointError
from headstart.hypergradient import HYPERGRADIENTS
from headstart.inner import SOLVERS, STARTS
from headstart.keeping import ADAPTED, LEARNER, tensors_of
from headstart.learner import MetaLearner
from headstart.loss import Loss
from headstart.losses import LOSSES, resolve
from headstart.models.recipe import alike, rebuilt, shape_of
from headstart.partition import Partition
from headstart.program.description import default_output
from headstart.registry import Registry
from headstart.target_scale import TargetScale


def load(
    path: str | Path,
    *,
    trust: Collection[str] = (),
    model: nn.Module | None = None,
    loss: str | Loss | Callable[..., Tensor] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> MetaLearner:
    """The learner in a file that :meth:`MetaLearner.save` wrote.

    Args:
        path: of the file.
        trust: ``module:name`` of networks and solvers of your own that the file may import; it holds no code, but names can stand for any.
        model: a network like the one that was saved, instead of one made by name; its weights are replaced.
        loss, output: those it was made with, where they are functions of your own, which a file cannot hold.

    Raises:
        CheckpointError: the file is missing, damaged, of a later version, names something that is not trusted, or is of another network.

    Example:
        >>> import headstart as hs, tempfile
        >>> learner = hs.protonet(hs.models.mlp(features=4, ways=2))
        >>> learner.save(file := tempfile.mkdtemp() + "/start.safetensors")
        >>> load(file).adapt(torch.randn(6, 4), torch.tensor([0, 1, 2] * 2)).predict(torch.randn(5, 4)).shape
        torch.Size([5])
    """
    with container.understood(path):
        return learner_of(str(path), *container.read(path, LEARNER), trust=trust, model=model, loss=loss, output=output)


def load_adapted(
    path: str | Path,
    *,
    trust: Collection[str] = (),
    model: nn.Module | None = None,
    loss: str | Loss | Callable[..., Tensor] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> Adapted:
    """The adapted model in a file that :meth:`Adapted.save` wrote; arguments and errors are those of :func:`load`.

    Example:
        >>> import tempfile
        >>> import headstart as hs
        >>> adapted = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5).adapt(torch.randn(6, 4), torch.tensor([0, 1] * 3))
        >>> adapted.save(path := tempfile.mkdtemp() + "/task.safetensors")
        >>> x = torch.randn(3, 4)
        >>> bool((load_adapted(path).logits(x) == adapted.logits(x)).all())
        True
    """
    shown = str(path)
    with container.understood(path):
        header, tensors = container.read(path, ADAPTED)
        module = _network(shown, header, model, trust)
        _fill(shown, module, {k: v for k, v in tensors.items() if k.startswith("model/")})
        for p in module.parameters():
            p.requires_grad_(False)
        own = dict(module.named_parameters())
        unseen = None if header["unseen"] is None else torch.tensor(header["unseen"])
        reading = Reading(_loss(shown, header, loss), header["kind"], header["class_dim"], unseen)
        scale = TargetScale.load(header["target_scale"])
        return Adapted(module.eval(), {n: own[n].detach() for n in header["w"]}, _output(shown, header, output), reading, scale)


def learner_of(
    shown: str,
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    trust: Collection[str] = (),
    model: nn.Module | None = None,
    loss: str | Loss | Callable[..., Tensor] | None = None,
    output: Callable[[Any], Tensor] | None = None,
) -> MetaLearner:
    """The learner of a header and its tensors; arguments are those of :func:`load`.

    Raises:
        CheckpointError: it names something that is not trusted, or is of another network.
    """
    network = _network(shown, header, model, trust)
    learner = MetaLearner(
        Partition(network, header["adapt"]),
        _part(SOLVERS, header["inner"], trust),
        None if header["hypergradient"] is None else _part(HYPERGRADIENTS, header["hypergradient"], trust),
        loss=_loss(shown, header, loss),
        start=_part(STARTS, header["start"], trust),
        step_weights=header["step_weights"],
        support_chunk=header["support_chunk"],
        precision=header.get("precision"),
        output=_output(shown, header, output),
        target_scale=TargetScale.load(header["target_scale"]),
    )
    frozen = header.get("frozen_norms", ())  # None: it was saved in evaluation mode, and never trained
    if frozen is not None:
        learner.partition.seen_training(frozen)
        for name in frozen:
            network.get_submodule(name).eval()
    own = tensors_of(learner)
    wrong = [k for k, v in own.items() if k not in tensors or tensors[k].shape != v.shape]
    if wrong:
        raise CheckpointError(
            f"{shown!r} is of another network: {wrong[0]} is missing or has another shape; give the one it was saved from"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return learner


def _network(shown: str, header: Mapping[str, Any], model: nn.Module | None, trust: Collection[str]) -> nn.Module:
    recipe = header["model"]
    if model is None:
        with torch.random.fork_rng(devices=[]):
            model = rebuilt(recipe, trust)
    if not alike(shape_of(model), recipe["shape"]):
        raise CheckpointError(
            f"{shown!r} is of another network than {recipe['name']} makes now; give model= one like the one that was saved"
        )
    return model


def _fill(shown: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors into a module; the last layer gets as many rows as they have."""
    own = module.state_dict(keep_vars=True)
    for key, value in tensors.items():
        name = key.removeprefix("model/")
        path, _, leaf = name.rpartition(".")
        there = own.get(name)
        resized = isinstance(there, nn.Parameter) and there.dim() == value.dim() and there.shape[1:] == value.shape[1:]
        if there is None or (there.shape != value.shape and not resized):
            raise CheckpointError(f"{shown!r} is of another network: there is no {name} of shape {tuple(value.shape)}")
        if there.shape == value.shape:
            with torch.no_grad():
                there.copy_(value)
            continue
        layer = module.get_submodule(path)
        setattr(layer, leaf, nn.Parameter(value.clone()))
        if leaf == "weight" and isinstance(layer, nn.Linear):
            fitted_head(module, (name,))


def _part(registry: Registry[Any], said: Mapping[str, Any], trust: Collection[str]) -> Any:
    name = said["name"]
    if name not in registry and name not in trust:
        raise CheckpointError(
            f"the file uses the {registry.what} {name}, and importing runs code: if that is yours, load with trust=[{name!r}]"
        )
    return registry.build(name, **said["options"])


def _loss(shown: str, header: Mapping[str, Any], given: str | Loss | Callable[..., Tensor] | None) -> Loss:
    if given is None and header["loss"] is None:
        raise CheckpointError(f"{shown!r} was made with a loss of your own, which a file cannot hold; give it again as loss=")
    return resolve(given) if given is not None else LOSSES.build(header["loss"])


def _output(shown: str, header: Mapping[str, Any], given: Callable[[Any], Tensor] | None) -> Callable[[Any], Tensor]:
    if given is None and header["own_output"]:
        raise CheckpointError(f"{shown!r} was made with an output= of your own, which a file cannot hold; give it again")
    return given or default_output
