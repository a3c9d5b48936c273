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
        array: (P, …) examples; uint8 images are (P, channels, height, width).
        classes: the name of each class.
        counts: examples of each class; the first ``counts[0]`` rows are class 0, and so on.
        name: what to call the split in messages.
        mean, std: of each channel, in the 0–1 range, that uint8 images are normalised with; or of each feature of vectors, or channel of
            float pictures. None for 0.5 and 0.5 of uint8 images, and to leave floats as they are.
        rows: (P,) which rows of the array are this split's, in the order of the classes; None for all of them, in theirs. So splits share
            one array, which can stay a mapped file.
        finite: whether the values are known to be finite; they are not looked at then.

    Raises:
        DataError: the counts do not add up, a class is empty, names repeat, or values are not finite.

    Example:
        >>> split = ClassExamples(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), ["a", "b"], [2, 2])
        >>> split.batch(torch.tensor([0, 3])).shape
        torch.Size([2, 1, 8, 8])
        >>> split.examples.shape, split.labels.tolist(), split.stored(torch.tensor([3])).dtype
        (torch.Size([4, 1, 8, 8]), [0, 0, 1, 1], torch.uint8)
    """

    array: Tensor
    classes: Sequence[str]
    counts: Sequence[int]
    name: str = "split"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    rows: Tensor | None = None
    finite: bool = field(default=False, repr=False)
    starts: Tensor = field(init=False, repr=False)

    def __repr__(self) -> str:
        shape = "×".join(map(str, self.array.shape[1:]))
        return f"{type(self).__name__}({self.name!r}: {len(self)} examples of {shape} in {len(self.classes)} classes)"

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.counts):
            raise DataError(f"{self.name}: {len(self.classes)} class names for {len(self.counts)} class sizes; give one each")
        if sum(self.counts) != len(self):
            raise DataError(f"{self.name}: class sizes add up to {sum(self.counts)}, but there are {len(self)} examples")
        if len(set(self.classes)) != len(self.classes):
            seen: set[str] = set()
            twice = next(c for c in self.classes if c in seen or seen.add(c))  # type: ignore[func-returns-value]
            raise DataError(f"{self.name}: class name {twice!r} occurs twice; rename or merge the two")
        if any(n < 1 for n in self.counts):
            empty = self.classes[[n < 1 for n in self.counts].index(True)]
            raise DataError(f"{self.name}: class {empty!r} has no examples; leave it out")
        if self.array.is_floating_point() and not self.finite and not bool(torch.isfinite(self.array).all()):
            raise DataError(f"{self.name}: examples hold NaN or infinite values; clean the data first")
        counts = torch.tensor(self.counts)
        object.__setattr__(self, "starts", counts.cumsum(0) - counts)

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    @property
    def examples(self) -> Tensor:
        """(P, …) all examples, as they are kept; a copy where they are some rows of a larger array."""
        return self.array if self.rows is None else self.array[self.rows]

    @property
    def shape(self) -> torch.Size:
        """The shape of an example."""
        return self.array.shape[1:]

    @property
    def labels(self) -> Tensor:
        """(P,) the class of every example."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), torch.tensor(self.counts))

    def stored(self, index: Tensor) -> Tensor:
        """The (k, …) examples at (k,) places, as they are kept."""
        return self.array[index if self.rows is None else self.rows[index]]

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The examples at ``index`` (any shape) as floats: uint8 images scaled to 0–1, and everything that has a scale standardised."""
        chosen = self.stored(index.reshape(-1)).to(device)
        pictures = chosen.dtype == torch.uint8
        if pictures:
            chosen = chosen.to(torch.float32).div_(255)
        if pictures or self.mean is not None:
            shape = (1, -1) + (1,) * (chosen.dim() - 2)
            own = [(0.5,) if v is None else v for v in (self.mean, self.std)]
            mean, std = (torch.tensor(v, device=device, dtype=chosen.dtype).view(shape) for v in own)
            chosen = (chosen.sub_ if pictures else chosen.sub)(mean).div_(std)
        return chosen.reshape(*index.shape, *chosen.shape[1:])
