"""The data source ``npz:PATH``: arrays in one NumPy archive.

``x``: (n, …) examples. Where they are more than 256 MB they are not read but mapped, if the archive is not compressed (``np.savez``), and
    the floats among them are 32-bit: they need no memory of their own, and several processes share what is read.
     Unsigned bytes are pictures: (n, height, width), (n, height, width, channels) or (n, channels, height, width).
    Channels are the axis of length 1, 3 or 4; where that leaves a doubt, a further entry ``layout``, "HWC" or "CHW", decides. Floats
    of any shape are standardised by the training classes, and have channels first if they are pictures.
``y``: (n,) labels, whole numbers or text.
``split``: optional, (n,) "train", "validation" (or "val", "valid") or "test", the same for all examples of a class. Or else
    ``train_classes``, ``validation_classes`` and ``test_classes``: labels. Validation may be missing, and is taken from training
    then. With neither, whole classes are split by 64/16/20 %.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.data.files.mapped import mapped, of_archive, stretches
from headstart.data.source import Source
from headstart.data.sources.splitting import SHARES, SPELLINGS, Labelled, assemble, some, warn
from headstart.errors import DataError

CHANNELS = (1, 3, 4)
LISTS = {f"{part}_classes": part for part in SHARES}
KEYS = ("x", "y", "layout", "split", *LISTS)


def load(path: Path, *, seed: int = 0, standardise: bool = True) -> Source:
    """The source in an archive of arrays; the module's text says which.

    Args:
        path: the ``.npz`` file.
        seed: of the choice of classes for each split, where the file does not make it.
        standardise: whether floats are standardised by the training classes: vectors by feature, pictures by channel.

    Raises:
        DataError: the file is damaged, an array is missing or not what it should be, or there are too few classes.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "numbers.npz")
        >>> np.savez(file, x=np.random.rand(60, 7), y=np.arange(60) % 6)
        >>> print(str(load(file)).partition(": ")[2])
        2 train classes (20 examples), 2 validation classes (20 examples), 2 test classes (20 examples)
    """
    source = f"npz:{path}"
    arrays = _read(path, source)
    for key in ("x", "y"):
        if key not in arrays:
            raise DataError(f"{source}: the array {key!r} is missing; there are {some(arrays) or 'none'}; name examples x and labels y")
    unused = [key for key in arrays if key not in KEYS]
    warn(source, "arrays that are not used", unused, f"rename them, if they should be one of {', '.join(KEYS)}")
    x, labels = arrays["x"], _texts(arrays["y"], "y", source)
    if x.ndim == 0 or len(x) != len(labels):
        raise DataError(f"{source}: x has shape {x.shape}, but y holds {len(labels)} labels; give each example one")
    examples = _examples(x, str(arrays["layout"]) if "layout" in arrays else None, source)
    given = _given(arrays, labels, source)
    left_out = sorted(set(labels) - set(given)) if given else []
    warn(source, "classes left out that no split lists", left_out, "add them to train_classes, validation_classes or test_classes")
    classes = [label if not given or label in given else None for label in labels]
    names = [f"x[{i}]" for i in range(len(x))]
    pictures = examples.dtype == np.uint8
    digests = [hashlib.sha256(one.tobytes()).hexdigest() for part in stretches(examples) for one in part] if pictures else None
    return assemble(Labelled(source, examples, classes, names, digests, "pictures" if pictures else "examples", standardise), given, seed)


def _read(path: Path, source: str) -> dict[str, NDArray[Any]]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{source}: this is no .npz archive, or a damaged one; save x and y together with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            large = {key: of_archive(path, key) for key in file.files}
            return {key: file[key] if array is None else array for key, array in large.items()}
    except Exception as error:  # a damaged archive can raise almost anything
        if "allow_pickle" in str(error):
            raise DataError(f"{source}: an array holds Python objects, which could run code; save numbers or text") from error
        raise DataError(f"{source}: the archive is damaged ({error}); save it again with numpy.savez") from error


def _texts(array: NDArray[Any], key: str, source: str) -> list[str]:
    if array.dtype.kind == "f" and bool((array == np.floor(array)).all()):
        array = array.astype(np.int64)  # 1.0 is the class 1
    if array.ndim != 1 or array.dtype.kind not in "biuUS":
        raise DataError(f"{source}: {key} has shape {array.shape} and type {array.dtype}; it must be (n,) whole numbers or text")
    return [str(value) for value in (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array)]


def _examples(x: NDArray[Any], layout: str | None, source: str) -> NDArray[Any]:
    """Bytes as (n, channels, height, width), or 32-bit floats."""
    if layout not in (None, "HWC", "CHW"):
        raise DataError(f'{source}: layout={layout!r}; it must be "HWC" or "CHW"')
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            floats = x.astype(np.float32, copy=False)
        bad = np.flatnonzero(np.concatenate([~np.isfinite(part).reshape(len(part), -1).all(1) for part in stretches(floats)] or [[]]))
        if len(bad):
            raise DataError(
                f"{source}: {len(bad)} examples hold NaN, infinite or too large values: {some(f'x[{i}]' for i in bad)}; clean them first"
            )
        return _channels_first(floats, layout, source) if floats.ndim == 4 else floats
    if x.dtype != np.uint8:
        raise DataError(f"{source}: x has type {x.dtype}; save pictures as uint8 from 0 to 255, and other examples as float32")
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise DataError(f"{source}: x has shape {x.shape} and type uint8, so it should be pictures; save other examples as float32")
    return _channels_first(x, layout, source)


def _channels_first(x: NDArray[Any], layout: str | None, source: str) -> NDArray[Any]:
    """(n, channels, height, width) of pictures in either order; of numbers that are no pictures, as they are."""
    if layout is None:
        fits = [name for name, axis in (("CHW", 1), ("HWC", 3)) if x.shape[axis] in CHANNELS]
        if not fits and x.dtype != np.uint8:
            return x
        if len(fits) != 1:
            which = "the second and the last axis both" if fits else "no axis"
            raise DataError(
                f'{source}: x has shape {x.shape}, and {which} could be channels (1, 3 or 4); add layout="HWC" or layout="CHW" to the file'
            )
        layout = fits[0]
    if layout == "CHW":
        return x
    first = np.moveaxis(x, 3, 1)
    return first if mapped(x) is not None else np.ascontiguousarray(first)  # what lies in a file stays there, in its order


def _given(arrays: dict[str, NDArray[Any]], labels: list[str], source: str) -> dict[str, str] | None:
    """The split of each class, if the file says so."""
    lists = [key for key in LISTS if key in arrays]
    if "split" in arrays and lists:
        raise DataError(f"{source}: there are both split and {', '.join(lists)}; keep one")
    if "split" in arrays:
        pairs = _by_example(_texts(arrays["split"], "split", source), labels, source)
    elif lists:
        pairs = [(label, LISTS[key]) for key in lists for label in _texts(arrays[key], key, source)]
    else:
        return None
    given: dict[str, str] = {}
    for label, part in pairs:
        if given.setdefault(label, part) != part:
            raise DataError(
                f"{source}: class {label!r} is in both {given[label]} and {part}; the splits must hold different classes — leave"
                " split out, and whole classes are held out"
            )
    absent = sorted(set(given) - set(labels))
    if absent:
        raise DataError(f"{source}: no example has a class that is listed for a split ({len(absent)}): {some(absent)}; correct the lists")
    missing = {"train", "test"} - set(given.values())
    if missing:
        raise DataError(f"{source}: no class is given for {' and '.join(sorted(missing))}; give some, or leave the splits out")
    return given


def _by_example(splits: list[str], labels: list[str], source: str) -> list[tuple[str, str]]:
    if len(splits) != len(labels):
        raise DataError(f"{source}: split holds {len(splits)} names for {len(labels)} examples; give each one")
    unknown = sorted(set(splits) - set(SPELLINGS))
    if unknown:
        raise DataError(f"{source}: split holds {some(map(repr, unknown))}; use 'train', 'validation' or 'test'")
    return list({(label, SPELLINGS[split]): None for label, split in zip(labels, splits, strict=True)})
