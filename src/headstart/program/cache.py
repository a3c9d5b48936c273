"""The programs of a partition: found once for each kind of input and mode, shared by all who use the partition."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from torch.utils._pytree import tree_leaves

from headstart.partition import Partition
from headstart.program.analyse import analyse, still_right
from headstart.program.description import Output, Program, key_of
from headstart.program.precision import Precision
from headstart.types import Tree

LIMIT, SHAPES = 16, 256
"""Programs that are kept, and shapes of input that each is known to hold for."""


def program_for(partition: Partition, examples: Tree, output: Output, enabled: bool = True, precision: Precision | None = None) -> Program:
    """The program for examples like these, in the mode the model is in.

    A model that has changed since — in its modules, parameters, modes or settings — is analysed again. For examples of another
    size a program is checked, on three of them, and kept.
    """
    programs: OrderedDict[Hashable, tuple[Program, set[Any]]] = partition.__dict__.setdefault("_programs", OrderedDict())
    key: Hashable = (key_of(partition.model, examples), output, enabled, precision)
    shape = tuple(tuple(v.shape[1:]) for v in tree_leaves(examples))
    if key in programs:
        programs.move_to_end(key)
        program, shapes = programs[key]
        if shape in shapes:
            return program
        if still_right(program, examples):
            if len(shapes) >= SHAPES:
                shapes.clear()
            shapes.add(shape)
            return program
        key = (key, shape)  # these examples go another way
        if key in programs:
            return programs[key][0]
    # The analysis compares runs, and does so in the model's own precision.
    program = replace(analyse(partition, examples, output, enabled), precision=precision)
    programs[key] = (program, {shape})
    while len(programs) > LIMIT:
        programs.popitem(last=False)
    return program
