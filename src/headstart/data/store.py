"""Examples kept as one tensor, ordered by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from headstart.errors import DataError


@dataclass(frozen=True, eq=False)
class ClassExamples:
    """The examples of some classes, decoded once and ordered by class.

    Args:
        examples: (P, …) examples; uint8 images are (P, channels, height, width).
        classes: the name of each class.
        counts: examples of each class; the first ``counts[0]`` rows are class 0, and so on.
        name: what to call the split in messages.
        mean, std: per-channel statistics, in the 0–1 range, that uint8 images are normalised with.

    Raises:
        DataError: the counts do not add up, a class is empty, names repeat, or values are not finite.

    Example:
        >>> split = ClassExamples(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ["a", "b"], [2, 2])
        >>> split.batch(torch.tensor([0, 3])).shape
        torch.Size([2, 1, 8, 8])
    """

    examples: Tensor
    classes: Sequence[str]
    counts: Sequence[int]
    name: str = "split"
    mean: Sequence[float] = (0.5,)
    std: Sequence[float] = (0.5,)
    starts: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.counts):
            raise DataError(f"{self.name}: {len(self.classes)} class names for {len(self.counts)} class sizes; give one each")
        if sum(self.counts) != len(self.examples):
            raise DataError(f"{self.name}: class sizes add up to {sum(self.counts)}, but there are {len(self.examples)} examples")
        if len(set(self.classes)) != len(self.classes):
            seen: set[str] = set()
            twice = next(c for c in self.classes if c in seen or seen.add(c))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: class name {twice!r} occurs twice; rename or merge the two")
        if any(n < 1 for n in self.counts):
            empty = self.classes[[n < 1 for n in self.counts].index(True)]
            raise DataError(f"{self.name}: class {empty!r} has no examples; leave it out")
        if self.examples.is_floating_point() and not bool(torch.isfinite(self.examples).all()):
            raise DataError(f"{self.name}: examples hold NaN or infinite values; clean the data first")
        counts = torch.tensor(self.counts)
        object.__setattr__(self, "starts", counts.cumsum(0) - counts)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> Tensor:
        """(P,) the class of every example."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The examples at ``index`` (any shape) as floats: uint8 images scaled to 0–1 and normalised, others as they are."""
        chosen = self.examples[index.reshape(-1)].to(device)
        if chosen.dtype == torch.uint8:
            shape = (1, -1) + (1,) * (chosen.dim() - 2)
            mean = torch.tensor(self.mean, device=device).view(shape)
            std = torch.tensor(self.std, device=device).view(shape)
            chosen = chosen.to(torch.float32).div_(255).sub_(mean).div_(std)
        return chosen.reshape(*index.shape, *chosen.shape[1:])
