"""Random changes to training images, on tensors: crop, mirror, colour, small affine maps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """Shifts, mirrors, recolours and bends each image of a batch by its own draw.

    Args:
        crop: pixels that an image may be shifted by in each direction; the border repeats.
        flip: mirror left and right, half of the time.
        jitter: largest relative change of brightness, contrast and saturation.
        affine: strength of a random affine map; 1 turns by up to 15°, scales by up to 15 %, shears by up to 0.2 and shifts by up to
            a twentieth of the width. The border repeats. For handwriting, where mirroring makes another character.

    Raises:
        ConfigError: a value is out of its range.

    Example:
        >>> Augment(crop=2)(torch.randn(4, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 8, 8])
    """

    crop: int = 0
    flip: bool = False
    jitter: float = 0.0
    affine: float = 0.0

    def __post_init__(self) -> None:
        if self.crop < 0:
            raise ConfigError(f"crop={self.crop}: it must be 0 or more pixels")
        if not (math.isfinite(self.jitter) and 0 <= self.jitter < 1):
            raise ConfigError(f"jitter={self.jitter}: it must be at least 0 and below 1")
        if not (math.isfinite(self.affine) and 0 <= self.affine <= 3):
            raise ConfigError(f"affine={self.affine}: it must be from 0 to 3")

    def __call__(self, images: Tensor, generator: torch.Generator, rows: Tensor | None = None, of: int = 0) -> Tensor:
        """The changed images.

        Args:
            images: (P, channels, height, width).
            generator: of the draws, on the CPU.
            rows, of: (P,) where these images stand among so many, of which each gets the draw that it would get among all; None for all.
        """
        if images.dim() != 4:
            raise ConfigError(f"only images can be augmented, and these examples have shape {tuple(images.shape[1:])}; switch it off")
        count, channels, height, width = images.shape
        among = of if rows is not None else count
        own = slice(None) if rows is None else rows
        draw = lambda *shape: torch.rand(among, *shape[1:], generator=generator)[own].to(images)  # noqa: E731
        if self.crop:
            shift = torch.randint(0, 2 * self.crop + 1, (2, among), generator=generator)[:, own].to(images.device)
            padded = F.pad(images, [self.crop] * 4, mode="replicate")
            rows = (shift[0][:, None] + torch.arange(height, device=images.device))[:, None, :, None]
            columns = (shift[1][:, None] + torch.arange(width, device=images.device))[:, None, None, :]
            every = torch.arange(count, device=images.device)[:, None, None, None]
            images = padded[every, torch.arange(channels, device=images.device)[None, :, None, None], rows, columns]
        if self.affine:
            turn, scale, shear, right, down = (self.affine * (2 * draw(count) - 1) for _ in range(5))
            turn, scale, shear = math.radians(15) * turn, 1 + 0.15 * scale, 0.2 * shear
            first = torch.stack([scale * turn.cos(), shear - turn.sin(), 0.1 * right], -1)
            second = torch.stack([turn.sin(), scale * turn.cos(), 0.1 * down], -1)
            maps = torch.stack([first, second], 1)  # of (-1, 1) coordinates, so 0.1 is a twentieth
            grid = F.affine_grid(maps, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        if self.flip:
            images = torch.where(draw(count, 1, 1, 1) < 0.5, images.flip(-1), images)
        if self.jitter:
            brightness, contrast, saturation = ((2 * draw(count, 1, 1, 1) - 1) * self.jitter for _ in range(3))
            grey = images.mean(1, keepdim=True)
            images = grey + (1 + saturation) * (images - grey)
            mean = images.mean((1, 2, 3), keepdim=True)
            images = mean + (1 + contrast) * (images - mean) + brightness
        return images


NONE = Augment()
BY_NAME = {
    "none": NONE,
    "flip": Augment(flip=True),
    "crop": Augment(crop=4, flip=True),
    "colour": Augment(crop=4, flip=True, jitter=0.4),
    "affine": Augment(affine=1.0),
}
"""The choices of the command line; ``crop`` mirrors too, ``colour`` does all three, ``affine`` is for handwriting."""
