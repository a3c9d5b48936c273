"""Every reader of files that others made, as a function of bytes; and files to begin from. The suite and ``fuzz/run.py`` share them."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headstart as hs
from headstart import container
from headstart.data.files.archives import read_members, safe_unpickle
from headstart.data.samplers.fixed import EpisodeList
from headstart.data.sources import cifar, mini_imagenet
from headstart.data.sources.texts import by_domain
from headstart.training import checkpoint
from headstart.training.config import RunConfig
from headstart.using import Preprocessing
from headstart.using.reading import read_examples

LARGEST = 2**22
"""Bytes that an archive may unpack to while it is fuzzed."""


@dataclass(frozen=True)
class Reader:
    """Something that reads.

    Args:
        suffix: of the file, by which some readers choose.
        read: what is done with the file; whatever it raises but a HeadstartError is a fault.
        seeds: contents to begin from, which it can read.
    """

    suffix: str
    read: Callable[[Path], Any]
    seeds: Callable[[], list[bytes]]

    def __call__(self, content: bytes, folder: Path) -> str:
        """Reads content as a file of a folder; what was wrong with it, or ""."""
        path = folder / f"input{self.suffix}"
        path.write_bytes(content)
        try:
            self.read(path)
        except hs.HeadstartError as error:
            return str(error)
        return ""


# -- contents to begin from ------------------------------------------------------------------------------------------------


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def _tar(members: dict[str, bytes]) -> bytes:
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def archives() -> list[bytes]:
    members = {"a/one.txt": b"hello" * 9, "two": b""}
    plain = _tar(members)
    return [_zip(members), _zip(members, zipfile.ZIP_STORED), plain, gzip.compress(plain), bz2.compress(plain), lzma.compress(plain)]


def pickles() -> list[bytes]:
    value = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2.5, None, True], "n": np.float64(3), "s": {1, (2, "é")}}
    return [pickle.dumps(value, protocol) for protocol in range(6)]


def cifar_parts() -> list[bytes]:
    part = {b"data": np.zeros((4, 12), np.uint8), b"fine_labels": [0, 1, 2, 3], b"fine_label_names": [b"a", b"b"]}
    return [pickle.dumps(part, protocol) for protocol in (0, 2, 4)]


def mini_parts() -> list[bytes]:
    images = np.zeros((2, 84, 84, 3), np.uint8)
    return [
        pickle.dumps({"image_data": images[:1], "class_dict": {"n01": [0]}}, 2),
        pickle.dumps({"data": images[:1], "labels": [3], "catname2label": {"n01": 3}}, 4),
    ]


def table() -> list[bytes]:
    rows = "".join(f"{task},{i},{i * 0.5},{'ab'[i % 2]},{i % 2}\n" for task in "pqrst" for i in range(4))
    return [f"task,x,z,word,y\n{rows}".encode(), f"task;x;y\n{'a;1;2' * 3}".encode(), "\ufefftask\tx\ty\nä\t1\tn/a\n".encode()]


def parquet() -> list[bytes]:
    import pyarrow
    from pyarrow.parquet import write_table

    found = []
    for compression in ("NONE", "SNAPPY"):
        columns = {"task": list("ppqqrrss"), "x": [1.0, None] * 4, "word": list("abababab"), "y": [0, 1] * 4}
        write_table(pyarrow.table(columns), out := io.BytesIO(), compression=compression)
        found.append(out.getvalue())
    return found


def arrays() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        for x in (np.arange(60.0).reshape(12, 5), np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4, 1)):
            save(out := io.BytesIO(), x=x, y=np.arange(12) % 6)
            found.append(out.getvalue())
    np.savez(
        out := io.BytesIO(), x=np.ones((6, 2), np.float32), y=np.array(list("abcabc"), "S1"), split=np.array(["train", "val", "test"] * 2)
    )
    return [*found, out.getvalue()]


def fsmol() -> list[bytes]:
    task = np.repeat(np.arange(3), 4)
    split = np.array(["train", "valid", "test"])
    np.savez(
        out := io.BytesIO(), ecfp_bits=np.ones((12, 2), np.uint8), mol=np.arange(12), task=task, y=task % 2, task_id=split, split=split
    )
    return [out.getvalue()]


def pictures() -> list[bytes]:
    from PIL import Image

    found = []
    for kind, mode in (
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("JPEG", "RGB"),
        ("BMP", "RGB"),
        ("GIF", "L"),
        ("WEBP", "RGB"),
        ("TIFF", "L"),
    ):
        Image.new(mode, (19, 17)).save(out := io.BytesIO(), kind)
        found.append(out.getvalue())
    return found


def texts() -> list[bytes]:
    rows = "".join(f"words of {label} {i},{label}\n" for label in "abcdef" for i in range(3))
    return [f"text,label\n{rows}".encode(), b'text,label\n"a ""quoted"" one",a\n']


def text_tables() -> list[bytes]:
    parts = {"train": "ab", "val": "cd", "test": "ef"}
    listed = {part: [[f"words of {c} {i}", c] for c in classes for i in range(3)] for part, classes in parts.items()}
    return [json.dumps({**listed, "oos_train": [["what", "oos"]]}).encode(), b'{"train": []}']


def domains() -> list[bytes]:
    return [json.dumps({domain: [domain + "1", domain + "2"] for domain in "abcdef"}).encode()]


def evaluations() -> list[bytes]:
    pair = (0.5, 0.1)
    found = hs.Evaluation("accuracy", 0.5, 0.1, [pair, pair], {"a": 0.5}, {}, 0.1, 0.0, {"episodes": 2}, [0.4, 0.6])
    return [json.dumps(dataclasses.asdict(found)).encode()]


def vectors() -> list[bytes]:
    return [b"x,y,z,label\n1,2,3,a\n4,5,6,b\n", *table()]


def mini_table() -> list[bytes]:
    csv.writer(out := io.StringIO()).writerows([("filename", "label"), ("a.jpg", "n01"), ("b.jpg", "n02")])
    return [out.getvalue().encode()]


@cache
def learner() -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.metasgd(hs.models.mlp(2, 2, (3,)), 1, 0.1)


@cache
def kept() -> dict[str, bytes]:
    """Files of each kind that headstart writes."""
    import tempfile

    own = learner()
    start = hs.TrainedStart(own, Preprocessing("vectors", (2,)))
    x = torch.eye(2).repeat(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        found = {}
        for name, write in {
            "learner": own.save,
            "adapted": own.adapt(x, torch.tensor([0, 1, 0, 1])).save,
            "start": start.save,
            "predictor": hs.Predictor.of(start, x, ["a", "b", "a", "b"], 1).save,
            "checkpoint": lambda p: checkpoint.save(p, own, None, {"iteration": 1, "best": None, "metric": "accuracy", "seconds": 0.0}),
        }.items():
            write(path)
            found[name] = path.read_bytes()
    return found


def headers(name: str) -> list[bytes]:
    """The JSON of a kept file, without its checksum."""
    content = kept()[name]
    size = int.from_bytes(content[:8], "little")
    return [json.dumps(json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["headstart"])["header"]).encode()]


# -- readers ---------------------------------------------------------------------------------------------------------------


def _members(path: Path) -> None:
    for _, file in read_members(path, LARGEST):
        file.read()


def _unpickled(path: Path) -> None:
    with path.open("rb") as file:
        safe_unpickle(file, path.name)


def _cifar(path: Path) -> None:
    """The content as all three files of the unpacked folder."""
    files = [path.with_name(name) for name in cifar.PARTS]
    for file in files:
        file.write_bytes(path.read_bytes())
    cifar._decode(files)


def _any_kept(path: Path) -> None:
    """All that may be asked of one file; each says what it is not."""
    problems = 0
    for load in (hs.load, hs.load_adapted, hs.TrainedStart.load, hs.Predictor.load):
        try:
            load(path)
        except hs.HeadstartError:
            problems += 1
    if problems == 4:
        raise hs.errors.CheckpointError("it is none of them")


def _sealed(name: str, kind: str, load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads JSON as the header of a file whose checksum is right, as whoever makes a file can make that too."""

    def read(path: Path) -> None:
        try:
            header = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return
        if not isinstance(header, dict):
            return
        (whole := path.with_suffix(".whole")).write_bytes(kept()[name])
        container.write(path, kind, header, container.read(whole, kind)[1], finite=False)
        load(path)

    return read


def _episodes(path: Path) -> None:
    from headstart.data import Split

    EpisodeList.load(path, Split(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), ["a", "b"], [4, 4], "test"))


def _support(kind: str, shape: tuple[int, ...]) -> Callable[[Path], Any]:
    return lambda path: read_examples(Preprocessing(kind, shape), (path,), labelled=True)  # type: ignore[arg-type]


def _picture(path: Path) -> None:
    Preprocessing("pictures", (1, 8, 8), (0.5,), (0.5,)).pictures([path.read_bytes()])


READERS: dict[str, Reader] = {
    "archive": Reader(".bin", _members, archives),
    "pickle": Reader(".pkl", _unpickled, pickles),
    "cifar": Reader(".pkl", _cifar, cifar_parts),
    "mini-imagenet": Reader(".pkl", lambda path: mini_imagenet._from_pickle(path)[1](), mini_parts),
    "mini-imagenet-csv": Reader(".csv", mini_imagenet._table, mini_table),
    "csv": Reader(".csv", lambda path: hs.data.load("table", path, task="task", target="y"), table),
    "parquet": Reader(".parquet", lambda path: hs.data.load("table", path, task="task", target="y"), parquet),
    "npz": Reader(".npz", lambda path: hs.data.load("npz", path), arrays),
    "fsmol": Reader(".npz", lambda path: hs.data.load("fsmol", path), fsmol),
    "picture": Reader(".png", _picture, pictures),
    "texts": Reader(".csv", lambda path: hs.data.load("texts", path, embed="words"), texts),
    "texts-json": Reader(".json", lambda path: hs.data.load("texts", path, embed="words"), text_tables),
    "domains": Reader(".json", by_domain, domains),
    "support-npz": Reader(".npz", _support("vectors", (5,)), arrays),
    "support-csv": Reader(".csv", _support("vectors", (3,)), vectors),
    "container": Reader(".safetensors", _any_kept, lambda: list(kept().values())),
    "checkpoint": Reader(".safetensors", lambda path: checkpoint.load(path, learner()), lambda: [kept()["checkpoint"]]),
    "header-learner": Reader(".json", _sealed("learner", "learner", hs.load), lambda: headers("learner")),
    "header-adapted": Reader(".json", _sealed("adapted", "adapted model", hs.load_adapted), lambda: headers("adapted")),
    "header-predictor": Reader(".json", _sealed("predictor", "predictor", hs.Predictor.load), lambda: headers("predictor")),
    "header-checkpoint": Reader(
        ".json", _sealed("checkpoint", checkpoint.CHECKPOINT, lambda path: checkpoint.load(path, learner())), lambda: headers("checkpoint")
    ),
    "config": Reader(".json", RunConfig.load, lambda: [json.dumps(RunConfig().flat()).encode()]),
    "evaluation": Reader(".json", hs.Evaluation.load, evaluations),
    "episodes": Reader(".json", _episodes, lambda: [b'{"episodes": [{"classes": ["a"], "support": [[0, 1]], "query": [[0, 2]]}]}']),
    "metrics": Reader(".jsonl", container.read_lines, lambda: [b'{"step": 1, "loss": 2.0}\n{"step": 2}\n']),
}


def seeds() -> Iterator[tuple[str, bytes]]:
    """All contents to begin from, with their reader."""
    for name, reader in READERS.items():
        for content in reader.seeds():
            yield name, content
