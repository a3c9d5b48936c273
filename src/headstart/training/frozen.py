"""A frozen body: its features are computed once, and are the examples of what is trained."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from headstart.data import Source
from headstart.data.files.cache import cached
from headstart.data.source import Split
from headstart.data.sources.splitting import scale
from headstart.errors import ConfigError
from headstart.learner import MetaLearner
from headstart.models import on_features
from headstart.partition import Partition

CHUNK = 100


def features(learner: MetaLearner, source: Source) -> Source:
    """The source with what a learner's body makes of its examples in their place, standardised by the training classes; kept in the cache.

    Args:
        learner: of the whole model, with its head as what adapts; it is put into evaluation mode.
        source: of pictures or other examples.

    Raises:
        ConfigError: the model does not end in a linear layer that makes its outputs.
    """
    learner.model.eval()
    splits = {split.name: split for split in (source.train, source.validation, source.test)}
    key = _digest([*learner.model.state_dict().values(), *(split.examples for split in splits.values())], repr(learner.model))
    note = f"{source.name}: features of {sum(map(len, splits.values()))} examples (once) ..."
    arrays = cached(f"features-1-{key}", lambda: {name: _through(learner, split) for name, split in splits.items()}, note=note)
    train = arrays[source.train.name]
    mean, std = scale(train, range(len(train)))
    own = [Split(torch.from_numpy(arrays[name]), split.classes, split.counts, name, mean, std) for name, split in splits.items()]
    return Source(source.name, *own)


def whole(of_features: MetaLearner, body: MetaLearner, source: Source) -> MetaLearner:
    """The learner of examples: what was learned on features, on the body that made them.

    Args:
        of_features: a learner of the features.
        body: the learner that made them.
        source: of the features, with their scale.
    """
    head, own, split = body.partition.head[0].rpartition(".")[0], of_features, source.train
    if split.mean is None or split.std is None:
        raise ConfigError("these features have no scale; give the source that features() made")
    # Copied, as the learner of features goes on without it.
    model = on_features(body.model, head, copy.deepcopy(own.model), [float(v) for v in split.mean], [float(v) for v in split.std])
    learner = MetaLearner(
        Partition(model, [f"top.{name}" for name in own.partition.adapted]),
        own.inner,
        own.hypergradient,
        loss=own.loss,
        start=own.start,
        step_weights=None if own.step_weights is None else own.step_weights.tolist(),
        support_chunk=own.support_chunk,
        target_scale=own.target_scale,
        precision=own.precision,
    )
    with torch.no_grad():  # of the same parameters in the same order, under longer names
        for there, value in zip(learner.theta.values(), own.theta.values(), strict=True):
            there.copy_(value)
    return learner


def _through(learner: MetaLearner, split: Split) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    device = next(learner.model.parameters()).device
    found = learner.embed(split.batch(part, device) for part in torch.arange(len(split)).split(CHUNK))
    if found is None:
        raise ConfigError("freeze='body': the model does not end in a linear layer that makes its outputs, so it has no body to freeze")
    return found.features.float().cpu().numpy()


def _digest(tensors: Iterable[Tensor], text: str) -> str:
    whole = hashlib.sha256(text.encode())
    for tensor in tensors:
        whole.update(
            np.ascontiguousarray(tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()).data
        )
    return whole.hexdigest()[:24]
