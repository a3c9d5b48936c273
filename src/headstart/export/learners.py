"""A learner as one ONNX graph: its body, and the adaptation of its linear head to a support set that is an input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart import losses
from headstart.adapted import Snapshot
from headstart.errors import ExportError, MethodError
from headstart.export.body import as_onnx, attempted, checked_example, doubled, package, random_like
from headstart.export.files import Case, checked_classes, described, save
from headstart.export.head import HeadGraph
from headstart.learner import MetaLearner
from headstart.partition import Partition
from headstart.program.description import Output, Program
from headstart.program.modes import evaluating, replaced_forwards
from headstart.program.run import head_parameters
from headstart.tasks import Side, TaskBatch

WHAT = (
    ' A graph holds a linear head (adapt="head") that learns classes by cross_entropy, with GradientDescent(steps, lr, l2) of one step size'
    " from the model's own start, SharedVector() or Prototypes(), or with Ridge(); one task that is adapted by torch: hs.export_onnx"
)
PREFIX = "body."
LETTERS = {"support_x": "S", "query_x": "Q"}


class _Body(nn.Module):
    """What a head sees: the model, whose head hands on what it gets."""

    def __init__(self, model: nn.Module, output: Output) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Tensor:
        """(n, D) in single precision."""
        return self.output(self.model(x)).float()


def export_learner_onnx(learner: MetaLearner, path: str | os.PathLike[str], example_x: Any, classes: Sequence[str] | None = None) -> Path:
    """Writes a learner with a linear head as one ONNX file that adapts to the support set it is given, checked against torch.

    The graph has the inputs ``support_x`` (S, …), ``support_y`` (S,) int64, ``query_x`` (Q, …), ``steps`` (int64), ``lr`` (float) and
    ``ways`` (int64), all sizes open, and the outputs ``probabilities`` (Q, ways) and ``support_loss`` (steps + 1,), the loss before the
    first step and after each. A :class:`Ridge` head has no ``steps``, ``lr`` and ``support_loss``. The numbers are those of
    ``learner.adapt(support_x, support_y, steps).predict_proba(query_x)``: the body runs in evaluation mode, a class without an example
    gets 0, and a label that is not of 0 … ways − 1 counts for nothing. The learner's own ``steps`` and ``lr`` are in the metadata.

    Args:
        learner: its adapted part is a linear head.
        path: of the file.
        example_x: (n, …) one or more examples, as the model takes them.
        classes: names of the classes, where every task has the same.

    Returns:
        The path.

    Raises:
        ExportError: a package is missing, the learner adapts in a way that no graph is written for, torch cannot export the body, or
            onnxruntime gives numbers that differ from torch's by more than 1e-4 where single precision is good for that in torch.
        ConfigError: the inner step size is still to be measured.

    Example:
        >>> import tempfile
        >>> import headstart as hs
        >>> learner = hs.protomaml(hs.models.mlp(features=4, ways=2), steps=3, lr=0.05)
        >>> hs.export_learner_onnx(learner, f"{tempfile.mkdtemp()}/learner.onnx", torch.randn(6, 4)).name
        'learner.onnx'
    """
    x = checked_example(example_x)
    device = next(learner.model.parameters()).device
    program = _program(learner, x.to(device))
    head = _head(learner, program)
    names = checked_classes(classes, None)
    with torch.random.fork_rng(devices=[]):
        cases = [_case(learner, device, head, own, support, steps) for own, support, steps in _tasks(learner, x, head)]
        model = _joined(_features(learner, program, x), head)
    steps = learner.inner.steps if head.rule.descends else None
    said = described(classes=names, kind="classes", start=head.start, steps=steps, lr=head.rule.lr, l2=head.rule.l2)
    return save(model, path, said, cases)


# -- what is asked of the learner --------------------------------------------------------------------------------------------


def _program(learner: MetaLearner, x: Tensor) -> Program:
    """How the model runs, in evaluation mode."""
    if learner.loss != losses.cross_entropy:
        raise ExportError(f"loss={learner.loss.name!r} is not cross_entropy.{WHAT}")
    if not learner.start.head:
        raise ExportError(f"start={learner.start!r} starts a head in a way that no graph is written for.{WHAT}")
    index = torch.arange(len(x), device=x.device)[None]
    side = Side(index, torch.zeros_like(index))
    with evaluating(learner.model):
        program = learner.program(TaskBatch.from_pool(x, side, side))
    if program.head is None:
        raise ExportError(
            f"adapt={learner.partition.adapt!r} adapts {len(learner.partition.adapted)} tensors, which are not one linear layer at the"
            f" model's end ({program.reason or 'its body is replayed in parts'}).{WHAT}"
        )
    return program


def _head(learner: MetaLearner, program: Program) -> HeadGraph:
    try:
        rule = learner.inner.head_rule(program.head_names, learner.theta)
    except MethodError as error:
        raise ExportError(f"{error}.{WHAT}") from error
    start = learner.start.head
    weight, bias = head_parameters(program, {})
    outputs = None if start == "prototypes" else len(weight)
    rows = [weight.detach().float().T] + ([] if bias is None else [bias.detach().float()[None]])
    own = torch.cat([v.cpu() for v in rows])
    first = {"own": own, "mean": own.mean(1, keepdim=True)}.get(start) if rule.descends else None
    return HeadGraph(rule, start, bias is not None, outputs, None if first is None else first.numpy())


# -- the graph ---------------------------------------------------------------------------------------------------------------


def _features(learner: MetaLearner, program: Program, x: Tensor) -> Any:
    """The body as an ONNX model, from "body.x" to "body.features"."""
    names = {module: name for name, module in learner.model.named_modules()}
    model = Snapshot().module(learner.model, {}).cpu()
    head = model.get_submodule(names[program.head])  # type: ignore[index]
    with replaced_forwards({head: lambda z: z}):
        exported = as_onnx(_Body(model, learner.output), x, "x", "features")
    return package("onnx").compose.add_prefix(exported, PREFIX, inplace=True)


def _joined(model: Any, head: HeadGraph) -> Any:
    """The body on support and query examples at once, so that its weights are there once, and the adaptation after it."""
    onnx = package("onnx")
    helper, graph = onnx.helper, model.graph
    adaptation = onnx.parser.parse_graph(head.text())
    (examples,) = graph.input
    dims = [d.dim_value for d in examples.type.tensor_type.shape.dim][1:]
    kind = examples.type.tensor_type.elem_type
    pictures = {k: helper.make_tensor_value_info(k, kind, [letter, *dims]) for k, letter in LETTERS.items()}
    given = {v.name: v for v in adaptation.input} | pictures
    order = ("support_x", "support_y", "query_x", "steps", "lr", "ways")
    body = list(graph.node)
    del graph.input[:], graph.output[:], graph.node[:]
    graph.name = "headstart"
    graph.input.extend(given[name] for name in order if name in given)
    graph.output.extend(adaptation.output)
    graph.node.append(helper.make_node("Concat", ["support_x", "query_x"], [examples.name], axis=0))
    graph.node.extend(body)
    graph.node.append(helper.make_node("Identity", [f"{PREFIX}features"], ["features"]))
    graph.node.extend(adaptation.node)
    used = {name for node in adaptation.node for name in _inputs(node)}
    graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in head.constants.items() if k in used)
    return model


def _inputs(node: Any) -> list[str]:
    inside = [name for a in node.attribute for own in a.g.node for name in _inputs(own)]
    return [*node.input, *inside]


# -- what it is checked on ---------------------------------------------------------------------------------------------------


def _tasks(learner: MetaLearner, x: Tensor, head: HeadGraph) -> list[tuple[Tensor, Tensor, int | None]]:
    """Queries, support examples and steps: the examples themselves, and random ones of other sizes."""
    again = x[torch.arange(max(len(x), 2)) % len(x)]
    steps = min(learner.inner.steps, 1) if head.rule.descends else None
    return [(x, again, None), (random_like(x, 1, 1), random_like(x, 6, 2), steps), (random_like(x, 7, 3), random_like(x, 15, 4), None)]


def _case(learner: MetaLearner, device: torch.device, head: HeadGraph, query: Tensor, support: Tensor, steps: int | None) -> Case:
    most = 5 if head.outputs is None else min(head.outputs, 5)
    present = max(2, min(most, len(support) // 2))
    y = torch.arange(len(support)) % present
    # One class more than there are examples of, where the head has room for it.
    ways = present + 1 if head.outputs is None or present < head.outputs else present
    given = (support.to(device), y.to(device), query.to(device), steps)
    expected = _answers(learner, *given, ways)
    inputs: dict[str, Any] = {"support_x": support, "support_y": y, "query_x": query, "ways": np.int64(ways)}
    if head.rule.descends:
        inputs |= {"steps": np.int64(learner.inner.steps if steps is None else steps), "lr": np.float32(head.rule.lr)}
    return Case(inputs, expected, lambda: attempted(lambda: _answers(_doubled(learner), *given, ways)))


def _answers(learner: MetaLearner, x: Tensor, y: Tensor, q: Tensor, steps: int | None, ways: int) -> Tensor:
    dtype = next(learner.model.parameters()).dtype
    x, q = (doubled(v) if dtype == torch.float64 else v for v in (x, q))
    found = learner.adapt(x, y, steps).predict_proba(q).cpu()[:, :ways]
    return F.pad(found, (0, ways - found.shape[1]))


def _doubled(learner: MetaLearner) -> MetaLearner:
    """A copy of a learner in double precision."""
    model = Snapshot().module(learner.model, {}).double()
    for name in (*learner.partition.adapted, *learner.partition.shared):
        model.get_parameter(name).requires_grad_(True)
    own = MetaLearner(
        Partition(model, learner.partition.adapt), learner.inner, loss=learner.loss, start=learner.start, output=learner.output
    )
    own.theta = {k: v.detach().double() for k, v in learner.theta.items()}
    return own
