"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 images of 32×32 each, in two standard splits.

CIFAR-100 holds 26 groups of identical images, 17 of them with different labels, and a few stand in two splits. They are kept, as
in the published benchmarks; ``headstart data check`` counts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from headstart.data.files.archives import read_members, safe_unpickle
from headstart.data.files.cache import Arrays, cached, fingerprint
from headstart.data.files.splits import standard
from headstart.data.source import Source, Split
from headstart.errors import DataError

ARCHIVE = "cifar-100-python.tar.gz"
PARTS = ("train", "test", "meta")
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)


def load(path: Path, splits: str) -> Source:
    """CIFAR-100 in few-shot splits.

    Args:
        path: the official archive, or a folder that holds it or the unpacked ``cifar-100-python``.
        splits: ``"cifar-fs"`` or ``"fc100"``.

    Raises:
        DataError: the files are missing, damaged, or not CIFAR-100.
    """
    files = _files(path)
    arrays = cached(f"cifar100-1-{fingerprint(*files)}", lambda: _decode(files), note="decoding CIFAR-100 (once) ...")
    names = [str(n) for n in arrays["names"]]
    place = {name: i for i, name in enumerate(names)}

    images = torch.from_numpy(arrays["images"])

    def split(which: str, classes: list[str]) -> Split:
        rows = torch.cat([torch.arange(600) + 600 * place[c] for c in classes])
        return Split(images, classes, [600] * len(classes), which, MEAN, STD, rows)

    return Source(splits, *(split(which, classes) for which, classes in standard(splits).items()))


def _files(path: Path) -> list[Path]:
    """The archive, or the three files of the unpacked folder."""
    if path.is_file():
        return [path]
    if (path / ARCHIVE).is_file():
        return [path / ARCHIVE]
    for folder in (path, path / "cifar-100-python"):
        found = [folder / name for name in PARTS]
        if all(f.is_file() for f in found):
            return found
    raise DataError(f"{str(path)!r} holds neither {ARCHIVE} nor the folder cifar-100-python with train, test and meta")


def _decode(files: list[Path]) -> Arrays:
    parts: dict[str, Any] = {}
    if len(files) == 1:
        for name, file in read_members(files[0]):
            if Path(name).name in PARTS:  # the archive holds an editor's backup too
                parts[Path(name).name] = safe_unpickle(file, f"{files[0].name}: {name}")
    else:
        for one in files:
            with one.open("rb") as opened:
                parts[one.name] = safe_unpickle(opened, str(one))
    parts = {name: {_text(k): v for k, v in part.items()} if isinstance(part, dict) else {} for name, part in parts.items()}
    try:
        images = np.concatenate([np.asarray(parts[p]["data"], np.uint8) for p in ("train", "test")])
        labels = np.concatenate([np.asarray(parts[p]["fine_labels"]) for p in ("train", "test")])
        names = [_text(n) for n in parts["meta"]["fine_label_names"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{files[0]} is not CIFAR-100 in its python form ({error!r}); fetch {ARCHIVE} again") from error
    if images.shape != (60000, 3072) or np.bincount(labels, minlength=100).tolist() != [600] * 100 or len(names) != 100:
        raise DataError(f"{files[0]} holds {images.shape} pixels in {len(names)} classes; CIFAR-100 has (60000, 3072) in 100, 600 each")
    order = np.argsort(labels, kind="stable")
    return {"images": images[order].reshape(-1, 3, 32, 32), "names": np.array(names)}


def _text(value: Any) -> str:
    """Text, whichever Python wrote the pickle."""
    return value.decode() if isinstance(value, bytes) else str(value)
