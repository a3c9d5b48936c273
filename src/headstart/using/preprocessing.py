"""How examples of a person's own become what a trained network takes; it travels with the network."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headstart import data as sources
from headstart.data.sources.columns import Feature, TableColumns
from headstart.data.sources.embedding import OWN, embedder
from headstart.data.sources.folder import decode
from headstart.errors import CheckpointError, ConfigError, DataError
from headstart.training.config import RunConfig

Kind = Literal["pictures", "vectors", "texts", "rows"]
FRAME = 22
"""Of 28 pixels: the square that the ink of framed drawings is scaled into, as in ``glyphs``."""


@dataclass(frozen=True)
class Preprocessing:
    """From pictures, vectors, texts or rows of a table to what the network takes.

    Args:
        kind: what examples are.
        shape: of an example, as the network takes it.
        mean, std: that examples are standardised with, by channel or by feature; None for neither.
        fit: how oblong pictures become square.
        ink: pictures are drawings: ``"white"`` turns dark ink on light paper into white on black, ``"framed"`` also moves and scales it to
            the usual place; "" leaves pictures as they are.
        embed: what makes vectors of texts.
        columns: how rows are read; None where files hold the vectors themselves.

    Example:
        >>> own = Preprocessing("vectors", (2,), (1.0, 0.0), (2.0, 1.0))
        >>> own.ready(torch.tensor([[3.0, 5.0]])).tolist()
        [[1.0, 5.0]]
        >>> Preprocessing.load(own.saved()) == own, own.checked(torch.zeros(3, 2)).shape
        (True, torch.Size([3, 2]))
        >>> Preprocessing("texts", (1024,), embed="words").texts(["play some jazz"]).shape
        torch.Size([1, 1024])
        >>> import io
        >>> from PIL import Image
        >>> Image.new("L", (40, 30), 255).save(file := io.BytesIO(), "PNG")
        >>> Preprocessing("pictures", (1, 28, 28)).pictures([file.getvalue()]).shape
        torch.Size([1, 1, 28, 28])
    """

    kind: Kind
    shape: tuple[int, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    fit: str = "crop"
    ink: str = ""
    embed: str = ""
    columns: TableColumns | None = None

    @classmethod
    def of(cls, config: RunConfig, source: Any) -> Preprocessing:
        """That of a run, by its source.

        Raises:
            ConfigError: the run has tasks that are not made of examples.

        Example:
            >>> from headstart.data import Source, Split
            >>> splits = [Split(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), [c], [6], name=c) for c in ("train", "validation", "test")]
            >>> Preprocessing.of(RunConfig.from_flat({"data": "npz:mine.npz"}), Source("mine", *splits)).kind
            'pictures'
        """
        name = sources.catalogue.named(config.data).partition(":")[0]
        if isinstance(source, sources.TableTasks):
            width = (source.features.shape[1] * (8 if source.packed else 1),)
            return cls("vectors" if source.columns is None else "rows", width, columns=source.columns)
        if not isinstance(source, sources.Source):
            raise ConfigError(f"{config.data} has no examples of its own; adapt in Python, by learner.adapt")
        split, shape = source.train, tuple(source.train.shape)
        mean, std = (None if v is None else tuple(float(f) for f in v) for v in (split.mean, split.std))
        options = config.source_options()
        if split.array.dtype == torch.uint8:
            ink = {"glyphs": "framed", "omniglot": "white", "omniglot-lake": "white"}.get(name, "")
            return cls("pictures", shape, mean or (0.5,), std or (0.5,), fit=options.get("fit", "pad" if ink else "crop"), ink=ink)
        if name == "texts":
            return cls("texts", shape, mean, std, embed=options.get("embed", "words"))
        return cls("vectors", shape, mean, std)

    def pictures(self, contents: Sequence[bytes]) -> Tensor:
        """(n, channels, height, width) bytes of the contents of picture files.

        Raises:
            DataError: one is no picture, or too large.
        """
        return torch.from_numpy(np.stack([self._picture(content) for content in contents]))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, D) vectors of texts."""
        function = _function(self.embed)
        found = torch.as_tensor(np.asarray(function(list(texts)), np.float32))
        return self.checked(found)

    def checked(self, found: Tensor) -> Tensor:
        """The same examples, if they have the shape that the network takes and hold numbers.

        Raises:
            DataError: they do not.
        """
        if tuple(found.shape[1:]) != self.shape:
            raise DataError(
                f"examples have shape {tuple(found.shape[1:])}, but the start takes {self.shape}; give examples like those it knows"
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise DataError("examples hold NaN or infinite values; clean them first")
        return found

    def ready(self, stored: Tensor) -> Tensor:
        """(n, …) floats that the network takes, of examples as they are kept: bytes of pictures, vectors or rows."""
        x = self.checked(stored)
        x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        if self.mean is None or self.std is None:
            return x
        mean, std = (torch.tensor(v).view(1, -1, *[1] * (x.dim() - 2)) for v in (self.mean, self.std))
        return (x - mean) / std

    def _picture(self, content: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        channels, size = self.shape[0], self.shape[-1]
        if self.ink != "framed":
            found = decoded(content, size, channels, self.fit)
            return whitened(found) if self.ink else found
        fine = whitened(decoded(content, 4 * size, channels, self.fit))
        return framed(fine, size)

    def saved(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    @classmethod
    def load(cls, said: Mapping[str, Any], trust: Collection[str] = ()) -> Preprocessing:
        """What :meth:`saved` gave.

        Raises:
            CheckpointError: texts are embedded by a function of someone's own that is not trusted.
        """
        embed = str(said["embed"])
        if embed and embed not in OWN and not embed.startswith("transformers:") and embed not in trust:
            raise CheckpointError(
                f"its texts are embedded by {embed}, and importing runs code: if that is yours, load with trust=[{embed!r}]"
            )
        columns = said["columns"]
        if columns is not None:
            columns = TableColumns(columns["task"], columns["target"], tuple(Feature(**f) for f in columns["features"]))
        tuples = {k: None if said[k] is None else tuple(said[k]) for k in ("shape", "mean", "std")}
        return cls(**{**said, **tuples, "columns": columns})


@functools.lru_cache(maxsize=2)
def _function(embed: str) -> Any:
    """What makes vectors of texts; a language model is loaded once."""
    return embedder(embed)[0]


def decoded(content: bytes, size: int, channels: int, fit: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(channels, size, size) of the content of a picture file.

    Raises:
        DataError: it is no picture, or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return decode(content, size, channels, fit)  # type: ignore[arg-type]
    except Image.DecompressionBombError as error:
        raise DataError("too large a picture: make it smaller") from error
    except UnidentifiedImageError as error:
        raise DataError("not a picture, or of a kind that cannot be read: give a PNG, JPEG, WebP, GIF, BMP or TIFF") from error
    except DataError:
        raise
    except Exception as error:  # a damaged picture can raise almost anything
        raise DataError(f"a picture cannot be read: {error or type(error).__name__}") from error


def whitened(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Ink white on black: a picture with a light border is turned around, and the shade of the paper taken away."""
    border = np.concatenate([picture[:, :1].ravel(), picture[:, -1:].ravel(), picture[:, :, :1].ravel(), picture[:, :, -1:].ravel()])
    paper = float(np.median(border))
    dark, paper = (255.0 - picture, 255 - paper) if paper > 127 else (picture.astype(np.float64), paper)
    return np.asarray((dark - paper).clip(0) * 255 / (255 - paper)).round().astype(np.uint8)


def framed(picture: np.ndarray[Any, np.dtype[np.uint8]], size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(channels, size, size): the ink of a larger white-on-black drawing, scaled into the frame and put into the middle."""
    from PIL import Image

    ink = picture.max(0) > 60
    if not ink.any():
        return np.zeros((len(picture), size, size), np.uint8)
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left) * 28 / FRAME
    x, y, half = (left + right) / 2, (top + bottom) / 2, side / 2
    box = (round(x - half), round(y - half), round(x + half), round(y + half))
    parts = [np.asarray(Image.fromarray(one).crop(box).resize((size, size), Image.Resampling.BOX)) for one in picture]
    return np.stack(parts)
