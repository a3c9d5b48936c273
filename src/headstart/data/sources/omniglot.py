"""Omniglot: 1623 handwritten characters of 50 alphabets, drawn once each by 20 people (Lake et al., Science 2015)."""

from __future__ import annotations

import io
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from headstart.data.files.archives import read_members
from headstart.data.files.cache import Arrays, cached, fingerprint
from headstart.data.files.splits import standard
from headstart.data.source import Source, Split
from headstart.errors import DataError

FILES = ("images_background.zip", "images_evaluation.zip")
SIZE = 28
MEAN, STD = (0.08,), (0.23,)


def load(path: Path, splits: str = "vinyals", rotations: bool = True, rotated_test: bool = False) -> Source:
    """Omniglot, 28×28, ink white on black.

    Args:
        path: the folder of ``images_background.zip`` and ``images_evaluation.zip``.
        splits: ``"vinyals"``: 1028/172/423 characters, whole alphabets but for Gurmukhi; ``"random"``: 1100/100/423 characters whatever
            their alphabet, as in MAML (Finn et al., 2017; theirs followed the order of a directory, so no list of it exists) and what
            follows it; ``"lake"``: the background alphabets for training (the last five of them for validation), the evaluation
            alphabets for test.
        rotations: in training, characters turned by 90, 180 and 270 degrees are further classes, as in papers.
        rotated_test: they are in validation and test too (1692 test classes of Vinyals' split), as in the results of matching and
            prototypical networks (Vinyals et al., 2016; Snell et al., 2017). Episodes have fewer characters of one alphabet and are easier.

    Raises:
        DataError: a file is missing or damaged, or not Omniglot; or ``splits`` is none of the three.
    """
    files = [path / name for name in FILES]
    for file in files:
        if not file.is_file():
            raise DataError(f"{str(path)!r} lacks {file.name}; Omniglot is the two files {' and '.join(FILES)}")
    arrays = cached(f"omniglot-2-{fingerprint(*files)}", lambda: _decode(files), note="decoding Omniglot (about 15 seconds, once) ...")
    names, images = [str(n) for n in arrays["names"]], arrays["images"]
    place = {name: i for i, name in enumerate(names)}
    ways_to_split = {"vinyals": lambda: standard("omniglot"), "random": lambda: _random(names), "lake": lambda: _lake(names)}
    if splits not in ways_to_split:
        raise DataError(f"splits={splits!r} is not a division of Omniglot; there are {', '.join(ways_to_split)}")
    chosen = ways_to_split[splits]()

    pictures = torch.from_numpy(images.reshape(-1, 1, SIZE, SIZE))  # (turn, character, drawing)

    def split(which: str, classes: list[str]) -> Split:
        first = torch.tensor([place[c] for c in classes])
        if rotations if which == "train" else rotated_test:
            first = torch.cat([first + turn * len(names) for turn in range(4)])
            classes = [f"{c}{turn}" for turn in ("", " turned 90", " turned 180", " turned 270") for c in classes]
        rows = (first[:, None] * 20 + torch.arange(20)).reshape(-1)
        return Split(pictures, classes, [20] * len(classes), which, MEAN, STD, rows)

    return Source(f"omniglot ({splits})", *(split(which, classes) for which, classes in chosen.items()))


def _random(names: list[str]) -> dict[str, list[str]]:
    shuffled = random.Random(1).sample(names, len(names))
    return {"train": shuffled[:1100], "validation": shuffled[1100:1200], "test": shuffled[1200:]}


def _lake(names: list[str]) -> dict[str, list[str]]:
    background = [n for n in names if n.startswith("images_background/")]
    alphabets = sorted({n.split("/")[1] for n in background})
    held = set(alphabets[-5:])
    return {
        "train": [n for n in background if n.split("/")[1] not in held],
        "validation": [n for n in background if n.split("/")[1] in held],
        "test": [n for n in names if not n.startswith("images_background/")],
    }


def _decode(files: list[Path]) -> Arrays:
    from PIL import Image

    classes: dict[str, dict[str, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]] = defaultdict(dict)
    for file in files:
        for name, content in read_members(file):
            if not name.endswith(".png"):
                continue
            try:
                with Image.open(io.BytesIO(content.read())) as image:
                    # The files are one bit, ink black; averaged down to grey, ink white.
                    grey = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
            except OSError as error:
                raise DataError(f"{file.name}: the picture {name} is damaged ({error}); fetch the file again") from error
            classes[name.rsplit("/", 1)[0]][name] = 255 - np.asarray(grey, np.uint8)
    wrong = [name for name, drawings in classes.items() if len(drawings) != 20]
    if len(classes) != 1623 or wrong:
        detail = f"; {wrong[0]} has {len(classes[wrong[0]])} drawings" if wrong else ""
        raise DataError(f"{files[0].parent}: {len(classes)} characters{detail}; Omniglot has 1623 with 20 each")
    names = sorted(classes)
    images = np.stack([np.stack([classes[n][k] for k in sorted(classes[n])]) for n in names])
    turned = np.stack([np.rot90(images, turn, (-2, -1)) for turn in range(4)])  # kept turned, so that splits stay mapped
    return {"images": turned, "names": np.array(names)}
