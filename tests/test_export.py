"""ONNX graphs give torch's numbers, for every size and number of steps, or are not written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import ConfigError, ExportError, MethodError

onnx = pytest.importorskip("onnx", reason="needs pip install 'headstart[onnx]'")
pytest.importorskip("onnxruntime", reason="needs pip install 'headstart[onnx]'")
pytest.importorskip("onnxscript", reason="needs pip install 'headstart[onnx]'")
from headstart.export import body, export_learner_parts, files  # noqa: E402

SHAPES: dict[str, tuple[int, ...]] = {"mlp": (6,), "conv4": (3, 16, 16), "resnet12": (3, 16, 16)}


def net(name: str, ways: int = 5) -> nn.Module:
    """A small net, whose running statistics are those of its examples, so that its features are of about one."""
    torch.manual_seed(0)
    made: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: hs.models.mlp(6, ways, (8,)),
        "conv4": lambda: hs.models.conv4(3, ways, 16, 8),
        "resnet12": lambda: hs.models.resnet12(3, ways, (4, 8, 8, 8)),
    }
    model = made[name]().train()
    with torch.no_grad():
        for _ in range(30):
            model(torch.randn(32, *SHAPES[name]))
    return model


def task(shape: tuple[int, ...], ways: int, shots: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy copies of one example for each class."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    of_class, y = draw(ways, *shape), torch.arange(ways).repeat(shots)
    x, which = of_class[y] + draw(len(y), *shape) / 2, torch.arange(queries) % ways
    return x, y, of_class[which] + draw(queries, *shape) / 2


@dataclass
class Exported:
    learner: hs.MetaLearner
    path: Path
    shape: tuple[int, ...]
    lr: float | None

    def __post_init__(self) -> None:
        self.run = files.runner(self.path)

    def __call__(self, x: Tensor, y: Tensor, q: Tensor, ways: int, steps: int = 0, lr: float | None = None) -> list[np.ndarray[Any, Any]]:
        inputs: dict[str, Any] = {"support_x": x, "support_y": y, "query_x": q, "ways": np.int64(ways)}
        if self.lr is not None:
            inputs |= {"steps": np.int64(steps), "lr": np.float32(lr or self.lr)}
        return self.run(inputs)

    def agrees(self, ways: int, steps: int | None, shots: int = 3, queries: int = 9) -> None:
        x, y, q = task(self.shape, ways, shots, queries)
        probabilities = self(x, y, q, ways, steps or 0)[0]
        expected = self.learner.adapt(x, y, steps).predict_proba(q).numpy()[:, :ways]
        assert probabilities.shape == (queries, ways)
        np.testing.assert_allclose(probabilities, expected, atol=1e-4, rtol=0)
        # Probabilities that are all alike would agree whatever the graph did.
        assert steps == 0 or expected.max() - expected.min() > 0.01


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Learners by name, each exported once for all tests."""
    torch.set_num_threads(1)
    folder, kept = tmp_path_factory.mktemp("onnx"), dict[str, Exported]()
    made: dict[str, tuple[str, Callable[[], hs.MetaLearner], float | None]] = {
        "mlp prototypes": ("mlp", lambda: hs.protomaml(net("mlp"), 5, 0.02), 0.02),
        "conv4 prototypes": ("conv4", lambda: hs.protomaml(net("conv4"), 5, 0.01, 0.05), 0.01),
        "resnet12 prototypes": ("resnet12", lambda: hs.protomaml(net("resnet12"), 5, 0.01), 0.01),
        "mlp shared": ("mlp", lambda: hs.anil(net("mlp", 20), 5, 1.0, 0.01, start=hs.SharedVector()), 1.0),
        "conv4 model": ("conv4", lambda: hs.anil(net("conv4", 20), 5, 0.1, 0.01), 0.1),
        "mlp ridge": ("mlp", lambda: hs.r2d2(net("mlp", 20)), None),
    }

    def get(name: str) -> Exported:
        if name not in kept:
            kind, make, lr = made[name]
            learner, path = make(), folder / f"{name.replace(' ', '-')}.onnx"
            hs.export_learner_onnx(learner, path, torch.randn(3, *SHAPES[kind]))
            kept[name] = Exported(learner, path, SHAPES[kind], lr)
        return kept[name]

    return get


# -- a learner -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 5, 50])
@pytest.mark.parametrize("ways", [2, 5, 20])
@pytest.mark.parametrize("name", ["mlp prototypes", "conv4 prototypes", "resnet12 prototypes", "mlp shared", "conv4 model"])
def test_a_learner_agrees_with_torch_for_any_ways_and_steps(exported: Callable[[str], Exported], name: str, ways: int, steps: int) -> None:
    exported(name).agrees(ways, steps)


@pytest.mark.parametrize(("ways", "shots", "queries"), [(2, 1, 1), (5, 1, 30), (20, 4, 3)])
@pytest.mark.parametrize("name", ["mlp prototypes", "mlp shared", "mlp ridge"])
def test_support_and_query_sets_may_have_any_size(
    exported: Callable[[str], Exported], name: str, ways: int, shots: int, queries: int
) -> None:
    own = exported(name)
    own.agrees(ways, None if own.lr is None else 5, shots, queries)


@pytest.mark.parametrize("name", ["mlp prototypes", "mlp shared", "conv4 model", "mlp ridge"])
def test_a_class_without_examples_gets_nothing_and_a_blank_label_counts_for_nothing(exported: Callable[[str], Exported], name: str) -> None:
    own = exported(name)
    x, y, q = task(own.shape, 4, 3, 5)
    y[y == 2] = -100
    expected = own.learner.adapt(x, y, None if own.lr is None else 5).predict_proba(q).numpy()
    found = own(x, y, q, 6, 5)[0]
    assert (found[:, [2, 4, 5]] == 0).all()
    np.testing.assert_allclose(found[:, :4], expected[:, :4], atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    # A label above the ways is as good as none.
    np.testing.assert_allclose(own(x, y.where(y >= 0, 9), q, 6, 5)[0], found, atol=1e-6)


def test_more_ways_than_the_model_has_outputs(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """Rows of a shared vector are as many as the task needs; a model's own are what they are."""
    few, many = net("mlp", 3), net("mlp", 8)
    with torch.no_grad():
        for a, b in zip(few[:-1].parameters(), many[:-1].parameters(), strict=True):
            b.copy_(a)
        many[-1].weight.copy_(few[-1].weight.mean(0).expand(8, -1))
        many[-1].bias.copy_(few[-1].bias.mean().expand(8))
    learner, wider = (hs.anil(m, 5, 0.5, start=hs.SharedVector()) for m in (few, many))
    own = Exported(wider, hs.export_learner_onnx(learner, tmp_path / "few.onnx", torch.randn(2, 6)), (6,), 0.5)
    own.agrees(8, 5)


def test_the_support_loss_of_every_step_and_a_step_size_of_ones_own(exported: Callable[[str], Exported]) -> None:
    own = exported("mlp prototypes")
    x, y, q = task(own.shape, 5, 3, 4)
    probabilities, losses = own(x, y, q, 5, 7, lr=0.05)
    model = hs.protomaml(own.learner.model, 7, 0.05)
    expected = [nn.functional.nll_loss(model.adapt(x, y, m).predict_proba(x).log(), y).item() for m in range(8)]
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    np.testing.assert_allclose(probabilities, model.adapt(x, y).predict_proba(q).numpy(), atol=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", [lambda m: hs.protomaml(m, 20, 1e-4), hs.r2d2])
def test_a_graph_loses_no_digits_on_large_features(make: Callable[[nn.Module], hs.MetaLearner], tmp_path: Path) -> None:
    """Far from the origin the products of features are thousands of times their differences: torch in double precision is the measure."""
    x, y, q = task((500,), 5, 3, 10)
    x, q = 3 + x / 10, 3 + q / 10
    learner = make(nn.Sequential(nn.Identity(), nn.Linear(500, 5)))
    own = Exported(
        learner, hs.export_learner_onnx(learner, tmp_path / "far.onnx", x), (500,), 1e-4 if "steps" in repr(learner.inner) else None
    )
    exact = make(nn.Sequential(nn.Identity(), nn.Linear(500, 5)).double())
    expected = exact.adapt(x.double(), y).predict_proba(q.double()).numpy()
    np.testing.assert_allclose(own(x, y, q, 5, 20)[0], expected, atol=2e-5, rtol=0)
    assert expected.max() - expected.min() > 0.05


def test_a_graph_may_differ_by_more_only_where_single_precision_does() -> None:
    expected = torch.tensor([0.5])
    assert files.Case({}, expected).allowed(0.005) == files.TOLERANCE
    assert files.Case({}, expected, lambda: expected.double()).allowed(0.005) == files.TOLERANCE
    assert files.Case({}, expected, lambda: expected.double() + 0.0004).allowed(0.005) == pytest.approx(0.004, rel=1e-3)
    assert files.Case({}, expected, lambda: expected.double() + 0.01).allowed(0.005) == files.MOST
    never = files.Case({}, expected, lambda: pytest.fail("asked for where it cannot help"))
    assert never.allowed(0.0) == never.allowed(1.0) == never.allowed(float("nan")) == files.TOLERANCE


def test_a_head_without_bias(tmp_path: Path) -> None:
    model = net("mlp")
    model[-1] = nn.Linear(8, 5, bias=False)
    for name, learner in {"descent": hs.anil(model, 3, 0.5), "ridge": hs.r2d2(model)}.items():
        path = hs.export_learner_onnx(learner, tmp_path / f"{name}.onnx", torch.randn(1, 6))
        Exported(learner, path, (6,), 0.5 if name == "descent" else None).agrees(4, 3 if name == "descent" else None)


def test_a_graph_is_one_file_of_standard_operators_with_its_metadata(exported: Callable[[str], Exported]) -> None:
    own = exported("conv4 prototypes")
    model = onnx.load(own.path, load_external_data=False)
    assert {(o.domain, o.version <= 20) for o in model.opset_import} == {("", True)}
    assert not model.functions
    assert not any(t.external_data for t in model.graph.initializer)
    assert not [f for f in own.path.parent.iterdir() if f.suffix != ".onnx"]
    said = json.loads({p.key: p.value for p in model.metadata_props}["headstart"])
    assert said == {"version": hs.__version__, "kind": "classes", "start": "prototypes", "steps": 5, "lr": 0.01, "l2": 0.05}
    assert [i.name for i in model.graph.input] == ["support_x", "support_y", "query_x", "steps", "lr", "ways"]
    assert b"site-packages" not in own.path.read_bytes(), "no folders of the machine it was made on"


def test_a_learner_is_left_as_it_was(tmp_path: Path) -> None:
    model = net("conv4")
    before, learner = {k: v.clone() for k, v in model.state_dict().items()}, hs.protomaml(model, 1, 0.01)
    state = torch.get_rng_state()
    hs.export_learner_onnx(learner, tmp_path / "learner.onnx", torch.randn(2, 3, 16, 16, generator=torch.Generator()))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.body[0][0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: hs.protomaml(m, 5, 0.02, 0.05),
        lambda m: hs.anil(m, 5, 0.5, start=hs.SharedVector()),
        lambda m: hs.anil(m.double(), 5, 0.5, 0.01),
        hs.r2d2,
    ],
)
def test_the_two_graphs_agree_with_torch(make: Callable[[nn.Module], hs.MetaLearner]) -> None:
    """After every step, for fewer ways than the head has rows."""
    learner = make(hs.models.mlp(6, 7, (8,)))
    x, q = (torch.randn(n, 6, dtype=next(learner.model.parameters()).dtype) for n in (9, 4))
    y, parts = torch.arange(3).repeat(3), export_learner_parts(learner, x[:3])
    body, adaptation = files.runner(parts.body), files.runner(parts.adaptation)
    (features,) = body({"x": torch.cat([x, q])})
    for steps in (0, 1, 7):
        numbers = {} if parts.lr is None else {"steps": np.int64(steps), "lr": np.float32(parts.lr)}
        (found,) = adaptation({"features": features, "support_y": y, "ways": np.int64(3), **numbers})
        assert len(found) == (2 if parts.lr is None else steps + 1)
        after = {None: found[1]} if parts.lr is None else dict(enumerate(found))
        for m, log_p in after.items():
            own = torch.from_numpy(log_p[:, :3]).softmax(-1)
            expected = learner.adapt(x, y, m).predict_proba(q)[:, :3]
            torch.testing.assert_close(own, expected.float(), atol=1e-5, rtol=0)
            assert m == 0 or expected.max() - expected.min() > 0.01
    assert parts.outputs == (7 if learner.start.head == "own" else None)


# -- a task --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "adapt"), [("mlp", "all"), ("conv4", "head"), ("resnet12", "last:2")])
def test_an_adapted_model_agrees_with_torch_for_any_n(name: str, adapt: str, tmp_path: Path) -> None:
    x, y, q = task(SHAPES[name], 4, 2, 9)
    adapted = hs.anil(net(name), 3, 0.1, adapt=adapt).adapt(x, y)
    path = hs.export_onnx(adapted, tmp_path / "task.onnx", x[:1], ["ant", "bee", "cat", "dog", "elk"])
    run = files.runner(path)
    for n in (1, 2, 9):
        (found,) = run({"x": q[:n]})
        np.testing.assert_allclose(found, adapted.predict_proba(q[:n]).numpy(), atol=1e-4, rtol=0)
        assert found.shape == (n, 5)
        assert (found[:, 4] == 0).all(), "the support set has no example of the fifth class"
    model = onnx.load(path)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["x", "probabilities"]
    said = json.loads({p.key: p.value for p in model.metadata_props}["headstart"])
    assert said == {"version": hs.__version__, "classes": ["ant", "bee", "cat", "dog", "elk"], "kind": "classes"}
    assert [f.name for f in tmp_path.iterdir()] == ["task.onnx"]


def test_predictions_are_in_the_users_unit(tmp_path: Path) -> None:
    scale = hs.TargetScale((250_000.0,), (50_000.0,))
    learner = hs.maml(hs.models.mlp(3, 1, (8,)), 3, 0.1, loss="squared_error", target_scale=scale)
    x = torch.randn(6, 3)
    adapted = learner.adapt(x, 250_000 + 50_000 * x[:, 0])
    run = files.runner(hs.export_onnx(adapted, tmp_path / "price.onnx", x))
    (found,) = run({"x": x[:4]})
    np.testing.assert_allclose(found, adapted.predict(x[:4]).numpy(), rtol=1e-4)
    assert found.mean() > 100_000


def test_yes_or_no_questions(tmp_path: Path) -> None:
    learner = hs.anil(hs.models.mlp(3, 1, (8,)), 3, 0.1, loss="binary_cross_entropy")
    x = torch.randn(6, 3)
    adapted = learner.adapt(x, (x[:, 0] > 0).long())
    (found,) = files.runner(hs.export_onnx(adapted, tmp_path / "yes.onnx", x, ["no", "yes"]))({"x": x})
    np.testing.assert_allclose(found, adapted.predict_proba(x).numpy(), atol=1e-4)


def test_a_vision_transformer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs pip install 'headstart[models]'")
    size = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4, "num_labels": 3}
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**size, image_size=8, patch_size=4, num_channels=1))
    with torch.no_grad():
        for p in model.parameters():  # as they are made they are so small that all pictures look alike
            p.normal_(std=0.5)
    x, y, q = task((1, 8, 8), 3, 2, 5)
    adapted = hs.anil(model, 3, 0.5).adapt(x, y)
    (found,) = files.runner(hs.export_onnx(adapted, tmp_path / "task.onnx", x))({"x": q})
    np.testing.assert_allclose(found, adapted.predict_proba(q).numpy(), atol=1e-4)
    learner = hs.protomaml(model, 3, 0.02)
    Exported(learner, hs.export_learner_onnx(learner, tmp_path / "learner.onnx", x), (1, 8, 8), 0.02).agrees(4, 5)


# -- what is refused -----------------------------------------------------------------------------------------------------------


class OwnStart(hs.Start):
    pass


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda m: hs.maml(m, 1, 0.1), ExportError, 'adapt="head"'),
        (lambda m: hs.anil(m, 1, 0.1, replay=False), ExportError, "switched off"),
        (lambda m: hs.anil(m, 2, [0.1, 0.2]), ExportError, "several step sizes"),
        (lambda m: hs.anil(m, 2, {"*weight": 0.1, "*bias": 0.2}), ExportError, "several step sizes"),
        (lambda m: hs.anil(m, 1), ConfigError, "to be measured"),
        (lambda m: hs.MetaLearner(hs.Partition(m), hs.GradientDescent(1, 0.1, momentum=0.9)), ExportError, "momentum=0.9"),
        (lambda m: hs.MetaLearner(hs.Partition(m), hs.GradientDescent(1, 0.1, clip=1.0)), ExportError, "plain gradient descent"),
        (lambda m: hs.metasgd(m, 1, 0.1, adapt="head"), ExportError, "MetaSGD"),
        (lambda m: hs.anil(m, 1, 0.1, start=OwnStart()), ExportError, "OwnStart.* starts a head"),
        (lambda m: hs.anil(m, 1, 0.1, loss="squared_error"), ExportError, "squared_error"),
    ],
)
def test_what_a_graph_is_not_written_for_is_refused(
    make: Callable[[nn.Module], hs.MetaLearner], error: type[Exception], says: str, tmp_path: Path
) -> None:
    learner = make(hs.models.mlp(6, 5, (8,)))
    with pytest.raises(error, match=says):
        hs.export_learner_onnx(learner, tmp_path / "learner.onnx", torch.randn(2, 6))
    assert not list(tmp_path.iterdir())


class Noisy(nn.Module):
    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.branch, self.head = branch, nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch and x.sum() > 0:
            x = -x
        return self.head(x if self.branch else x + torch.randn_like(x))


def test_what_torch_cannot_export_or_gives_other_numbers_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path, x = tmp_path / "task.onnx", torch.randn(4, 3)
    path.write_text("as before")
    for branch, says in ((True, "cannot export"), (False, r"differs from torch by up to [\d.]+")):
        adapted = hs.anil(Noisy(branch), 1, 0.1, replay=False).adapt(x, torch.tensor([0, 1] * 2))
        with pytest.raises(ExportError, match=says):
            hs.export_onnx(adapted, path, x)
    assert path.read_text() == "as before"
    assert len(list(tmp_path.iterdir())) == 1


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    adapted = hs.anil(net("mlp"), 1, 0.1).adapt(x, torch.tensor([0, 1] * 2))
    for given, says in (({"x": x}, "dict"), (x[0], r"\(6,\)"), (x[:0], r"\(0, 6\)"), (x.bfloat16(), "bfloat16")):
        with pytest.raises(ExportError, match=says):
            hs.export_onnx(adapted, tmp_path / "task.onnx", given)
    with pytest.raises(ExportError, match="2 names, but the model has 5"):
        hs.export_onnx(adapted, tmp_path / "task.onnx", x, ["a", "b"])
    with pytest.raises(ExportError, match="no folder"):
        hs.export_onnx(adapted, tmp_path / "none" / "task.onnx", x)
    with pytest.raises(MethodError, match="bias"):
        hs.export_learner_onnx(hs.protomaml(nn.Linear(6, 5, bias=False), 1, 0.1), tmp_path / "learner.onnx", x)


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"pip install 'headstart\[onnx\]'"):
        body.package("onnx")


def test_importing_headstart_does_not_import_onnx() -> None:
    code = "import sys, headstart; sys.exit(any(m.split('.')[0] in ('onnx', 'onnxruntime', 'onnxscript') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
