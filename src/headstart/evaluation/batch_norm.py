"""Batch normalisation at test as a stated policy, and its statistics re-estimated on training examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from headstart.data.drawing import Sampler, sampler_of
from headstart.errors import ConfigError
from headstart.learner import MetaLearner
from headstart.program.modes import evaluating
from headstart.types import Tree

BatchNorm = Literal["support", "running", "episode", "batch"]
POLICIES = {
    "support": "support (of each task's support examples in what adapts, of training examples in what is shared; inductive)",
    "running": "running (training examples; inductive)",
    "episode": "episode (its support and query examples; transductive)",
    "batch": "batch (all examples of 100 episodes; transductive)",
}


def check_policy(batch_norm: str) -> None:
    """Refuses a policy that is not known.

    Raises:
        ConfigError: it says which.
    """
    if batch_norm not in POLICIES:
        raise ConfigError(f'batch_norm={batch_norm!r}: use "support", "running", "episode" or "batch"')


BY_START = "transductive: the start sees the query examples"


def policy(learner: MetaLearner, batch_norm: BatchNorm) -> str:
    """What to print: the policy, or that it does not matter; and whether predictions depend on other query examples anyway."""
    said = POLICIES[batch_norm] if has_batch_norm(learner.model) else "none in the model"
    if not learner.start.transductive:
        return said
    return said.replace("inductive", BY_START) if "inductive" in said else f"{said}; {BY_START}"


@contextmanager
def normalising(learner: MetaLearner, batch_norm: BatchNorm, examples: Tree) -> Iterator[BatchNorm]:
    """Evaluation mode with a policy for batch normalisation; modes and running statistics are put back afterwards.

    Args:
        learner: whose model it is.
        batch_norm: the policy.
        examples: a few, as the model takes them.

    Yields:
        The policy in short: that of support examples is ``"running"`` where no batch normalisation is in what adapts.
    """
    if batch_norm == "support":
        with learner.in_use(examples) as own:
            yield "running" if own is None else "support"
        return
    model, frozen = learner.model, learner.partition.frozen_norms() or ()
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and n not in frozen]
    kept = [{k: b.clone() for k, b in m.named_buffers()} for m in layers]
    with evaluating(model):
        try:
            for layer in layers:
                layer.train(batch_norm != "running")
            yield batch_norm
        finally:
            for layer, buffers in zip(layers, kept, strict=True):
                for k, b in layer.named_buffers():
                    b.copy_(buffers[k])


def has_batch_norm(model: nn.Module) -> bool:
    """Whether batch normalisation in the model keeps running statistics."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


def training_mode(learner: MetaLearner) -> None:
    """Puts a model into training mode; what the user froze stays so: modules in evaluation mode within a model in training mode."""
    model, norms = learner.model, learner.partition.frozen_norms() or ()
    frozen = [m for n, m in model.named_modules() if (model.training and not m.training) or n in norms]
    model.train()
    for module in frozen:
        module.training = False


def estimate_batch_norm(learner: MetaLearner, tasks: Any, examples: int = 1000, chunk: int = 100) -> None:
    """Replaces the running statistics of batch and instance normalisation by averages over training examples.

    The statistics that training leaves behind trail the weights; single accuracies then swing by points. The examples are
    always the same ones, so the result depends on the weights alone. Layers in evaluation mode within a model in training mode
    are frozen, and keep what they have.

    Args:
        learner: its model is changed.
        tasks: the training split, or a sampler of training tasks.
        examples: how many to average over.
        chunk: examples that go through the model together.

    Example:
        >>> import headstart as hs
        >>> split = hs.data.Split(torch.randint(256, (60, 1, 16, 16), dtype=torch.uint8), [f"c{i}" for i in range(6)], [10] * 6)
        >>> learner = hs.anil(hs.models.conv4(channels=1, ways=5, size=16, filters=2), lr=0.1)
        >>> before = learner.model.state_dict()["body.0.1.running_mean"].clone()
        >>> estimate_batch_norm(learner, split)
        >>> bool((learner.model.state_dict()["body.0.1.running_mean"] != before).any())
        True
    """
    frozen, kinds = learner.partition.frozen_norms() or (), nn.modules.batchnorm._NormBase
    layers = [m for n, m in learner.model.named_modules() if isinstance(m, kinds) and m.track_running_stats and n not in frozen]
    if not layers:
        return
    device = next(learner.model.parameters()).device
    momenta, calls = [m.momentum for m in layers], dict.fromkeys(layers, 0)

    def average(layer: nn.modules.batchnorm._NormBase, _: object) -> None:
        calls[layer] += 1
        layer.momentum = 1 / calls[layer]  # the k-th of k values gets the weight 1/k: a cumulative average, in every kind of layer

    with evaluating(learner.model), torch.no_grad():
        hooks = [layer.register_forward_pre_hook(average) for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.train()
        try:
            for part in _parts(tasks, examples, chunk, device):
                args, kwargs = (part, {}) if isinstance(part, tuple) else ((), part) if isinstance(part, dict) else ((part,), {})
                learner.model(*args, **kwargs)
        finally:
            for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
                layer.momentum = momentum
                hook.remove()


def _parts(tasks: Any, examples: int, chunk: int, device: torch.device) -> Iterator[Tree]:
    own = getattr(tasks, "chunks", None)
    if callable(own):
        yield from own(examples, chunk, device)
        return
    sampler: Sampler = sampler_of(tasks, stream="statistics", tasks=1)
    seen = index = 0
    while seen < examples:
        pool = sampler.batch(index, device).examples
        size = len(tree_flatten(pool)[0][0])
        count = max(1, size // chunk)
        for i in range(count):
            yield tree_map(lambda v: _piece(v, i, count), pool)  # noqa: B023  (used at once)
        seen, index = seen + size, index + 1


def _piece(v: Tensor, i: int, count: int) -> Tensor:
    return v.tensor_split(count)[i]
