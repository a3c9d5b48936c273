"""Analyses a model for a partition: finds what can run once by watching it, and checks that rather than trusting it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from headstart.errors import HeadstartError, MethodError, TaskError
from headstart.partition import Partition
from headstart.program import checks
from headstart.program.description import FEATURES, Output, Program, detached, ties_of
from headstart.program.kernels import channels_last, has_old_weight_norm
from headstart.program.modes import evaluating, undisturbed
from headstart.program.run import Live, Record, apart, call, record, rows_of, take
from headstart.program.watch import few_examples, find_features, find_head, find_last, find_recorded, watch
from headstart.types import Params, Tree

NOTHING_ALONE = "no submodule is independent of the adapted parameters and called exactly once"
CHANGED = "replaying changed the model's output; every step runs the whole model"
MIXES = "a submodule mixes examples with one another; every step runs the whole model"
LARGEST = 100
"""Examples of the largest batch on which mixing is looked for."""


def analyse(partition: Partition, examples: Tree, output: Output, enabled: bool = True) -> Program:
    """How a model is run for a partition, in the mode it is in.

    Args:
        partition: the split into w and φ.
        examples: a pool, as the model takes it; three of them are run, and once up to 100.
        output: takes the outputs out of what the model returns.
        enabled: False runs the whole model in every step.

    Raises:
        TaskError: the model cannot run on these examples, or does not give one row for each.
        MethodError: it holds something whose second derivative is wrong.
    """
    model, few = partition.model, few_examples(examples, 3)
    adapted = {id(p) for name, p in model.named_parameters() if name in partition.adapted}
    with undisturbed(model, few):
        try:
            three = watch(model, set(partition.adapted), output, few)
            two = watch(model, set(partition.adapted), output, few_examples(examples, 2))
        except HeadstartError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{tuple(leaf.shape)} {leaf.dtype}" for leaf in tree_leaves(few))
            raise TaskError(
                f"{type(model).__name__} cannot run on these examples (three of them: {shapes}): {error}."
                " Give examples in the shape and type that the model takes"
            ) from error
        for seen, n in ((three, 3), (two, 2)):
            if seen.outputs.dim() == 0 or len(seen.outputs) != n:
                raise TaskError(rows_of(seen.outputs, n))
        whole = Program(
            partition,
            output,
            three.outputs.shape,
            None,
            (),
            (),
            partition.shared,
            NOTHING_ALONE if enabled else "switched off",
            random=three.random,
            buffers=three.buffers,
            assigns=three.assigns or two.assigns,
            special=three.special or two.special,
            marks_inputs=three.marks_inputs,
            ties=ties_of(model),
            last=find_last(three),
            modules=tuple(model.modules()),
        )
        program = whole
        if enabled:
            head = find_head(model, adapted, three)
            recorded = () if head is not None else tuple(find_recorded(model, adapted, three, two))
            if head is not None or recorded:
                names = {id(p): n for n, p in model.named_parameters()}
                head_names = () if head is None else tuple(names[id(p)] for p in (head.weight, head.bias) if p is not None)
                features = FEATURES if head is not None else find_features(model, adapted, three, recorded)
                found = replace(whole, head=head, head_names=head_names, recorded=recorded, reason="", features=features)
                program = _verified(found, whole, examples, few)
        _refuse_old_weight_norm(program)
        program = replace(program, channels_last=_takes_channels_last(program, few))
        program = replace(program, step_flops=_step_flops(program, few))
        if program.head is None:
            program = replace(program, mixes=checks.live_mixes(program, few))
            program = replace(program, vmap_refusal=checks.vmap_refusal(program, few))
    return program


def still_right(program: Program, examples: Tree) -> bool:
    """Whether a program found on examples of other sizes also holds for these."""
    few, program = few_examples(examples, 3), replace(program, precision=None)  # what is compared must not be rounded
    with undisturbed(program.model, few):
        try:
            seen = watch(program.model, set(program.partition.adapted), program.output, few)
        except Exception:  # whatever it is, a new analysis says so
            return False
        if len(seen.outputs) != 3 or seen.outputs.dim() != len(program.shape):
            return False
        return bool(program.reason) or _replays(program, few) is not None


# -- checking what was found -------------------------------------------------------------------------------------------------


def _verified(program: Program, whole: Program, examples: Tree, few: Tree) -> Program:
    """The program, with the φ that its steps use; or the whole model, with the reason."""
    live = _replays(program, few)
    if live is None:
        return replace(whole, reason=CHANGED)
    if _mixes(program, examples):
        return replace(whole, reason=MIXES)
    return replace(program, live=live)


def _replays(program: Program, examples: Tree) -> tuple[str, ...] | None:
    """Which φ the steps use, if replaying gives the model's own outputs for other adapted parameters; else None.

    In evaluation mode, so that dropout and batch statistics do not hide the comparison.
    """
    try:
        with evaluating(program.model):
            return _compared(program, examples)
    except MethodError as error:
        if "took another way" in str(error):
            return None
        raise
    except HeadstartError:
        raise
    except Exception:  # whatever goes wrong in a replayed model went well in the model itself, so the replay is at fault
        return None


def _compared(program: Program, examples: Tree) -> tuple[str, ...] | None:
    model, partition = program.model, program.partition
    own = dict(model.named_parameters())
    params = other_weights(program)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = program.output(call(model, params, apart(examples)))
        torch.manual_seed(0)
        kept = record(program, examples, None, gradient=False)
        phi = {n: params[n].requires_grad_() for n in partition.shared}
        with Live(program, kept.specs) as live, torch.enable_grad():
            outputs, _ = live.outputs(params, kept.rows, kept.constants, apart(examples), {})
            seen: set[str] = set()
            if phi and outputs.requires_grad:
                grads = torch.autograd.grad(outputs.float().sum(), list(phi.values()), allow_unused=True)
                seen = {n for n, g in zip(phi, grads, strict=True) if g is not None}
        if not checks.alike(outputs, expected) and not program.random:
            return None
        # Other examples, in another number and order: a submodule that mixes examples or keeps something of them shows here.
        other = torch.tensor([2, 0])
        some = take(examples, other)
        with Live(program, kept.specs) as live:
            again, _ = live.outputs(params, {k: v[other.to(v.device)] for k, v in kept.rows.items()}, kept.constants, apart(some), {})
        afresh = program.output(call(model, params, apart(some)))
        if not checks.alike(again, afresh) and not program.random:
            return None
    # Besides what these examples used in this mode: whatever is not inside a recorded submodule.
    inside = {id(p) for r in program.recorded for p in r.module.parameters()}
    outside = set() if program.head is not None else {n for n in phi if id(own[n]) not in inside}
    return tuple(n for n in phi if n in seen | outside)


def other_weights(program: Program) -> Params:
    """The model's parameters as constants, the adapted ones moved by some noise."""
    params = detached(program.model)
    generator = torch.Generator().manual_seed(0)
    for n in program.partition.adapted:
        noise = torch.randn(params[n].shape, generator=generator).to(params[n])
        params[n] = params[n] + (params[n].abs().mean() + 0.1) * noise
    return params


def _mixes(program: Program, examples: Tree) -> bool:
    """Whether what is recorded of an example depends on the examples beside it, in either mode, in a small batch or a large one.

    The first example is run with the others in another order, and with copies of one instead of them, under the same random numbers:
    its rows must stay. Batch normalisation mixes in training by its nature, and is put aside: its statistics over a chunk are a stated
    policy.
    """
    size = min(len(tree_leaves(examples)[0]), LARGEST)
    for n in sorted({3, size}):
        some = few_examples(examples, n)
        others = [take(some, torch.tensor(order)) for order in ([0, *range(n - 1, 0, -1)], [0] + [1] * (n - 1))]
        for context in (evaluating(program.model), _training_but_norms(program.model)):
            with context:
                first, *beside = (_first_rows(program, x) for x in (some, *others))
            if not all(checks.alike(a, b) for second in beside for a, b in zip(first, second, strict=True)):
                return True
    return False


def _first_rows(program: Program, examples: Tree) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [v[0] for v in record(program, examples, None, gradient=False).rows.values()]


@contextmanager
def _training_but_norms(model: nn.Module) -> Iterator[None]:
    """The modes as they are, but batch normalisation and dropout in evaluation mode."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd)]
    was = [m.training for m in layers]
    try:
        for m in layers:
            m.training = False
        yield
    finally:
        for m, training in zip(layers, was, strict=True):
            m.training = training


# -- what else is noted ------------------------------------------------------------------------------------------------------


def _refuse_old_weight_norm(program: Program) -> None:
    inside = {m for r in program.recorded for m in r.module.modules()}
    outside = [m for m in program.modules if m not in inside and not list(m.children())]
    if program.head is None and any(has_old_weight_norm(m) for m in outside):
        raise MethodError(
            "torch.nn.utils.weight_norm in what runs per inner step has a wrong second derivative;"
            " use torch.nn.utils.parametrizations.weight_norm, which headstart computes in another way"
        )


def _takes_channels_last(program: Program, examples: Tree) -> bool:
    """Whether the model runs on images in that memory order; a ``view`` of them does not."""
    if not any(v.dim() == 4 for v in tree_leaves(examples)):
        return False
    try:
        with evaluating(program.model):
            call(program.model, detached(program.model), apart(channels_last(examples)))
    except RuntimeError:
        return False
    return True


def _step_flops(program: Program, examples: Tree) -> float:
    """Work of what runs per step on one example; infinite where it cannot be counted, so that nothing is expected of vmap."""
    try:
        with FlopCounterMode(display=False) as counter, evaluating(program.model):
            kept = record(program, examples, None, gradient=False) if not program.reason else Record()
            before = counter.get_total_flops()
            with Live(program, kept.specs) as live:
                live.outputs(detached(program.model), kept.rows, kept.constants, apart(examples), {})
            return (counter.get_total_flops() - before) / 3
    except RuntimeError:  # the counter's own hooks do not stand derivatives that are taken inside a forward
        return float("inf")
