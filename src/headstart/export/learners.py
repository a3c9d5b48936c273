"""A learner as one ONNX graph: its body, and the adaptation of its linear head to a support set that is an input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart import losses
from headstart.adapted import Snapshot
from headstart.errors import ExportError, MethodError
from headstart.export.body import OPSET, as_onnx, attempted, checked_example, doubled, package, random_like
from headstart.export.files import Case, checked, checked_classes, described, save
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
IR = 8
"""The format of a file, as of the oldest version that has the operators."""
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
    return save(model, path, _said(learner, head, names), cases)


@dataclass(frozen=True)
class LearnerParts:
    """A learner as two ONNX graphs, so that an example goes through the body once.

    Args:
        body: the content of a file: from ``x`` (n, …) to ``features`` (n, D).
        adaptation: the content of a file: from ``features`` (S + Q, D) of support and query examples, ``support_y`` (S,) int64, ``steps``
            (int64), ``lr`` (float) and ``ways`` (int64) to ``log_probabilities`` (steps + 1, Q, C), those of query examples before the
            first step and after each. C is the rows of the head, of which a task uses the first. A :class:`Ridge` head has no ``steps``
            and ``lr``, and gives those before and after.
        outputs: at most so many classes can a task have; None for any number.
        lr: the learner's own α; None for a ridge head.

    Example:
        >>> LearnerParts(b"body", b"adaptation", outputs=5, lr=0.1).outputs
        5
    """

    body: bytes
    adaptation: bytes
    outputs: int | None
    lr: float | None


def export_learner_parts(learner: MetaLearner, example_x: Any) -> LearnerParts:
    """A learner with a linear head as two ONNX graphs, each checked against torch: its body, and the adaptation of its head.

    Args:
        learner: its adapted part is a linear head.
        example_x: (n, …) one or more examples, as the model takes them.

    Raises:
        ExportError: as :func:`export_learner_onnx`, relative to the largest feature, or to the largest logarithm above 1.
        ConfigError: the inner step size is still to be measured.

    Example:
        >>> import headstart as hs
        >>> from headstart.export import export_learner_parts
        >>> learner = hs.protomaml(hs.models.mlp(features=4, ways=2), steps=3, lr=0.05)
        >>> parts = export_learner_parts(learner, torch.randn(6, 4))
        >>> import onnxruntime
        >>> [v.name for v in onnxruntime.InferenceSession(parts.adaptation).get_inputs()]
        ['features', 'support_y', 'steps', 'lr', 'ways']
    """
    x = checked_example(example_x)
    device = next(learner.model.parameters()).device
    program = _program(learner, x.to(device))
    head = _head(learner, program)
    said = _said(learner, head, None)
    with torch.random.fork_rng(devices=[]):
        tasks = _tasks(learner, x, head)
        bodies = [_body_case(learner, own.to(device)) for own, _, _ in tasks]
        body = checked(_features(learner, program, x, ""), said, bodies)
        paths = [_path_case(learner, device, head, own, support, steps) for own, support, steps in tasks]
        adaptation = checked(_adaptation(head), said, paths)
    return LearnerParts(body, adaptation, head.outputs if head.start == "own" else None, head.rule.lr)


def _said(learner: MetaLearner, head: HeadGraph, classes: Sequence[str] | None) -> dict[str, Any]:
    """The metadata."""
    steps = learner.inner.steps if head.rule.descends else None
    return described(classes=classes, kind="classes", start=head.start, steps=steps, lr=head.rule.lr, l2=head.rule.l2)


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
    first = {"own": own, "mean": own.mean(1, keepdim=True)}.get(start)
    return HeadGraph(rule, start, bias is not None, outputs, None if first is None else first.numpy())


# -- the graph ---------------------------------------------------------------------------------------------------------------


def _features(learner: MetaLearner, program: Program, x: Tensor, prefix: str = PREFIX) -> Any:
    """The body as an ONNX model, from "body.x" to "body.features"."""
    names = {module: name for name, module in learner.model.named_modules()}
    model = Snapshot().module(learner.model, {}).cpu()
    head = model.get_submodule(names[program.head])  # type: ignore[index]
    with replaced_forwards({head: lambda z: z}):
        exported = as_onnx(_Body(model, learner.output), x, "x", "features")
    return package("onnx").compose.add_prefix(exported, prefix, inplace=True) if prefix else exported


def _adaptation(head: HeadGraph) -> Any:
    """The adaptation as an ONNX model of its own."""
    onnx = package("onnx")
    graph = onnx.parser.parse_graph(head.trajectory_text())
    graph.initializer.extend(_constants(head, graph))
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR)


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
    graph.initializer.extend(_constants(head, adaptation))
    return model


def _constants(head: HeadGraph, graph: Any) -> list[Any]:
    """Those that a graph uses, as its initializers."""
    used = {name for node in graph.node for name in _inputs(node)}
    return [package("onnx").numpy_helper.from_array(v, k) for k, v in head.constants.items() if k in used]


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
    y, present = _labels(head, support)
    # One class more than there are examples of, where the head has room for it.
    ways = present + 1 if head.outputs is None or present < head.outputs else present
    given = (support.to(device), y.to(device), query.to(device), steps)
    expected = _answers(learner, *given, ways)
    inputs = {"support_x": support, "query_x": query, **_numbers(learner, head, y, steps, ways)}
    return Case(inputs, expected, lambda: attempted(lambda: _answers(_doubled(learner), *given, ways)))


def _labels(head: HeadGraph, support: Tensor) -> tuple[Tensor, int]:
    """Classes of the support examples, and how many there are."""
    most = 5 if head.outputs is None else min(head.outputs, 5)
    present = max(2, min(most, len(support) // 2))
    return torch.arange(len(support)) % present, present


def _numbers(learner: MetaLearner, head: HeadGraph, y: Tensor, steps: int | None, ways: int) -> dict[str, Any]:
    """The inputs that are no examples."""
    inputs: dict[str, Any] = {"support_y": y, "ways": np.int64(ways)}
    if head.rule.descends:
        inputs |= {"steps": np.int64(learner.inner.steps if steps is None else steps), "lr": np.float32(head.rule.lr)}
    return inputs


def _body_case(learner: MetaLearner, x: Tensor) -> Case:
    expected = _embedded(learner, x).cpu()
    exact = lambda: attempted(lambda: _embedded(_doubled(learner), x))  # noqa: E731
    return Case({"x": x.cpu()}, expected, exact, float(expected.abs().max()) or 1.0)


def _path_case(learner: MetaLearner, device: torch.device, head: HeadGraph, query: Tensor, support: Tensor, steps: int | None) -> Case:
    y, ways = _labels(head, support)
    pool = torch.cat([support, query]).to(device)
    given = (pool, y.to(device), steps)
    expected = _path(learner, *given).cpu()
    inputs = {"features": _embedded(learner, pool).cpu().float(), **_numbers(learner, head, y, steps, ways)}
    return Case(inputs, expected, lambda: attempted(lambda: _path(_doubled(learner), *given)), max(1.0, float(expected.abs().max())))


def _typed(learner: MetaLearner, *examples: Tensor) -> tuple[Tensor, ...]:
    """Examples in double precision where the learner is."""
    dtype = next(learner.model.parameters()).dtype
    return tuple(doubled(v) if dtype == torch.float64 else v for v in examples)


def _embedded(learner: MetaLearner, x: Tensor) -> Tensor:
    """(n, D) features, which are there as the adapted part was found to be a linear head."""
    with evaluating(learner.model):
        return learner.embed(_typed(learner, x)).features.flatten(1)  # type: ignore[union-attr]


def _path(learner: MetaLearner, pool: Tensor, y: Tensor, steps: int | None) -> Tensor:
    """(N + 1, Q, C) log-probabilities for those examples of a pool that have no label."""
    (pool,) = _typed(learner, pool)
    index = torch.arange(len(pool), device=pool.device)[None]
    support, query = Side(index[:, : len(y)], y[None]), Side(index[:, len(y) :], torch.zeros_like(index[:, len(y) :]))
    with evaluating(learner.model):
        outputs = learner.trajectory(TaskBatch.from_pool(pool, support, query), steps, learner.embed([pool]))
    return torch.stack(outputs)[:, 0].log_softmax(-1)


def _answers(learner: MetaLearner, x: Tensor, y: Tensor, q: Tensor, steps: int | None, ways: int) -> Tensor:
    x, q = _typed(learner, x, q)
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
