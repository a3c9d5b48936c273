"""A model adapted to one task as an ONNX graph."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.adapted import Adapted
from headstart.export.body import as_onnx, attempted, checked_example, doubled, random_like
from headstart.export.files import Case, checked_classes, described, save

NUMBERS = (1, 7)
"""Of random examples that a graph is checked on, besides those given."""


class _Answers(nn.Module):
    """What a user reads of an adapted model: probabilities, or numbers in the user's unit."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__()
        self.module = copy.deepcopy(adapted.module).cpu()
        unseen = adapted.reading.unseen
        self.output, self.target_scale = adapted.output, adapted.target_scale
        self.reading = replace(adapted.reading, unseen=None if unseen is None else unseen.cpu())

    def forward(self, x: Tensor) -> Tensor:
        """(n, …)."""
        own, outputs = self.reading, self.output(self.module(x))
        outputs = outputs if self.target_scale is None else self.target_scale.back(outputs)
        return outputs if own.kind == "real" else own.loss.probabilities(own.possible(outputs), own.kind, own.class_dim)


def export_onnx(adapted: Adapted, path: str | os.PathLike[str], example_x: Any, classes: Sequence[str] | None = None) -> Path:
    """Writes a model adapted to one task as one ONNX file, checked against torch by onnxruntime.

    The graph has the input ``x`` (n, …), for any n, and the output ``probabilities`` as of :meth:`Adapted.predict_proba`, or
    ``predictions`` in the user's unit for real targets. An existing file is replaced only after the check.

    Args:
        adapted: what ``learner.adapt`` gave.
        path: of the file.
        example_x: (n, …) one or more examples, as the model takes them.
        classes: a name for each class, kept with the version as JSON in the metadata ``headstart`` of the graph.

    Returns:
        The path.

    Raises:
        ExportError: a package is missing, torch cannot export the model, or onnxruntime gives other numbers: by more than 1e-4
            (for real targets, of the largest prediction), where single precision is good for that in torch.

    Example:
        >>> import tempfile
        >>> import headstart as hs
        >>> learner = hs.anil(hs.models.mlp(features=4, ways=2), steps=3, lr=0.5)
        >>> x = torch.randn(6, 4)
        >>> path = hs.export_onnx(learner.adapt(x, torch.tensor([0, 1] * 3)), f"{tempfile.mkdtemp()}/task.onnx", x, ["cat", "dog"])
        >>> path.name
        'task.onnx'
    """
    x = checked_example(example_x)
    real = adapted.reading.kind == "real"
    answers = adapted.predict if real else adapted.predict_proba
    device = next((v.device for v in adapted.module.parameters()), x.device)
    cases = []
    for own in (x, *(random_like(x, n, seed=n) for n in NUMBERS)):
        expected = answers(own.to(device)).cpu()
        unit = (float(expected.abs().max()) or 1.0) if real else 1.0
        cases.append(Case({"x": own}, expected, partial(_exact, adapted, own.to(device), real), unit))
    outputs = cases[0].expected.shape[adapted.reading.class_dim] if not real else None
    names = checked_classes(classes, outputs)
    with torch.random.fork_rng(devices=[]):
        model = as_onnx(_Answers(adapted), x, "x", "predictions" if real else "probabilities")
    return save(model, path, described(classes=names, kind=adapted.reading.kind), cases)


def _exact(adapted: Adapted, x: Tensor, real: bool) -> Tensor | None:
    def answers() -> Tensor:
        precise = replace(adapted, module=copy.deepcopy(adapted.module).double())
        return precise.predict(doubled(x)) if real else precise.predict_proba(doubled(x))

    return attempted(answers)
