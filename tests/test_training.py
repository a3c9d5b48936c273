"""Training: it learns, resumes bit for bit, ends cleanly, and says what is wrong before work is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import headstart as hs
from fakes import source
from headstart.errors import CheckpointError, ConfigError, DataError, DivergenceError
from headstart.keeping import tensors_of
from headstart.training import checkpoint
from headstart.training.config import LearnerConfig, RunConfig, TrainConfig
from headstart.training.loop import BEST, LAST, METRICS, Run, train

SETTINGS: dict[str, Any] = {"tasks": 4, "queries": 3, "iterations": 12, "validate_every": 4, "validation_episodes": 20}


def learner(**options: Any) -> hs.MetaLearner:
    torch.manual_seed(0)
    model = hs.models.conv4(1, 5, 16, filters=8)
    model.body.append(torch.nn.Dropout(0.2))
    return hs.anil(model, steps=3, lr=0.4, **options)


def state(own: hs.MetaLearner) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in tensors_of(own).items()}


def strip(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A history without its clock."""
    return [{k: v for k, v in e.items() if k != "seconds"} for e in history]


def test_it_learns() -> None:
    own = learner()
    run = train(own, source(), TrainConfig(**{**SETTINGS, "iterations": 80, "sampling": "dense", "tasks": 32}), quiet=True)
    losses = [e["loss"] for e in run.history if "loss" in e]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not run.interrupted
    assert run.best[0] > 0.5
    assert "finished after 80 steps" in str(run)


@pytest.mark.parametrize("options", [{}, {"adapt": "last:2"}, {"hypergradient": hs.Recursive(), "adapt": "all"}, "metasgd"])
@pytest.mark.parametrize("sampling", ["independent", "dense"])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(options: Any, sampling: str, tmp_path: Path) -> None:
    """Bit for bit: weights, statistics, optimizer and metrics; dropout included."""

    def make() -> hs.MetaLearner:
        if options == "metasgd":
            torch.manual_seed(0)
            return hs.metasgd(hs.models.conv4(1, 5, 16, filters=8), steps=2, lr=0.1)
        return learner(**options)

    config = TrainConfig(**SETTINGS, sampling=sampling)  # type: ignore[arg-type]
    one = make()
    whole = train(one, source(), config, out=tmp_path / "whole", quiet=True)
    two = make()
    meta_gradient, calls = two.meta_gradient, 0

    def interrupted(tasks: hs.TaskBatch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return meta_gradient(tasks)

    two.meta_gradient = interrupted  # type: ignore[method-assign]
    part = train(two, source(), config, out=tmp_path / "part", quiet=True)
    assert part.interrupted
    assert part.iterations == 7
    assert "stopped after 7 steps" in str(part)
    three = make()
    rest = train(three, source(), config, out=tmp_path / "part", resume=True, quiet=True)
    assert rest.iterations == 12
    assert strip(rest.history) == strip(whole.history)
    assert rest.best == whole.best
    for name, value in state(one).items():
        assert torch.equal(value, state(three)[name]), name
    a, b = ((tensors_of(make()), tmp_path / d / LAST) for d in ("whole", "part"))
    from safetensors.torch import load_file

    tensors = [load_file(path) for _, path in (a, b)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])
    lines = [json.loads(line) for line in (tmp_path / "part" / METRICS).read_text().splitlines()]
    assert strip(lines) == strip(whole.history)


def test_a_half_written_metrics_line_is_dropped(tmp_path: Path) -> None:
    train(learner(), source(), TrainConfig(**{**SETTINGS, "iterations": 4}), out=tmp_path, quiet=True)
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')
    run = train(learner(), source(), TrainConfig(**{**SETTINGS, "iterations": 6}), out=tmp_path, resume=True, quiet=True)
    assert [e["step"] for e in run.history if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert all(json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines())


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    own = learner()
    meta_gradient, calls = own.meta_gradient, 0

    def broken(tasks: hs.TaskBatch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 6:
            with torch.no_grad():
                own.model.head.weight.fill_(float("nan"))
        return meta_gradient(tasks)

    own.meta_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"diverged at step 6: loss nan.*last good checkpoint.*smaller inner lr"):
        train(own, source(), TrainConfig(**SETTINGS), out=tmp_path, quiet=True)
    kept = learner()
    assert checkpoint.load(tmp_path / LAST, kept)["iteration"] == 4
    assert all(bool(torch.isfinite(v).all()) for v in state(kept).values())


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    """At the end the learner holds the weights that validated best, with and without a folder."""
    config = TrainConfig(**{**SETTINGS, "outer_lr": 0.3, "schedule": "constant"})  # so large that later is not better
    one, two = learner(), learner()
    run = train(one, source(), config, out=tmp_path, quiet=True)
    train(two, source(), config, quiet=True)
    three = learner()
    assert checkpoint.load(tmp_path / BEST, three)["iteration"] == run.best[1]
    assert all(torch.equal(v, state(three)[k]) and torch.equal(v, state(two)[k]) for k, v in state(one).items())


def test_folders_and_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    config = TrainConfig(**{**SETTINGS, "iterations": 2, "validate_every": 2})
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write to the folder"):
        train(learner(), source(), config, out=tmp_path / "file" / "run", quiet=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train(learner(), source(), config, out=tmp_path / "new", resume=True, quiet=True)
    with pytest.raises(CheckpointError, match="needs the folder"):
        train(learner(), source(), config, resume=True, quiet=True)
    train(learner(), source(), config, out=tmp_path / "run", quiet=True)
    with pytest.raises(CheckpointError, match="holds a run already; go on with it by --resume"):
        train(learner(), source(), config, out=tmp_path / "run", quiet=True)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.load(tmp_path / "run" / LAST, hs.anil(hs.models.conv4(1, 5, 16, filters=4)))
    with pytest.raises(CheckpointError, match="no optimizer state"):
        own = learner()
        checkpoint.save(tmp_path / "run" / BEST, own, None, {"iteration": 2, "best": None, "metric": "accuracy", "seconds": 0.0})
        checkpoint.load(tmp_path / "run" / BEST, own, torch.optim.AdamW(list(own.parameters().values())))
    whole = (tmp_path / "run" / LAST).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 100):
        (tmp_path / "run" / LAST).write_bytes(damaged)
        checkpoint.before(tmp_path / "run" / LAST).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"is damaged.*is damaged too; use the other of"):
            train(learner(), source(), config, out=tmp_path / "run", resume=True, quiet=True)


def test_data_that_is_too_small_is_refused_before_any_work(tmp_path: Path) -> None:
    for options, words in (
        ({"ways": 13}, "ways=13, but train has 12"),
        ({"ways": 7}, "ways=7, but validation has 6"),
        ({"shots": 8}, "need 11"),
    ):
        with pytest.raises(DataError, match=words):
            train(learner(), source(), TrainConfig(**{**SETTINGS, **options}), out=tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainConfig(ways=0), "ways=0"),
        (lambda: TrainConfig(outer_lr=0.0), "outer_lr=0.0"),
        (lambda: TrainConfig(outer_lr=float("nan")), "outer_lr=nan"),
        (lambda: TrainConfig(sampling="loose"), "sampling='loose'"),  # type: ignore[arg-type]
        (lambda: TrainConfig(iterations=0), "iterations=0"),
        (lambda: LearnerConfig(steps=-1), "steps=-1"),
        (lambda: LearnerConfig(lr=0.0), "lr=0.0"),
        (lambda: LearnerConfig(model="vgg"), "model 'vgg' is not known"),  # type: ignore[arg-type]
        (lambda: hs.GradientDescent(steps=1.5), "steps=1.5"),  # type: ignore[arg-type]
        (lambda: hs.GradientDescent(lr=float("inf")), "lr=inf"),
        (lambda: hs.GradientDescent(l2=-1.0), "l2=-1.0"),
        (lambda: hs.GradientDescent(momentum=1.0), "momentum=1.0"),
        (lambda: hs.Ridge(l2=0.0), "l2=0.0"),
        (lambda: hs.Ridge().with_steps(3), "closed form"),
        (lambda: hs.Recursive("backward"), "products='backward'"),  # type: ignore[arg-type]
        (lambda: hs.Implicit("gmres"), "solver='gmres'"),  # type: ignore[arg-type]
        (lambda: hs.Implicit(iterations=0), "iterations=0"),
        (lambda: hs.models.conv4(size=8), "too small"),
        (lambda: hs.models.conv4(ways=0), "ways=0"),
        (lambda: hs.models.resnet12(dropout=1.0), "dropout=1.0"),
        (lambda: hs.models.mlp(0), "features=0"),
        (lambda: learner(loss="hinge"), "'hinge'"),
        (lambda: learner(chunk_tasks=0), "chunk_tasks=0"),
        (lambda: learner(step_weights=[1.0]), r"step_weights=\[1.0\]: give 4 weights"),
        (lambda: RunConfig.from_flat({"wayz": 5}), "unknown setting 'wayz'"),
        (lambda: RunConfig.from_flat({"ways": "5"}), "ways='5' is a str; it must be a int"),
        (lambda: RunConfig.load("/no/such/file"), "cannot read the config"),
    ],
)
def test_settings_that_cannot_work(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_configs_survive_a_file(tmp_path: Path) -> None:
    config = RunConfig(learner=LearnerConfig(adapt="last:2", lr=1.0), train=TrainConfig(ways=7, sampling="dense"))
    config.save(tmp_path / "c.json")
    assert RunConfig.load(tmp_path / "c.json") == config
    (tmp_path / "c.json").write_text('{"lr": 1}')
    assert RunConfig.load(tmp_path / "c.json").learner.lr == 1.0
    for text, words in (("{", "not JSON"), ("[]", "holds a list")):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            RunConfig.load(tmp_path / "c.json")


def test_what_is_not_finite_never_reaches_the_weights_where_reading_trails(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a step is read after the next has begun; and until then the numbers are the same."""
    from headstart.training import loop

    prompt = loop._Steps.__init__

    def trailing(self: Any, *args: Any) -> None:
        prompt(self, *args)
        self.trailing = 1

    config = TrainConfig(**SETTINGS)
    one, two, three = learner(), learner(), learner()
    whole = train(one, source(), config, quiet=True)
    monkeypatch.setattr(loop._Steps, "__init__", trailing)
    late = train(two, source(), config, quiet=True)
    assert strip(late.history) == strip(whole.history)
    assert all(torch.equal(v, state(two)[k]) for k, v in state(one).items())
    real, calls = three.meta_gradient, 0

    def broken(tasks: hs.TaskBatch) -> Any:
        nonlocal calls
        calls += 1
        assert all(bool(p.isfinite().all()) for p in three.parameters().values())
        grads, stats = real(tasks)
        if calls == 3:
            grads = {k: v * float("nan") for k, v in grads.items()}
        return grads, stats

    three.meta_gradient = broken  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match="diverged at step 3"):
        train(three, source(), config, quiet=True)
    assert calls == 4
    assert all(bool(p.isfinite().all()) for p in three.parameters().values())


def test_deterministic_algorithms_for_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.training.determinism import deterministic

    own, seen = learner(), []

    def asks(tasks: hs.TaskBatch, real: Any = own.meta_gradient) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return real(tasks)

    own.meta_gradient = asks  # type: ignore[method-assign]
    for wanted in (True, False):
        train(own, source(), TrainConfig(**{**SETTINGS, "iterations": 1, "deterministic": wanted}), quiet=True)
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, False]
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="needs CUBLAS_WORKSPACE_CONFIG=:4096:8"), deterministic(True, torch.device("cuda")):
        pass


def test_a_config_can_be_written_down() -> None:
    config = TrainConfig(shots=3, outer_lr_phi=1e-4, optimizer="sgd", optimizer_options="momentum=0.9", deterministic=True)
    assert eval(repr(config)) == config
    flat = RunConfig(learner=LearnerConfig(solver="metasgd", lr=0.1), train=config).flat()
    assert RunConfig.from_flat(flat).train == config


def test_the_configs_of_the_repository_load() -> None:
    files = sorted((Path(__file__).parents[1] / "configs").glob("*.json"))
    assert len(files) == 8
    for file in files:
        assert RunConfig.load(file).flat().items() >= {
            (k, tuple(v) if isinstance(v, list) else v) for k, v in json.loads(file.read_text()).items()
        }


def test_training_works_outside_the_main_thread() -> None:
    results: list[Run] = []
    thread = threading.Thread(
        target=lambda: results.append(train(learner(), source(), TrainConfig(**{**SETTINGS, "iterations": 2}), quiet=True))
    )
    thread.start()
    thread.join()
    assert results[0].iterations == 2


def test_denormal_numbers_are_flushed() -> None:
    torch.set_flush_denormal(False)
    train(learner(), source(), TrainConfig(**{**SETTINGS, "iterations": 1}), quiet=True)
    assert float(torch.tensor(1e-40) * 1.0) == 0.0


# -- ending early ----------------------------------------------------------------------------------------------------------


class Scripted:
    """Validation results one after the other, in place of evaluations."""

    def __init__(self, results: list[tuple[float, float]]) -> None:
        self.results = list(results)

    def __call__(self, *_: Any, **__: Any) -> hs.Evaluation:
        before, after = self.results.pop(0)
        steps = [(before, 0.01), (after, 0.01)]
        return hs.Evaluation("accuracy", after, 0.01, steps, {}, {}, None, 0.0, {}, [after, after])


@pytest.mark.parametrize(
    ("results", "patience", "steps", "why"),
    [
        ([(0.2, v) for v in (0.3, 0.5, 0.4, 0.45, 0.5, 0.9)], 3, 4, "no better validation in the last 3"),
        ([(0.2, v) for v in (0.3, 0.5, 0.4, 0.45, 0.5, 0.9)], 0, 5, ""),
        ([(0.6, 0.3), (0.6, 0.5), (0.6, 0.55), (0.6, 0.5), (0.5, 0.7), (0.5, 0.7)], 0, 3, "adaptation makes validation worse: 60.00 %"),
        ([(0.6, 0.3), (0.6, 0.5), (0.6, 0.5), (0.6, 0.595), (0.6, 0.5), (0.6, 0.5)], 0, 5, ""),
    ],
)
def test_training_ends_where_validation_says_so(
    results: list[tuple[float, float]], patience: int, steps: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headstart.training.loop.evaluate", Scripted(results))
    waves = hs.data.load("sinusoid")
    learner = hs.anil(hs.models.mlp(1, 1, [4]), 1, 0.01, loss="squared_error")
    config = hs.TrainConfig(iterations=5, validate_every=1, patience=patience, tasks=2)
    run = hs.train(learner, waves, config, out=tmp_path / "run", quiet=True)
    assert run.iterations == steps
    assert run.stopped.startswith(why)
    assert bool(run.stopped) == bool(why)
    assert not run.interrupted
    again = hs.train(learner, waves, config, out=tmp_path / "run", resume=True, quiet=True)
    assert (again.iterations, again.stopped) == (steps, run.stopped), "a run that ended goes on to nothing else"
