"""The first command on a person's own data: sizes that fit, a measured step size, time, and what would do without meta-learning."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from fakes import split
from headstart.cli import main
from headstart.data import Source
from headstart.data.catalogue import named as data_named
from headstart.errors import ConfigError
from headstart.evaluation.result import Comparison
from headstart.experiments.baselines import Baseline, Beside, beside_baselines
from headstart.measuring.step_size import around, losses_by_rate
from headstart.registry import parse_options
from headstart.training import budget
from headstart.training.algorithms import ALGORITHMS, with_algorithm
from headstart.training.automatic import fit_sizes
from headstart.training.checkpoint import load
from headstart.training.config import RunConfig
from headstart.training.run import decided, learner_for, start
from headstart.training.run import load as load_source


def vectors(path: Path, classes: int, each: int, width: int = 6, seed: int = 0) -> Path:
    """Classes around random means, in features of sizes from 1e-5 to 1e3."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-5, 3, width)
    y = np.arange(classes * each) % classes
    x = (rng.normal(size=(classes, width))[y] * 2 + rng.normal(size=(len(y), width))) * size
    np.savez(path, x=x.astype(np.float32), y=y)
    return path


def table(path: Path, tasks: int, rows: int) -> Path:
    rng = np.random.default_rng(0)
    lines = ["task,y,a,b"]
    for t in range(tasks):
        slope, offset = rng.normal(), 1e5 * rng.normal()
        lines += [f"t{t},{offset + 3e4 * slope * a},{a},{b}" for a, b in rng.normal(size=(rows, 2))]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


QUICK = ["--iterations", "3", "--test-episodes", "10", "--validation-episodes", "4", "--out", "run"]


# -- an open step size in Python ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [hs.anil, hs.maml, hs.boil, hs.fomaml, hs.metasgd, hs.mamlpp, hs.protomaml])
def test_training_measures_an_open_step_size_once_and_keeps_it(preset: Any, tmp_path: Path) -> None:
    config = hs.TrainConfig(queries=3, tasks=2, iterations=2, validate_every=2, validation_episodes=4)
    make = lambda: preset(hs.models.conv4(1, 5, 16, filters=4), steps=2)  # noqa: E731
    torch.manual_seed(0)
    learner = make()
    assert learner.inner.undecided
    assert learner.theta == {}
    expected = hs.measure_lr(learner, own_source().train, queries=3, episodes=2).lr
    torch.manual_seed(0)
    learner = make()
    run = hs.train(learner, own_source(), config, out=tmp_path / "run", quiet=True)
    assert learner.inner.lr == expected
    assert f"lr={expected:g}" in run.notes[0]
    again = make()
    longer = hs.train(again, own_source(), replace(config, iterations=3), out=tmp_path / "run", resume=True, quiet=True)
    assert again.inner.lr == expected
    assert not any("lr=" in note for note in longer.notes), "it is measured once"
    third = make()
    load(tmp_path / "run" / "best.safetensors", third)
    assert third.inner.lr == expected
    assert set(third.parameters()) == set(again.parameters())


def test_an_open_step_size_takes_no_step() -> None:
    learner = hs.anil(hs.models.mlp(4, 2))
    x, y = torch.randn(2, 4, 4), torch.arange(2).expand(2, 2).repeat(1, 2)
    for use in (
        lambda: learner.meta_gradient(hs.TaskBatch(x, y, x, y)),
        lambda: learner.adapt(x[0], y[0]),
        lambda: learner.trajectory(hs.TaskBatch(x, y, x, y)),
        lambda: learner.inner.with_steps(9).rate(0, "head.weight", {}),
    ):
        with pytest.raises(ConfigError, match="measure_lr"):
            use()
    learner.use_lr(0.1)
    assert learner.adapt(x[0], y[0])
    assert hs.anil(hs.models.mlp(4, 2), steps=0).adapt(x[0], y[0]), "without steps there is nothing to measure"
    with pytest.raises(ConfigError, match="no step size"):
        hs.measure_lr(hs.r2d2(hs.models.conv4(1, 5, 16, filters=4)), own_source().train)


# -- sizes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "each", "ways", "queries"), [(12, 24, 4, 5), (6, 2, 2, 1), (9, 5, 3, 4), (40, 30, 5, 5)])
def test_the_first_command_runs_on_few_classes_of_few_examples(
    classes: int, each: int, ways: int, queries: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert main(["train", "--data", f"npz:{vectors(Path('x.npz'), classes, each)}", *QUICK]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["ways"], config["queries"]) == (ways, queries)
    assert ("ways=" in caplog.text) == (ways < 5)


def test_what_was_given_is_kept_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    path = vectors(Path("x.npz"), 12, 24)
    assert main(["train", "--data", f"npz:{path}", *QUICK, "--ways", "5"]) == 2
    assert "ways=5, but" in capsys.readouterr().err
    assert main(["train", "--data", f"npz:{path}", *QUICK, "--queries", "30"]) == 2


def test_few_tasks_of_a_table() -> None:
    assert main(["train", "--data", f"table:{table(Path('t.csv'), 9, 12)}", *QUICK]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["tasks"] < 9
    assert config["shots"] == 6, "half of the rows"


def test_sizes_are_those_of_the_smallest_split() -> None:
    source = Source("own", split(9, "train", each=7), split(4, "validation", each=9), split(3, "test", each=4))
    config, notes = fit_sizes(RunConfig(), source, ())
    assert (config.train.ways, config.train.shots, config.train.queries) == (3, 1, 3)
    assert len(notes) == 2
    kept, notes = fit_sizes(RunConfig(), source, ("ways", "queries"))
    assert kept == RunConfig()
    assert not notes


# -- the step size ---------------------------------------------------------------------------------------------------------


def own_source() -> Source:
    return Source("own", split(12, "train"), split(6, "validation"), split(6, "test"))


def test_the_step_size_is_the_best_of_those_around_the_inverse_curvature() -> None:
    config = RunConfig(train=replace(RunConfig().train, queries=3))
    settled, notes = decided(config, own_source())
    assert isinstance(settled.learner.lr, float)
    assert len(notes) == 1
    assert f"lr={settled.learner.lr:g}" in notes[0]
    assert decided(settled, own_source()) == (settled, [])
    torch.manual_seed(0)
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=8), steps=3)
    found = hs.measure_lr(learner, own_source().train, queries=3)
    tasks = hs.data.Episodes(own_source().train, ways=5, shots=1, queries=3, tasks=8, seed=0).batch(0)
    tried = losses_by_rate(lambda lr: hs.anil(learner.model, 3, lr), tasks, (3,), around(found.curvature or 0.0, learner, tasks))[3]
    assert found.after == pytest.approx(min(tried.values()), rel=1e-5)
    assert tried[found.lr] == min(tried.values())
    assert found.after < found.before


@pytest.mark.parametrize("solver", ["descent", "adam", "metasgd", "lslr"])
def test_every_solver_that_takes_steps_gets_one(solver: str) -> None:
    config = RunConfig.from_flat({"solver": solver, "queries": 3, "filters": 4, "steps": 2})
    assert isinstance(decided(config, own_source())[0].learner.lr, float)


def test_a_closed_form_needs_none() -> None:
    config = RunConfig.from_flat({"solver": "ridge", "queries": 3, "filters": 4})
    assert decided(config, own_source())[0].learner.lr == "auto"
    assert not config.learner.measures_lr


def test_a_flat_start_gives_no_absurd_step_size() -> None:
    """Prototypes can be so sure of their answers that the curvature there is nothing."""
    config = RunConfig.from_flat({"start": "prototypes", "queries": 3, "filters": 8})
    assert float(decided(config, own_source())[0].learner.lr) < 10


def test_a_resumed_run_has_its_number() -> None:
    path = f"npz:{vectors(Path('x.npz'), 12, 24)}"
    assert main(["train", "--data", path, *QUICK]) == 0
    before = json.loads(Path("run/config.json").read_text())
    assert isinstance(before["lr"], float)
    assert main(["train", "--data", path, *QUICK[2:], "--iterations", "5", "--resume"]) == 0
    after = json.loads(Path("run/config.json").read_text())
    assert {**before, "iterations": 5} == after


# -- time ------------------------------------------------------------------------------------------------------------------


def test_time_sets_what_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_seconds", lambda config, *_: config.learner.filters / 32)  # two seconds a step, at 64 filters
    source = own_source()
    build: Any = None
    config, notes = budget.fit_time(RunConfig(), source, build, ())
    assert (config.train.sampling, config.learner.filters) == ("dense", 32)
    assert config.train.iterations == 420, "of 600 seconds 15 % are for validation, and 15 % for trials"
    settled = replace(RunConfig(), learner=replace(RunConfig().learner, lr=0.1, start="model"))
    assert budget.fit_time(settled, source, build, ())[0].train.iterations == 510, "no trials where nothing is open"
    assert "filters=32" in " ".join(notes)
    config, notes = budget.fit_time(replace(RunConfig(), minutes=1.0), source, build, ("filters", "tasks"))
    assert (config.train.sampling, config.learner.filters, config.train.iterations) == ("independent", 64, 50)
    assert "--minutes 48 would allow 1000" in notes[-1]
    given = ("filters", "tasks", "iterations")
    assert budget.fit_time(RunConfig(), source, build, given) == (RunConfig(), [])
    assert budget.fit_time(replace(RunConfig(), minutes=0.0), source, build, given[:2])[0].train.iterations == 1000
    with pytest.raises(ConfigError, match="minutes=-1"):
        RunConfig(minutes=-1)


# -- without meta-learning -------------------------------------------------------------------------------------------------


def test_the_baselines_are_what_they_say() -> None:
    """Nearest class means and the mean of the support targets, computed by hand on the same episodes."""
    source = own_source()
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=2, lr=0.1)
    sizes: dict[str, Any] = {"ways": 5, "shots": 2, "queries": 3, "episodes": 12}
    found = beside_baselines(hs.evaluate(learner, source.test, **sizes), source, learner, sizes)
    nearest, logistic, untrained = found.baselines
    sampler = hs.data.Episodes(source.test, ways=5, shots=2, queries=3, tasks=12, seed=0, stream="test")
    tasks = sampler.batch(0)
    for t in range(12):
        x, q = (v[t].flatten(1) for v in (tasks.support_x, tasks.query_x))
        means = torch.stack([x[tasks.support_y[t] == c].mean(0) for c in range(5)])
        hits = (torch.cdist(q, means).argmin(1) == tasks.query_y[t]).double().mean()
        assert nearest.evaluation.scores[t] == pytest.approx(float(hits), abs=1e-6)
    assert untrained.comparison.difference == 0
    assert not untrained.beaten
    assert 0.2 < logistic.evaluation.mean <= 1
    assert "not better than" in str(found)


@pytest.mark.parametrize(
    ("difference", "said"), [(0.1, "meta-learning is better"), (0.01, "by less than the interval"), (-0.01, "not better than a line")]
)
def test_the_last_line_says_what_the_interval_allows(difference: float, said: str) -> None:
    own = hs.Evaluation("accuracy", 0.5, 0.01, [(0.5, 0.01)], {}, {}, None, 0.0, {}, [0.5, 0.5])
    comparison = Comparison("accuracy", difference, 0.05, 100)
    assert said in str(Beside(own, (Baseline("a line", own, comparison),))).splitlines()[-1]
    squared = replace(own, metric="squared error")
    assert said in str(Beside(squared, (Baseline("a line", squared, replace(comparison, difference=-difference)),))).splitlines()[-1]


def test_logistic_regression_has_converged() -> None:
    """Its gradient vanishes, penalty included: what scikit-learn's default solves."""
    source = own_source()
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=4), steps=2, lr=0.1)
    sizes: dict[str, Any] = {"ways": 5, "shots": 2, "queries": 3, "episodes": 4}
    logistic = beside_baselines(hs.evaluate(learner, source.test, **sizes), source, learner, sizes).baselines[1]
    tasks = hs.data.Episodes(source.test, ways=5, shots=2, queries=3, tasks=4, seed=0, stream="test").batch(0)
    for t in range(4):
        x, y = tasks.support_x[t].flatten(1).double(), tasks.support_y[t]
        w, b = torch.zeros(5, x.shape[1], dtype=torch.double, requires_grad=True), torch.zeros(5, dtype=torch.double, requires_grad=True)
        solver = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure(x: Any = x, y: Any = y, w: Any = w, b: Any = b, solver: Any = solver) -> Any:
            solver.zero_grad()
            loss = torch.nn.functional.cross_entropy(x @ w.T + b, y) + 0.5 / len(y) * (w.square().sum() + b.square().sum())
            loss.backward()
            return loss

        solver.step(closure)
        answers = (tasks.query_x[t].flatten(1).double() @ w.T + b).argmax(1)
        assert logistic.evaluation.scores[t] == pytest.approx(float((answers == tasks.query_y[t]).double().mean()), abs=1e-6)


def test_baselines_of_real_targets() -> None:
    source = hs.data.load("sinusoid")
    learner = hs.anil(hs.models.mlp(1, 1), steps=2, lr=0.01, loss="squared_error")
    sizes = {"shots": 5, "queries": 7, "episodes": 9}
    found = beside_baselines(hs.evaluate(learner, source.test, **sizes), source, learner, sizes)
    assert [b.name for b in found.baselines][:2] == ["the mean of the support targets", "pooled ridge regression plus offset"]
    tasks = hs.data.Sinusoid(5, 7, 9, seed=0, stream="test").batch(0)
    by_hand = (tasks.query_y - tasks.support_y.mean(1, keepdim=True)).square().mean(1)
    assert torch.allclose(torch.tensor(found.baselines[0].evaluation.scores).double(), by_hand.double(), rtol=1e-4)


def test_the_command_says_how_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", f"npz:{vectors(Path('x.npz'), 12, 24)}", *QUICK]) == 0
    out = capsys.readouterr().out
    for name in ("nearest class mean", "logistic regression", "untrained network"):
        assert name in out
    kept = json.loads(Path("run/baselines.json").read_text())
    assert len(kept) == 3
    assert {"name", "evaluation", "comparison", "beaten"} <= kept[0].keys()


def test_training_never_ends_with_less_than_it_began_with() -> None:
    """Where training does harm, the weights from before it are kept."""
    torch.manual_seed(0)
    learner = hs.anil(hs.models.conv4(1, 5, 16, filters=8), steps=3, lr=0.05)
    before = {k: v.detach().clone() for k, v in learner.parameters().items()}
    config = hs.TrainConfig(queries=3, tasks=4, iterations=4, validate_every=2, validation_episodes=40, outer_lr=5.0, optimizer="sgd")
    run = hs.train(learner, own_source(), config, quiet=True)
    assert run.best is not None
    assert [e["step"] for e in run.history if "validation" in e] == [0, 2, 4]
    if run.best[1] == 0:
        assert all(torch.equal(v, before[k]) for k, v in learner.parameters().items())
    assert run.best[0] == max(e["validation"] for e in run.history if "validation" in e)


# -- algorithms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_by_name_is_the_preset(name: str) -> None:
    """The same partition, solver, start and hypergradient, but for the number and the size of its steps where the run has its own."""
    config = with_algorithm(RunConfig.from_flat({"filters": 4, "queries": 3, "lr": 0.05}), name, ())
    own = learner_for(config, own_source())
    preset = getattr(hs, name)(hs.models.conv4(1, 5, 16, filters=4, **parse_options(config.learner.model_options)))
    assert own.partition.adapted == preset.partition.adapted
    assert type(own.inner) is type(preset.inner)
    assert type(own.start) is type(preset.start)
    assert type(own.hypergradient) is type(preset.hypergradient)
    sized = {k: v for k, v in {"lr": 0.05, "steps": own.inner.steps}.items() if k in {f.name for f in fields(preset.inner) if f.init}}
    assert own.inner == replace(preset.inner, **sized)


def test_what_is_given_beside_an_algorithm_stays() -> None:
    path = f"npz:{vectors(Path('x.npz'), 12, 24)}"
    assert main(["train", "--data", path, *QUICK, "--algorithm", "protonet", "--steps", "2"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["start"], config["steps"]) == ("prototypes", 2)


def test_an_algorithm_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--algorithm", "reptil"]) == 2
    assert "algorithm='reptil' is not known; use one of anil" in capsys.readouterr().err


# -- the start -------------------------------------------------------------------------------------------------------------


def short(monkeypatch: pytest.MonkeyPatch, value: Any, metric: str = "accuracy") -> list[Any]:
    """Trials that end at value(learner) without training; what was tried."""
    from headstart.training import trials

    tried: list[Any] = []
    worse = 0.5 if metric == "accuracy" else -0.5

    def trained(learner: hs.MetaLearner, data: Any, config: Any, **_: Any) -> Any:
        assert (config.iterations, config.schedule) == (30, "constant")
        tried.append(learner.inner)
        found = value(learner)
        return type("Run", (), {"metric": metric, "history": [{"step": 0, "validation": found - worse}, {"step": 30, "validation": found}]})

    monkeypatch.setattr(trials, "train", trained)
    return tried


def test_the_start_is_the_one_that_a_short_training_validates_best(monkeypatch: pytest.MonkeyPatch) -> None:
    better = {"SharedVector": 0.0, "Prototypes": 1.0}
    short(monkeypatch, lambda learner: better[type(learner.start).__name__])
    config = RunConfig.from_flat({"filters": 4, "queries": 3, "minutes": 0})
    settled, notes = decided(config, own_source(), ("minutes",))
    assert settled.learner.start == "prototypes"
    assert any("start=prototypes: validation accuracy within 30 steps with shared 0.00 %, prototypes 100.00 %" in n for n in notes)
    assert settled.learner.steps == 5, "of equals the first is taken"
    short(monkeypatch, lambda learner: 1.0 if learner.inner.steps == 0 else 0.5)
    without, notes = decided(config, own_source(), ("minutes",))
    assert (without.learner.start, without.learner.steps) == ("prototypes", 0)
    assert any(n.startswith("start=prototypes, steps=0: ") for n in notes)
    assert decided(config, own_source(), ("minutes", "steps"))[0].learner.steps == 5, "what is given stays"
    short(monkeypatch, lambda learner: better[type(learner.start).__name__])
    better.update(SharedVector=1.0, Prototypes=0.0)
    assert decided(config, own_source(), ())[0].learner.start == "shared"
    assert decided(config, own_source())[0].learner.start == "shared", "nothing is trained where no run begins"


@pytest.mark.parametrize(("factor", "moves"), [(1.0, 2), (2.0, 3), (4.0, 3), (100.0, 3), (0.25, 2)])
def test_the_step_size_is_checked_by_short_trainings(factor: float, moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Doubled while that validates better, twice at most."""
    config = RunConfig.from_flat({"filters": 4, "queries": 3, "minutes": 0, "adapt": "last:2"})
    measured = float(decided(config, own_source())[0].learner.lr)
    tried = short(monkeypatch, lambda learner: -abs(math.log(learner.inner.lr / (factor * measured))))
    settled, notes = decided(config, own_source(), ("minutes",))
    assert float(settled.learner.lr) == pytest.approx(min(4.0, max(factor, 1.0)) * measured, rel=0.06)
    assert len(tried) == moves
    assert any(n.startswith(f"lr={settled.learner.lr:g} {'stays' if factor <= 1 else 'is better'}") for n in notes)


def test_near_the_top_a_larger_step_size_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig.from_flat({"filters": 4, "queries": 3, "minutes": 0, "adapt": "last:2"})
    measured = decided(config, own_source())[0].learner.lr
    short(monkeypatch, lambda learner: 0.999 if learner.inner.lr == measured else 1.0)
    assert decided(config, own_source(), ("minutes",))[0].learner.lr == measured


def test_a_short_training_of_real_targets_wants_a_small_error(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = hs.data.load("sinusoid")
    config = RunConfig.from_flat({"data": "sinusoid", "minutes": 0})
    short(monkeypatch, lambda learner: 1 / learner.inner.lr, "squared error")
    settled, notes = decided(config, waves, ("minutes",))
    measured = next(float(n.split(",")[0].removeprefix("lr=")) for n in notes if "largest curvature" in n)
    assert float(settled.learner.lr) == pytest.approx(4 * measured, rel=0.06)


def test_where_every_short_training_diverges_the_measured_step_size_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(learner: hs.MetaLearner) -> float:
        raise hs.errors.DivergenceError("on purpose")

    config = RunConfig.from_flat({"filters": 4, "queries": 3, "minutes": 0})
    untried, _ = decided(config, own_source())
    short(monkeypatch, diverges)
    assert decided(config, own_source(), ("minutes",))[0].learner == untried.learner


@pytest.mark.parametrize(
    ("settings", "start"),
    [({"adapt": "last:2"}, "model"), ({"solver": "ridge"}, "model"), ({"iterations": 40}, "shared"), ({"start": "model"}, "model")],
)
def test_where_there_is_nothing_to_try(settings: dict[str, Any], start: str) -> None:
    config = RunConfig.from_flat({"filters": 4, "queries": 3, **settings})
    assert decided(config, own_source(), tuple(settings))[0].learner.start == start


def test_real_targets_have_no_shared_start() -> None:
    config = RunConfig.from_flat({"data": "sinusoid"})
    assert decided(config, hs.data.load("sinusoid"), ("iterations",))[0].learner.start == "model"


# -- further -------------------------------------------------------------------------------------------------------------------


def test_a_path_alone_is_enough() -> None:
    assert main(["train", "--data", str(vectors(Path("x.npz"), 12, 24)), *QUICK]) == 0
    assert main(["train", "--data", str(table(Path("t.csv"), 9, 12)), *QUICK, "--overwrite"]) == 0
    assert data_named("x.npz") == "npz:x.npz"
    Path("glyphs").mkdir()
    assert data_named("glyphs") == "glyphs", "names of sources come first"
    Path("pictures").mkdir()
    assert data_named("pictures") == "folder:pictures"


@pytest.mark.parametrize(("lr", "warned"), [(0.01, False), (50.0, True)])
def test_a_step_size_far_beyond_stability_is_warned_of(lr: float, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    config = RunConfig.from_flat({"filters": 4, "queries": 3, "lr": lr, "start": "model"})
    settled, _ = decided(config, own_source(), ("iterations", "lr"))
    assert settled.learner.lr == lr, "what is given is used as given"
    assert ("adaptation may diverge" in caplog.text) == warned


def test_a_flat_loss_or_a_solver_like_adam_is_tried_at_fixed_sizes() -> None:
    """A body under a head of zeros has no curvature: the loss does not depend on it."""
    model = hs.models.conv4(1, 5, 16, filters=4)
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[union-attr,arg-type]
    learner = hs.boil(model, steps=2, lr=0.1)
    found = hs.measure_lr(learner, own_source().train, queries=3)
    assert found.curvature is None
    assert found.lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    assert "of 0.001 to 0.3" in str(found)


def pictures(folder: Path, classes: int, each: int) -> Path:
    """A folder of classes of noise pictures."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for c in range(classes):
        (folder / f"class {c}").mkdir(parents=True)
        for k in range(each):
            noise = torch.randint(256, (20, 24), generator=generator, dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(folder / f"class {c}" / f"{k}.png")
    return folder


def test_where_time_is_short_pictures_of_a_folder_are_smaller(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A second for a step of 84 by 84 pixels: time for 51 in a minute, for 156 at 48 pixels, and never for 9000."""
    monkeypatch.setattr(budget, "_seconds", lambda config, source, *_: (source.train.shape[-1] / 84) ** 2)
    photos = pictures(Path("photos"), 9, 4)
    settings = {"data": str(photos), "minutes": 1.0, "filters": 4, "lr": 0.1, "start": "model", "queries": 2}
    given = ("minutes", "filters", "lr", "start", "queries")
    monkeypatch.setattr("headstart.training.run.train", lambda *_, **__: None)
    caplog.set_level("INFO", "headstart")
    for number, (iterations, own, size) in enumerate(
        [(60, {}, 84), (150, {}, 64), (300, {}, 48), (9000, {}, 32), (9000, {"picture_size": 70}, 70)]
    ):
        config = RunConfig.from_flat({**settings, "iterations": iterations, **own})
        _, found, learner, source = start(config, Path(f"run{number}"), given=(*given, *own))
        assert source.train.shape[-1] == size
        assert found.picture_size == (0 if size == 84 else size)
        assert learner.meta_gradient(hs.data.Episodes(source.train, 3, 1, 1, 1).batch(0))[1].loss > 0, "the network fits the pictures"
    assert "picture_size=64, as 1 minutes are enough for 51 of 150 iterations at 84 pixels; --picture-size 84 keeps them" in caplog.text
    kept = load_source(RunConfig.load("run2/config.json"))
    assert kept.train.shape[-1] == 48, "an opened run has its pictures"
    with pytest.raises(ConfigError, match="picture_size=20: glyphs has pictures of one size"):
        load_source(RunConfig(picture_size=20))


def test_few_pictures_are_changed_whenever_they_are_drawn() -> None:
    source = own_source()
    config = RunConfig.from_flat({"filters": 4, "queries": 3, "lr": 0.1, "start": "model", "iterations": 5})
    settled, notes = decided(config, source, ("iterations",))
    assert settled.train.augment == "affine"
    assert any(n.startswith("augment=affine, as ") for n in notes)
    assert decided(config, source, ("augment",))[0].train.augment == "none", "what is given stays"
    assert decided(config, source)[0].train.augment == "none"
    floats = replace(source, train=replace(source.train, array=source.train.array.float()))
    assert decided(config, floats, ())[0].train.augment == "none", "a spectrogram is not to be turned"


# -- using a learner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["logits", "log_probabilities", "probabilities"])
def test_a_class_without_an_example_is_impossible_whatever_outputs_mean(scores: Any) -> None:
    def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -outputs.gather(1, y[:, None])[:, 0]

    last: dict[str, torch.nn.Module] = {
        "logits": torch.nn.Identity(),
        "log_probabilities": torch.nn.LogSoftmax(-1),
        "probabilities": torch.nn.Softmax(-1),
    }
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), last[scores])
    learner = hs.MetaLearner(
        hs.Partition(model, "all"), hs.GradientDescent(1, 0.1), loss=hs.losses.Loss("own", loss, kind="classes", scores=scores)
    )
    found = learner.adapt(torch.randn(4, 4), torch.tensor([0, 2, 0, 2])).predict_proba(torch.randn(5, 4))
    assert found[:, 1].eq(0).all()
    assert bool((found >= 0).all())


def test_adapt_takes_arrays_and_lists() -> None:
    torch.manual_seed(0)
    learner = hs.anil(hs.models.mlp(3, 2), steps=3, lr=0.5)
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    expected = learner.adapt(x, y).predict_proba(x)
    for given_x, given_y in (
        (x.double().numpy(), y.numpy()),
        (x.tolist(), y.tolist()),
        ([row.numpy() for row in x], tuple(y.tolist()) and list(y.tolist())),
        (list(x), list(y)),
    ):
        torch.testing.assert_close(learner.adapt(given_x, given_y).predict_proba(given_x), expected)
    with pytest.raises(hs.errors.TaskError, match="numbers, and not str"):
        learner.adapt("six pictures", y)


@pytest.mark.parametrize("start", [hs.ModelStart(), hs.SharedVector(), hs.Prototypes()])
def test_ways_that_a_task_does_not_have_get_no_probability(start: hs.Start) -> None:
    torch.manual_seed(0)
    learner = hs.anil(hs.models.mlp(3, 5), steps=1, lr=0.1, start=start)
    x, y = torch.randn(9, 3), torch.arange(9) % 3
    adapted = learner.adapt(x, y)
    p = adapted.predict_proba(torch.randn(40, 3))
    assert p[:, 3:].sum() == 0
    torch.testing.assert_close(p.sum(1), torch.ones(40))
    assert adapted.predict(torch.randn(40, 3)).max() < 3
    logits = adapted.logits(x)
    torch.testing.assert_close(adapted.predict_proba(x)[:, :3], logits[:, :3].softmax(1), msg="the others keep their proportions")


# -- folds -----------------------------------------------------------------------------------------------------------------


def test_over_the_folds_every_class_is_tested_once(capsys: pytest.CaptureFixture[str]) -> None:
    path = vectors(Path("x.npz"), 9, 6)
    tested, scales = [], []
    for k in (1, 2, 3):
        config = RunConfig.from_flat({"data": f"npz:{path}", "folds": 3, "fold": k})
        source = load_source(config)
        tested += source.test.classes
        own = source.train.examples.double()
        np.testing.assert_allclose(source.train.mean, own.mean(0), rtol=1e-4)
        scales.append(tuple(source.train.mean))
        assert not set(source.train.classes) & set(source.test.classes)
    assert sorted(tested) == sorted(map(str, range(9)))
    assert len(set(scales)) == 3, "each fold has the scale of its own training classes"
    assert main(["train", "--data", f"npz:{path}", "--folds", "3", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "over 3 folds, every class tested once" in out
    means = json.loads(Path("run/folds.json").read_text())["means"]
    assert len(means["meta-learned"]) == 3
    assert means["meta-learned"][2] == json.loads(Path("run/fold-3/evaluation.json").read_text())["mean"]
    assert main(["train", "--data", f"npz:{path}", "--folds", "5", "--overwrite", *QUICK]) == 2
    assert "give 3 to 4" in capsys.readouterr().err
    assert main(["train", "--data", "sinusoid", "--folds", "3", "--overwrite", *QUICK]) == 2
