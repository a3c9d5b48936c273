"""The adaptation of a linear head as a part of an ONNX graph: standard operators, and a loop of as many steps as are asked for.

A row of ones beside the features stands for the bias, so that one matrix V (D + 1, C) is all that adapts. With the one-hot labels Y and
the weight of each support example, one over their number, a step is ``V ← (1 − α λ) V − α Z_Sᵀ (weight · (softmax(Z_S V) − Y))``.

V is kept as ``d V_0 + Δ``, the decay d being a number and Δ what was learned. The outputs of V_0 are then taken once, and of prototypes
around the middle of the support set, which shifts all classes of an example alike: far from it they would lose digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headstart.inner.head_rule import HeadRule

FAR = float(np.finfo(np.float32).max) ** 0.25
"""How far away the prototype of a class without an example is: as in :class:`~headstart.Prototypes`."""

_LABELS = """
    inside = Less(support_y, ways)
    label = Where(inside, support_y, minus_one)
    column = Unsqueeze(label, at_1)
    class = Range(zero, rows, one)
    same = Equal(column, class)
    onehot = Cast <to = 1> (same)
    labelled = ReduceSum <keepdims = 1> (onehot, at_1)
    labels = ReduceSum <keepdims = 1> (labelled, at_0)
    weight = Div(labelled, labels)
    count = ReduceSum <keepdims = 0> (onehot, at_0)
    seen = Greater(count, nothing)
"""
"""Labels that are not of 0 … ways − 1, such as −100, count for nothing."""

_SIDES = """
    support = Shape(support_y)
    z_s = Slice(z, at_0, support, at_0)
    z_q = Slice(z, support, end, at_0)
"""

_START = {
    "own": """
    u_s = Identity(z_s)
    u_q = Identity(z_q)
    v_0 = Identity(own)
""",
    "mean": """
    u_s = Identity(z_s)
    u_q = Identity(z_q)
    many = Unsqueeze(rows, at_0)
    wide = Concat <axis = 0> (at_1, many)
    v_0 = Expand(own, wide)
""",
    "prototypes": """
    plain_s = Slice(features, at_0, support, at_0)
    middle = ReduceMean <keepdims = 1> (plain_s, at_0)
    around = Sub(features, middle)
    u = Pad(around, pads, unit)
    u_s = Slice(u, at_0, support, at_0)
    u_q = Slice(u, support, end, at_0)
    near_s = Slice(around, at_0, support, at_0)
    by_class = Transpose <perm = [1, 0]> (onehot)
    total = MatMul(by_class, near_s)
    least = Max(count, unit)
    each = Unsqueeze(least, at_1)
    mean = Div(total, each)
    twice = Add(mean, mean)
    upper = Transpose <perm = [1, 0]> (twice)
    square = Mul(mean, mean)
    norm = ReduceSum <keepdims = 0> (square, at_1)
    away = Where(seen, nothing, far)
    sum = Add(norm, away)
    bias = Neg(sum)
    lower = Unsqueeze(bias, at_0)
    v_0 = Concat <axis = 0> (upper, lower)
""",
}

_OUTPUTS = """
    {p}before = Mul({d}, first_{side})
    {p}learned = MatMul(z_{side}, {delta})
    {p}logits = Add({p}before, {p}learned)
"""

_LOG = """
    {p}log = LogSoftmax <axis = -1> ({p}logits)
"""

_LOSS = """
    {p}own = Mul({p}log, onehot)
    {p}part = Mul({p}own, weight)
    {p}sum = ReduceSum <keepdims = 0> ({p}part)
    {loss} = Neg({p}sum)
"""

_BEGIN = """
    first_s = MatMul(u_s, v_0)
    first_q = MatMul(u_q, v_0)
    delta_0 = Mul(v_0, nothing)
    shrunk = Mul(lr, l2)
    gamma = Sub(unit, shrunk)
    z_t = Transpose <perm = [1, 0]> (z_s)
"""

_STEP = f"""
        on = Identity(go)
        {_OUTPUTS.format(p="step_", side="s", d="d_m", delta="delta_m")}
        {_LOG.format(p="step_")}
        p = Exp(step_log)
        difference = Sub(p, onehot)
        residual = Mul(difference, weight)
        gradient = MatMul(z_t, residual)
        move = Mul(lr, gradient)
        kept = Mul(gamma, delta_m)
        delta_next = Sub(kept, move)
        d_next = Mul(gamma, d_m)
"""

_DESCENT = f"""
    {_BEGIN}
    d, delta, losses = Loop <body = step (int64 m, bool go, float d_m, float[E, C] delta_m)
        => (bool on, float d_next, float[E, C] delta_next, float loss) {{
        {_STEP}
        {_LOSS.format(p="step_", loss="loss")}
    }}> (steps, always, unit, delta_0)
    {_OUTPUTS.format(p="last_", side="s", d="d", delta="delta")}
    {_LOG.format(p="last_")}
    {_LOSS.format(p="last_", loss="last")}
    one_more = Unsqueeze(last, at_0)
    support_loss = Concat <axis = 0> (losses, one_more)
    {_OUTPUTS.format(p="query_", side="q", d="d", delta="delta")}
    logits = Identity(query_logits)
"""

_DESCENT_PATH = f"""
    {_BEGIN}
    times = Add(steps, one)
    d, delta, outputs_by_step = Loop <body = step (int64 m, bool go, float d_m, float[E, C] delta_m)
        => (bool on, float d_next, float[E, C] delta_next, float[Q, C] query_logits) {{
        {_OUTPUTS.format(p="query_", side="q", d="d_m", delta="delta_m")}
        {_STEP}
    }}> (times, always, unit, delta_0)
    log_probabilities = LogSoftmax <axis = -1> (outputs_by_step)
"""
"""The outputs before every step and, one time more, after the last, whose step nobody asks for."""

_RIDGE = """
    zd_s = Cast <to = 11> (z_s)
    z_t = Transpose <perm = [1, 0]> (zd_s)
    products = MatMul(zd_s, z_t)
    present = Cast <to = 11> (labelled)
    present_t = Transpose <perm = [1, 0]> (present)
    pairs = MatMul(present, present_t)
    kernel = Mul(products, pairs)
    size = Squeeze(support, at_0)
    order = Range(zero, size, one)
    order_t = Unsqueeze(order, at_1)
    diagonal = Equal(order, order_t)
    eye = Cast <to = 11> (diagonal)
    l2_d = Cast <to = 11> (l2)
    ridge = Mul(l2_d, eye)
    left = Add(kernel, ridge)
    right = Cast <to = 11> (onehot)
    system = Concat <axis = 1> (left, right)
    solved = Loop <body = eliminate (int64 k, bool go, double[S, M] a) => (bool on, double[S, M] a_next) {
        on = Identity(go)
        row = Gather <axis = 0> (a, k)
        pivot = Gather <axis = 0> (row, k)
        column_k = Gather <axis = 1> (a, k)
        at_k = Equal(order, k)
        unit_k = Cast <to = 11> (at_k)
        factor = Sub(column_k, unit_k)
        factor_t = Unsqueeze(factor, at_1)
        scaled = Div(row, pivot)
        scaled_t = Unsqueeze(scaled, at_0)
        change = MatMul(factor_t, scaled_t)
        a_next = Sub(a, change)
    }> (size, always, system)
    coefficients = Slice(solved, support, end, at_1)
    v_d = MatMul(z_t, coefficients)
    v = Cast <to = 1> (v_d)
    plain = MatMul(z_q, v)
    logits = Mul(scale, plain)
"""
"""ONNX has no operator that solves equations. Elimination without a change of rows needs a matrix that is positive definite, as this
is, and double precision: in single it lost a hundred times as many digits as torch."""

_RIDGE_PATH = f"""
    first_q = MatMul(u_q, v_0)
    {_RIDGE}
    before = Unsqueeze(first_q, at_0)
    after = Unsqueeze(logits, at_0)
    both = Concat <axis = 0> (before, after)
    log_probabilities = LogSoftmax <axis = -1> (both)
"""

_ANSWER = """
    possible = Where(seen, logits, lowest)
    p_all = Softmax <axis = -1> (possible)
    first = Unsqueeze(ways, at_0)
    probabilities = Slice(p_all, at_0, first, at_1)
"""


@dataclass
class HeadGraph:
    """The adaptation of one linear head.

    Args:
        rule: how it adapts.
        start: where it starts: ``own`` is (D + 1, C) for "own" and (D + 1, 1) for "mean"; for "prototypes" there is none.
        bias: whether the head has one.
        outputs: rows that the head has at least; None for as many as the task has classes.
        own: the first weights.
    """

    rule: HeadRule
    start: str
    bias: bool
    outputs: int | None
    own: np.ndarray[Any, Any] | None = None
    constants: dict[str, np.ndarray[Any, Any]] = field(init=False)

    def __post_init__(self) -> None:
        whole = {"zero": 0, "one": 1, "minus_one": -1, "at_0": [0], "at_1": [1], "end": [2**31 - 1], "pads": [0, 0, 0, 1]}
        whole["outputs"] = self.outputs or 0
        real = {"nothing": 0.0, "unit": 1.0, "far": FAR, "lowest": -3e38, "l2": self.rule.l2, "scale": self.rule.scale}
        self.constants = {k: np.array(v, dtype=np.int64) for k, v in whole.items()}
        self.constants |= {k: np.array(v, dtype=np.float32) for k, v in real.items()}
        self.constants["always"] = np.array(True)
        if self.own is not None:
            self.constants["own"] = np.ascontiguousarray(self.own, dtype=np.float32)

    def text(self) -> str:
        """The graph in the language of ``onnx.parser``, from the float features (S + Q, D) on, to probabilities and support losses."""
        outputs = "float[Q, ways] probabilities" + (", float[N1] support_loss" if self.rule.descends else "")
        # A head that is trained keeps its rows for classes that a task lacks: they take part in every softmax of its descent.
        # In a ridge head the classes do not touch one another, and prototypes are of the task's own.
        adaptation = [_START[self.start], _DESCENT] if self.rule.descends else [_RIDGE]
        return self._graph(outputs, self.rule.descends, [*adaptation, _ANSWER])

    def trajectory_text(self) -> str:
        """The same to (N + 1, Q, C) log-probabilities after 0, 1, …, N steps, of all rows of the head; of a ridge head before and after."""
        path = _DESCENT_PATH if self.rule.descends else _RIDGE_PATH
        return self._graph("float[N1, Q, C] log_probabilities", True, [_START[self.start], path])

    def _graph(self, outputs: str, all_rows: bool, lines: list[str]) -> str:
        inputs = "float[P, D] features, int64[S] support_y, " + ("int64 steps, float lr, " if self.rule.descends else "") + "int64 ways"
        rows = {"own": "Identity(outputs)", "mean": "Max(ways, outputs)"} if all_rows else {}
        first = [f"    rows = {rows.get(self.start, 'Identity(ways)')}"]
        first.append("    z = Pad(features, pads, unit)" if self.bias else "    z = Identity(features)")
        return f"adaptation ({inputs}) => ({outputs}) {{\n" + "\n".join((*first, _LABELS, _SIDES, *lines)) + "\n}"
