"""What the losses of a group of tasks depend on besides w, as typed leaves with one way to a flat list and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstart.program.description import Key
from headstart.program.run import Record
from headstart.tasks import Tasks
from headstart.types import Params, ParamsLike

Place = Literal["support", "query", "constants", "phi"]


@dataclass(frozen=True)
class Shared:
    """Leaves: recorded rows of each side, recorded constants, and those shared parameters that run in every step.

    Those that φ has an influence on ask for a gradient; the others (integers, masks) are only values.

    Args:
        support, query: (T, S, …) and (T, Q, …) recorded rows.
        constants: recorded tensors that belong to no example.
        phi: shared parameters by name.
    """

    support: Mapping[Key, Tensor]
    query: Mapping[Key, Tensor]
    constants: Mapping[Key, Tensor]
    phi: Params

    @classmethod
    def of(cls, record: Record, tasks: Tasks, phi: ParamsLike) -> Shared:
        """The leaves of some tasks: their rows of a record, its constants, and the live part of φ."""

        def leaf(value: Tensor, like: Tensor) -> Tensor:
            value = value.detach()
            return value.requires_grad_() if like.requires_grad else value

        def rows(index: Tensor) -> dict[Key, Tensor]:
            return {k: leaf(_chosen(v.detach(), index), v) for k, v in record.rows.items()}

        constants = {k: leaf(v, v) for k, v in record.constants.items()}
        return cls(rows(tasks.support.index), rows(tasks.query.index), constants, {k: leaf(v, v) for k, v in phi.items()})

    def places(self) -> Iterator[tuple[Place, Key | str, Tensor]]:
        """The leaves that ask for a gradient, and where they stand."""
        for place, group in (("support", self.support), ("query", self.query), ("constants", self.constants), ("phi", self.phi)):
            for key, value in group.items():
                if value.requires_grad:
                    yield place, key, value  # type: ignore[misc]

    def tensors(self) -> list[Tensor]:
        """The leaves that ask for a gradient: what a hypergradient sees as φ."""
        return [value for _, _, value in self.places()]

    def placed(self, values: Sequence[Tensor]) -> Iterator[tuple[Place, Key | str, Tensor]]:
        """Values in the order of :meth:`tensors`, with their places."""
        for (place, key, _), value in zip(self.places(), values, strict=True):
            yield place, key, value


def _chosen(rows: Tensor, index: Tensor) -> Tensor:
    """The rows of an index, without a copy where they follow one another, as those of ordinary tasks do."""
    flat = index.reshape(-1)
    if flat.device.type == "cpu" and len(flat):
        first, last = int(flat[0]), int(flat[-1])
        if last - first == len(flat) - 1 and torch.equal(flat, torch.arange(first, last + 1)):
            return rows[first : last + 1].unflatten(0, index.shape)
    return rows.index_select(0, flat).unflatten(0, index.shape)  # a quarter of the time of indexing
