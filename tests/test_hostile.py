"""Whatever comes in, only HeadstartError comes out: settings of any type, command lines of any words, files of any bytes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import inspect
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headstart as hs
from headstart.cli.entry import parse
from headstart.planning.config import PlanConfig, seconds_of
from headstart.registry import parse_options
from headstart.training.config import LearnerConfig, RunConfig, TrainConfig
from readers import READERS

USUAL: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# The default run draws the same examples every time; `pytest -m slow` draws many, and new ones.
QUICK = lambda n: settings(max_examples=n, derandomize=True, database=None, **USUAL)  # noqa: E731
DEEP = lambda n: settings(max_examples=n, print_blob=True, **USUAL)  # noqa: E731

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 7)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.complex_numbers()
)
sensible = st.sampled_from(["auto", "head", "all", "last:2", "*.bias", "", "0.1,0.2", "head.*=0.1,*=0.01", "a=1", "None", 0.1, 0.01, 1, 5])
anything = st.one_of(
    sensible,
    scalars,
    st.lists(scalars, max_size=3),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.dictionaries(st.text(max_size=4), scalars, max_size=2),
    st.just(torch.ones(2)),
    st.just(object()),
)
PARTS = [hs.GradientDescent, hs.Adam, hs.MetaSGD, hs.LSLR, hs.Ridge, hs.Unrolled, hs.Recursive, hs.Implicit, hs.FirstOrder, hs.SampleSpace]
PARTS += [hs.Reptile, hs.MetaCurvature, hs.SVM, hs.Zeros, hs.Centroids, hs.RefinedPrototypes]
PARTS += [hs.SharedVector, hs.Prototypes, hs.ModelStart, TrainConfig, PlanConfig, LearnerConfig, RunConfig]
PRESETS = [hs.anil, hs.maml, hs.boil, hs.fomaml, hs.imaml, hs.metasgd, hs.mamlpp, hs.protonet, hs.protomaml, hs.r2d2]
PRESETS += [hs.reptile, hs.metacurvature, hs.metaoptnet, hs.cavia, hs.anil_cosine, hs.anil_latent, hs.metabaseline, hs.soft_kmeans]
MODEL = hs.models.mlp(2, 2, (3,))


def only_refused(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call gives; None where it is refused with a message."""
    try:
        return call(*args, **options)
    except hs.HeadstartError as error:
        assert len(str(error)) > 15
        return None


def chosen(draw: Any, names: list[str], values: Any = anything) -> dict[str, Any]:
    return {name: draw(values) for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True))} if names else {}


def settings_of_any_type(data: Any) -> None:
    kind = data.draw(st.sampled_from(PARTS))
    options = chosen(data.draw, list(inspect.signature(kind).parameters))
    only_refused(kind, **options)
    preset = data.draw(st.sampled_from(PRESETS))
    names = [
        p.name for p in inspect.signature(preset).parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in ("model", "steps")
    ]
    only_refused(
        preset, MODEL, **chosen(data.draw, [*dict.fromkeys(names if preset in (hs.fomaml, hs.reptile) else [*names, "hypergradient"])])
    )


def flat_settings(data: Any) -> None:
    known = list(RunConfig().flat())
    json_like = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6), lambda s: st.lists(s, max_size=3), max_leaves=4
    )
    flat = chosen(data.draw, known, sensible | json_like)
    config = only_refused(RunConfig.from_flat, flat)
    if config is not None:  # what is taken comes back from a file as it is
        text = json.dumps(config.flat())
        assert RunConfig.from_flat(json.loads(text)) == config
        assert all(math.isfinite(v) for v in config.flat().values() if isinstance(v, float))


def options_as_text(data: Any) -> None:
    text = data.draw(st.text(max_size=20) | st.text("=,[](){}'\"ab1. \\", max_size=16))
    only_refused(parse_options, text)
    only_refused(seconds_of, text)
    only_refused(hs.Partition, MODEL, text)
    only_refused(LearnerConfig, lr=text)
    only_refused(hs.load, text or "x")
    only_refused(hs.load_adapted, text or "x")
    only_refused(hs.TrainedStart.load, text or "x")
    only_refused(hs.data.load, "npz:" + text)


def tensors(draw: Any) -> Any:
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    kind = draw(st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64]))
    value = torch.full(shape, draw(st.sampled_from([0, 1, 2])), dtype=kind)
    return value * float("nan") if draw(st.integers(0, 9)) == 0 and kind.is_floating_point else value


def tasks_of_any_shape(data: Any) -> None:
    given_tensors = [tensors(data.draw) if data.draw(st.integers(0, 5)) else data.draw(anything) for _ in range(4)]
    if data.draw(st.booleans()):  # often nearly right
        good = [torch.zeros(2, 4, 2), torch.tensor([[0, 1, 0, 1]] * 2), torch.zeros(2, 3, 2), torch.zeros(2, 3, dtype=torch.int64)]
        at = data.draw(st.integers(0, 3))
        given_tensors = [*good[:at], given_tensors[at], *good[at + 1 :]]
    tasks = only_refused(hs.TaskBatch, *given_tensors)
    if tasks is not None:
        learner = hs.anil(MODEL, steps=1, lr=0.1)
        only_refused(learner.meta_gradient, tasks)


WORDS = [
    "train",
    "evaluate",
    "adapt",
    "predict",
    "export",
    "plan",
    "compare",
    "verify",
    "data",
    "reproduce",
    "list",
    "--resume",
    "--out",
    "x",
]
OPTIONS = [f"--{f.name.replace('_', '-')}" for c in (TrainConfig, LearnerConfig, RunConfig) for f in dataclasses.fields(c)]


def command_lines(data: Any) -> None:
    words = data.draw(
        st.lists(
            st.sampled_from(WORDS)
            | st.sampled_from(OPTIONS)
            | st.text(max_size=5)
            | st.sampled_from(["1", "-1", "nan", "1e999", "0.1", "--config"]),
            max_size=5,
        )
    )
    words = [data.draw(st.sampled_from(WORDS)), *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        only_refused(parse, words)


PROPERTIES = {
    f.__name__: (f, n)
    for f, n in ((settings_of_any_type, 60), (flat_settings, 60), (options_as_text, 40), (tasks_of_any_shape, 40), (command_lines, 6))
}


@pytest.mark.parametrize("name", PROPERTIES)
def test_only_a_headstart_error_leaves(name: str) -> None:
    check, count = PROPERTIES[name]
    QUICK(count)(given(st.data())(check))()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROPERTIES)
def test_only_a_headstart_error_leaves_however_long_one_tries(name: str) -> None:
    check, count = PROPERTIES[name]
    DEEP(25 * count)(given(st.data())(check))()


# -- files -----------------------------------------------------------------------------------------------------------------


@st.composite
def changed(draw: Any, contents: list[bytes]) -> bytes:
    """A good file with some bytes changed, cut out, doubled or put in; or no such file at all."""
    content = bytearray(draw(st.sampled_from(contents)))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "set", "insert", "drop", "double"]))
        if how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at : at + draw(st.integers(1, 8))]
        elif how == "double":
            content[at:at] = content[at : at + 16]
        elif how == "insert":
            content[at:at] = draw(
                st.binary(min_size=1, max_size=6) | st.sampled_from([b"{", b"[" * 2000, b"null", b"-1", b"1e999", b"\xff\xfe", b'"'])
            )
        elif content:
            content[at] = content[at] ^ (1 << draw(st.integers(0, 7))) if how == "flip" else draw(st.sampled_from([0, 1, 127, 128, 255]))
    return bytes(content)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def quietly() -> Iterator[Path]:
    import warnings

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Path(folder)


def read_changed(name: str, profile: Any) -> None:
    reader = READERS[name]
    with quietly() as folder:

        def check(content: bytes) -> None:
            reader(content, folder)

        profile(given(changed(reader.seeds()))(check))()


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused(name: str) -> None:
    read_changed(name, QUICK(20))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_read_or_refused_however_long_one_tries(name: str) -> None:
    read_changed(name, DEEP(400))


@pytest.mark.parametrize("name", READERS)
def test_the_files_to_begin_from_are_good(name: str) -> None:
    """Of each reader one at least is read, else the changed ones would all be refused for one and the same reason."""
    with quietly() as folder:
        problems = [READERS[name](content, folder) for content in READERS[name].seeds()]
    assert "" in problems or name in ("cifar",), problems  # which takes 60000 pictures alone


FINDINGS = {
    "a name in a zip that is empty": (
        "archive",
        "UEsDBBQAAAAIAFkRfV313JN/CgAAAC0AAAAJAAAAYS9vbmUudHh0y0jNycnPIJIAAFBLAwQUAAAACABZEX1dAAAAAAIAAAAAAAAAAwAAAHR3bwMAUEsBAhQDFAAAAAgAWRF9XfXck38K"
        "AAAALQAAAAkAAAAAAAAAAAAAAIABAAABAAAAb25lLnR4dFBLAQIUAxQAAAAIAFkRfV0AAAAAAgAAAAAAAAADAAAAAAAAAAAAAACAATMAAAB0d29QSwUGAAAAAAIAAgBoAAAAVAAAAAAA",
    ),
}
"""What fuzzing has found: a reader and the file, in base 64."""


@pytest.mark.parametrize("name", FINDINGS)
def test_what_was_found_by_fuzzing_is_refused(name: str, tmp_path: Path) -> None:
    reader, content = FINDINGS[name]
    assert READERS[reader](base64.b64decode(content), tmp_path)
