"""Whoever takes part: a way to take one step of a setting, and the meta-gradient that it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.benching.setting import Setting
from headstart.learner import MetaLearner
from headstart.presets import anil, fomaml, maml
from headstart.process import tune_process
from headstart.registry import Registry
from headstart.types import Params


class Unavailable(Exception):
    """Why somebody cannot take part: it is not installed, or has no such algorithm."""


@dataclass(frozen=True)
class Contestant:
    """One step, to be timed; and the meta-gradient of the parameters, to be compared before.

    Args:
        step: takes a step: everything up to the gradients in ``.grad`` or returned.
        gradient: takes one too, and returns the gradients by name; None where it is no meta-gradient.
    """

    step: Callable[[], Any]
    gradient: Callable[[], Params] | None = None


Maker = Callable[[Setting, nn.Module], Contestant]
CONTESTANTS: Registry[Contestant] = Registry("contestant")


def by_grad(model: nn.Module, step: Callable[[], Any]) -> Contestant:
    """A contestant that leaves its gradients in the parameters."""

    def gradient() -> Params:
        step()
        return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}

    return Contestant(step, gradient)


def parts(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Body and head of a network of a setting."""
    return (nn.Identity(), model) if isinstance(model, nn.Linear) else (model.body, model.head)  # type: ignore[return-value]


# -- ours ----------------------------------------------------------------------------------------------------------------------


def _learner(setting: Setting, model: nn.Module, **options: Any) -> MetaLearner:
    preset = {"maml": maml, "fomaml": fomaml}.get(setting.kind, anil)
    return preset(model, setting.steps, setting.lr, **options)


def _ours(setting: Setting, model: nn.Module, **options: Any) -> Contestant:
    tune_process()  # as training does
    learner, batch = _learner(setting, model, **options), setting.batch()
    return Contestant(lambda: learner.meta_gradient(batch), lambda: learner.meta_gradient(batch)[0])


@CONTESTANTS.register("headstart")
def headstart(setting: Setting, model: nn.Module) -> Contestant:
    """As it comes."""
    return _ours(setting, model)


@CONTESTANTS.register("headstart, bf16")
def headstart_bf16(setting: Setting, model: nn.Module) -> Contestant:
    """The body in bf16."""
    return _ours(setting, model, precision="bf16")


@CONTESTANTS.register("supervised")
def supervised(setting: Setting, model: nn.Module) -> Contestant:
    """A supervised step on the same images, a hundred at a time in channels-last order: what no meta-gradient can beat."""
    return _supervised(setting, model)


@CONTESTANTS.register("supervised, bf16")
def supervised_bf16(setting: Setting, model: nn.Module) -> Contestant:
    """The same, its forward under autocast."""
    return _supervised(setting, model, torch.autocast(torch.device(setting.device).type, torch.bfloat16))


def _supervised(setting: Setting, model: nn.Module, precision: Any = None) -> Contestant:
    if setting.kind in ("maml", "fomaml", "head"):
        raise Unavailable("one pass over the images is no measure of a whole model's inner loop")
    tune_process()
    batch = setting.batch()
    order = torch.randperm(len(batch.examples), generator=torch.Generator().manual_seed(0)).to(setting.device)
    y = torch.cat([batch.support.y.flatten(), batch.query.y.flatten()])
    chunks = [(batch.examples[i].contiguous(memory_format=torch.channels_last), y[i], len(i)) for i in order.split(100)]

    def step() -> None:
        model.zero_grad()
        for x, labels, size in chunks:
            if precision is None:
                outputs = model(x)
            else:
                with precision:
                    outputs = model(x)
            (F.cross_entropy(outputs.float(), labels) * (size / len(y))).backward()

    return Contestant(step)


# -- the loop over tasks -------------------------------------------------------------------------------------------------------


@CONTESTANTS.register("loop")
def loop(setting: Setting, model: nn.Module) -> Contestant:
    """Task after task through one graph of all inner steps: what learn2learn does, without its module copies."""
    tasks, (body, head) = list(pairs(setting)), parts(model)
    first_order = setting.kind == "fomaml"
    whole = setting.kind in ("maml", "fomaml")

    def adapted(w: dict[str, Tensor], outputs: Callable[[dict[str, Tensor]], Tensor], y: Tensor) -> dict[str, Tensor]:
        for _ in range(setting.steps):
            loss = F.cross_entropy(outputs(w), y)
            found = torch.autograd.grad(loss, list(w.values()), create_graph=not first_order)
            w = {k: v - setting.lr * g for (k, v), g in zip(w.items(), found, strict=True)}
        return w

    def step() -> None:
        model.zero_grad()
        for xs, ys, xq, yq in tasks:
            if whole:
                call = lambda w, x: torch.func.functional_call(model, w, (x,))  # noqa: E731
                w = adapted(dict(model.named_parameters()), lambda w: call(w, xs), ys)  # noqa: B023
                outputs = call(w, xq)
            else:
                z = body(torch.cat([xs, xq]))
                zs, zq = z[: len(xs)], z[len(xs) :]
                w = adapted(dict(head.named_parameters()), lambda w: F.linear(zs, w["weight"], w["bias"]), ys)  # noqa: B023
                outputs = F.linear(zq, w["weight"], w["bias"])
            (F.cross_entropy(outputs, yq) / setting.tasks).backward()

    return by_grad(model, step)


def pairs(setting: Setting) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Support and query of each task, as plain loops have them."""
    batch = setting.batch()
    x, s, q = batch.examples, batch.support, batch.query
    return [(x[s.index[t]], s.y[t], x[q.index[t]], q.y[t]) for t in range(setting.tasks)]
