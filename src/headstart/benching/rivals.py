"""Other libraries, driven as their documentation says; each is imported only when it is asked for."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.benching.contestants import CONTESTANTS, Contestant, Unavailable, by_grad, pairs, parts
from headstart.benching.setting import Setting
from headstart.types import Params


def _imported(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{package} is not installed ({error}); pip install 'headstart[rivals]'") from error


@CONTESTANTS.register("higher")
def higher(setting: Setting, model: nn.Module) -> Contestant:
    """higher: a differentiable copy of what adapts, within a context for each task."""
    library = _imported("higher", "higher")
    tasks, (body, head) = pairs(setting), parts(model)
    first_order = setting.kind == "fomaml"
    adapts: nn.Module = model if setting.kind in ("maml", "fomaml") else head

    def step() -> None:
        model.zero_grad()
        for xs, ys, xq, yq in tasks:
            if adapts is head:
                xs, xq = body(torch.cat([xs, xq])).split([len(xs), len(xq)])
            optimizer = torch.optim.SGD(adapts.parameters(), lr=setting.lr)
            context = library.innerloop_ctx(adapts, optimizer, copy_initial_weights=False, track_higher_grads=not first_order)
            with context as (functional, inner):
                for _ in range(setting.steps):
                    inner.step(F.cross_entropy(functional(xs), ys))
                loss = F.cross_entropy(functional(xq), yq) / setting.tasks
                if first_order:  # the graph ends at the last weights; their gradient is the one that is meant
                    for p, g in zip(adapts.parameters(), torch.autograd.grad(loss, list(functional.parameters())), strict=True):
                        p.grad = g if p.grad is None else p.grad + g
                else:
                    loss.backward()

    return by_grad(model, step)


@CONTESTANTS.register("torchopt")
def torchopt(setting: Setting, model: nn.Module) -> Contestant:
    """TorchOpt: a differentiable optimizer, and states that are taken out before a task and put back after it."""
    if setting.kind == "fomaml":
        raise Unavailable("MetaSGD has no first-order form")
    library = _imported("torchopt", "torchopt")
    tasks, (body, head) = pairs(setting), parts(model)
    adapts: nn.Module = model if setting.kind == "maml" else head
    inner = library.MetaSGD(adapts, lr=setting.lr)

    def step() -> None:
        model.zero_grad()
        losses: list[Tensor] = []
        for xs, ys, xq, yq in tasks:
            if adapts is head:
                xs, xq = body(torch.cat([xs, xq])).split([len(xs), len(xq)])
            weights = library.extract_state_dict(adapts, by="reference", detach_buffers=True)
            state = library.extract_state_dict(inner, by="reference")
            for _ in range(setting.steps):
                inner.step(F.cross_entropy(adapts(xs), ys))
            losses.append(F.cross_entropy(adapts(xq), yq))
            library.recover_state_dict(adapts, weights)
            library.recover_state_dict(inner, state)
        torch.stack(losses).mean().backward()

    return by_grad(model, step)


@CONTESTANTS.register("parallel-metalearn")
def parallel_metalearn(setting: Setting, model: nn.Module) -> Contestant:
    """parallel-metalearn: all tasks under vmap, its default."""
    return _parallel(setting, model, "vmap")


@CONTESTANTS.register("parallel-metalearn, sequential")
def parallel_metalearn_sequential(setting: Setting, model: nn.Module) -> Contestant:
    """parallel-metalearn: task after task, its other engine."""
    return _parallel(setting, model, "sequential")


class _Taking(nn.Module):
    """A module that takes the keyword arguments which that library passes to everything, and has no use for them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **_: Any) -> Any:
        return self.module(x)


def _translated(model: nn.Module, kind: Any) -> nn.Module:
    """A copy with that library's batch normalisation, as its own networks have it; its translator asks for an argument that it lacks."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, own in list(parent.named_children()):
            if isinstance(own, nn.BatchNorm2d):
                layer = kind(own.num_features, own.eps, own.momentum)
                layer.load_state_dict({k: v for k, v in own.state_dict().items() if k in layer.state_dict()}, strict=False)
                setattr(parent, name, layer)
    return model


def _parallel(setting: Setting, model: nn.Module, backend: str) -> Contestant:
    if setting.kind == "head":
        raise Unavailable("its models have a backbone")
    for part in ("algorithms", "inner_optimizers", "loss", "model_wrappers"):
        _imported(f"metalearn.{part}", "parallel-metalearn")
    import metalearn

    body, head = parts(_translated(model, _imported("metalearn.nn_models.basic_layers.BatchNormalization", "parallel-metalearn").BatchNorm))
    names = {"anil": "ANIL"}.get(setting.kind)
    wrapped = metalearn.model_wrappers.MAML_Model(backbone=_Taking(body), head=_Taking(head), fast_weights_names=names)
    wrapped.train(model.training)
    inner = metalearn.inner_optimizers.InnerSGD(
        initial_fast_weights=wrapped.get_fast_weights(), inner_lr=setting.lr, first_order=setting.kind == "fomaml", learn_lr=False
    )
    learner = metalearn.algorithms.MAML(
        model=wrapped,
        optimizer=torch.optim.SGD(wrapped.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=metalearn.loss.CrossEntropy(metric_fn=metalearn.loss.CategoricalAccuracy()),
        inner_steps=setting.steps,
        backend=backend,
        device=torch.device(setting.device),
    )
    stacked = [torch.stack(v) for v in zip(*pairs(setting), strict=True)]
    batch = (stacked[0], {"labels": stacked[1]}, stacked[2], {"labels": stacked[3]})

    def gradient() -> Params:
        learner.step(iter([batch]), training=True)
        own = {n.replace("backbone.module.", "body.").replace("head.module.", "head."): p for n, p in wrapped.named_parameters()}
        return {n: own[n].grad.clone() for n, _ in model.named_parameters()}

    return Contestant(lambda: learner.step(iter([batch]), training=True), gradient)
