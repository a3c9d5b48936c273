"""Callbacks: called at their moments, without influence but by what they do, kept over resumptions, and blamed for their faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import headstart as hs
from fakes import source
from headstart.errors import CallbackError, CheckpointError, ConfigError
from headstart.training import checkpoint
from headstart.training.config import RunConfig
from headstart.training.loggers import CALLBACKS, Logger, callbacks_of
from headstart.training.loop import LAST, METRICS, train
from headstart.training.run import start
from headstart.training.stopping import Stopping
from test_training import strip

SETTINGS: dict[str, Any] = {"tasks": 3, "queries": 2, "iterations": 6, "validate_every": 2, "validation_episodes": 4}
CONFIG = hs.TrainConfig(**SETTINGS)


def learner(**options: Any) -> hs.MetaLearner:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5))
    return hs.anil(model, 2, 0.2, **options)


def same(one: Path, two: Path) -> bool:
    """Whether the last checkpoints of two run folders hold the same tensors: weights, the optimizer's, and those of callbacks."""
    a, b = load_file(one / LAST), load_file(two / LAST)
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


class Diary(hs.Callback):
    """Notes every call, and draws random numbers in each."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def note(self, what: str, training: hs.Training) -> None:
        torch.rand(3)
        self.calls.append((what, training.step))

    def begin(self, training: hs.Training) -> None:
        self.note("begin", training)

    def before(self, training: hs.Training) -> None:
        self.note("before", training)

    def step(self, training: hs.Training) -> None:
        self.note("step", training)

    def metrics(self, training: hs.Training, line: Mapping[str, Any]) -> None:
        self.note("validated" if "validation" in line else "line", training)

    def validation(self, training: hs.Training, result: hs.Evaluation) -> None:
        assert result.mean == training.run.history[-1]["validation"]
        self.note("validation", training)

    def end(self, training: hs.Training) -> None:
        self.note("end", training)


def test_the_moments_and_that_they_change_nothing(tmp_path: Path) -> None:
    diary, config = Diary(), hs.TrainConfig(**{**SETTINGS, "iterations": 2})
    plain = train(learner(), source(), config, out=tmp_path / "one", quiet=True)
    watched = train(learner(), source(), config, out=tmp_path / "two", quiet=True, callbacks=[diary])
    assert same(tmp_path / "one", tmp_path / "two")
    assert strip(plain.history) == strip(watched.history)
    validated = [("validated", 0), ("validation", 0)]
    first = [("begin", 0), ("step", 0), *validated, ("before", 0), ("line", 1), ("step", 1), ("before", 1), ("line", 2), ("step", 2)]
    assert diary.calls == [*first, ("validated", 2), ("validation", 2), ("end", 2)]


class Average(hs.Callback):
    """A moving average of the weights, which training is pulled towards: a state of tensors and a number, with influence."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at, self.mean, self.seen = dies_at, {}, 0  # type: ignore[var-annotated]

    def step(self, training: hs.Training) -> dict[str, int] | None:
        if training.step == self.dies_at:
            raise ZeroDivisionError("of its own")
        now = {k: v.detach() for k, v in training.learner.parameters().items()}
        self.mean = {k: v.clone() if k not in self.mean else 0.9 * self.mean[k] + 0.1 * v for k, v in now.items()}
        self.seen += 1
        with torch.no_grad():
            for name, value in now.items():
                value.lerp_(self.mean[name], 0.5)
        return {"seen": self.seen}

    def state(self) -> dict[str, Tensor | int]:
        return {**self.mean, "seen": self.seen}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.mean = {k: v for k, v in state.items() if k != "seen"}
        self.seen = state["seen"]


@pytest.mark.parametrize("dies_at", [0, 1, 3, 4, 6])
def test_one_that_raises_ends_the_run_by_name_and_the_run_goes_on_bit_for_bit(dies_at: int, tmp_path: Path) -> None:
    whole = train(learner(), source(), CONFIG, out=tmp_path / "whole", quiet=True, callbacks=[Average()])
    diary = Diary()
    with pytest.raises(
        CallbackError, match=rf"'Average' failed in step\(\) at step {dies_at}: ZeroDivisionError: of its own.*can be resumed"
    ):
        train(learner(), source(), CONFIG, out=tmp_path / "cut", quiet=True, callbacks=[diary, Average(dies_at)])
    assert diary.calls[-1] == ("end", dies_at)
    rest = train(learner(), source(), CONFIG, out=tmp_path / "cut", resume=True, quiet=True, callbacks=[Average()])
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert strip(rest.history) == strip(whole.history)


def test_a_state_needs_its_callback_and_a_name_of_its_own(tmp_path: Path) -> None:
    short = hs.TrainConfig(**{**SETTINGS, "iterations": 2})
    train(learner(), source(), short, out=tmp_path, quiet=True, callbacks=[Average()])
    with pytest.raises(CheckpointError, match=r"holds the state of the callback 'Average'.*give it again"):
        train(learner(), source(), CONFIG, out=tmp_path, resume=True, quiet=True)
    own = learner()
    checkpoint.read(tmp_path / LAST).into(own, torch.optim.AdamW(list(own.parameters().values())), all_there=False)
    with pytest.raises(ConfigError, match="two callbacks that keep a state are named 'Average'"):
        train(learner(), source(), short, out=tmp_path / "two", quiet=True, callbacks=[Average(), Average()])


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_with_the_states_of_then(tmp_path: Path) -> None:
    whole = train(learner(), source(), CONFIG, out=tmp_path / "whole", quiet=True, callbacks=[Average()])
    train(learner(), source(), CONFIG, out=tmp_path / "cut", quiet=True, callbacks=[Average()])
    (tmp_path / "cut" / LAST).write_bytes(b"nothing")
    average = Average()
    rest = train(learner(), source(), CONFIG, out=tmp_path / "cut", resume=True, quiet=True, callbacks=[average])
    assert "used instead: last.previous.safetensors" in rest.notes[0]
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert strip(rest.history) == strip(whole.history)
    assert average.seen == CONFIG.iterations + 1


class Ends(hs.Callback):
    """Ends training at a step, as a function of the step."""

    def __init__(self, at: int, reason: Any = "enough") -> None:
        self.at, self.reason = at, reason

    def reason_to_stop(self, training: hs.Training) -> Any:
        return self.reason if training.step >= self.at else ""


def test_a_reason_to_stop(tmp_path: Path) -> None:
    run = train(learner(), source(), CONFIG, out=tmp_path, quiet=True, callbacks=[Ends(3)])
    assert (run.iterations, run.stopped, run.interrupted) == (3, "enough", False)
    with pytest.raises(ConfigError, match=r"'Ends' failed in reason_to_stop\(\) at step 0: it returned True; return the reason as text"):
        train(learner(), source(), CONFIG, quiet=True, callbacks=[Ends(0, reason=True)])
    assert train(learner(), source(), CONFIG, quiet=True, callbacks=[Ends(0, reason=None)]).iterations == CONFIG.iterations


class Returns(hs.Callback):
    def __init__(self, what: Any) -> None:
        self.what = what

    def step(self, training: hs.Training) -> Any:
        return self.what


@pytest.mark.parametrize(("what", "said"), [(1.5, "it returned a float"), ({"loss": torch.ones(2)}, "Tensor is not JSON serializable")])
def test_what_cannot_be_kept_is_refused_at_once(what: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(hs.HeadstartError, match=f"'Returns' failed in step.. at step 0.*{said}"):
        train(learner(), source(), CONFIG, out=tmp_path, quiet=True, callbacks=[Returns(what)])


@pytest.mark.parametrize(("one", "said"), [(Diary, "the class Diary; make one with"), (print, "a builtin_function"), (None, "a NoneType")])
def test_what_is_no_callback_is_refused(one: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train(learner(), source(), CONFIG, quiet=True, callbacks=[one])


# -- schedules -------------------------------------------------------------------------------------------------------------


def gradient_of(own: hs.MetaLearner, at: hs.MetaLearner) -> dict[str, Tensor]:
    """The meta-gradient on one batch, at the weights of another learner."""
    with torch.no_grad():
        for name, value in own.parameters().items():
            value.copy_(at.parameters()[name])
    tasks = hs.data.Episodes(source().train, ways=5, shots=1, queries=2, tasks=3).batch(0)
    return own.meta_gradient(tasks)[0]


class Gradients(hs.Callback):
    """The gradient that training takes next, after those before it chose how."""

    def __init__(self) -> None:
        self.found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def before(self, training: hs.Training) -> None:
        own = training.learner
        start = {k: v.detach().clone() for k, v in own.parameters().items()}
        self.found.append((gradient_of(own, own), start))


def multi_step(step: int) -> list[float] | None:
    """MAML++'s weights for two inner steps, over four outer ones."""
    return [0.0, (1 - step / 4) / 2, (1 + step / 4) / 2] if step < 4 else None


def test_schedules_take_the_gradient_that_they_say() -> None:
    """At each outer step the gradient is that of a learner that was made for it."""
    own, seen = learner(hypergradient=hs.Unrolled(), adapt="all"), Gradients()
    order = hs.Schedule(hypergradient=lambda step: hs.FirstOrder() if step < 2 else None)
    weights = hs.Schedule(step_weights=multi_step)
    before = own.hypergradient
    train(own, source(), CONFIG, quiet=True, callbacks=[order, weights, seen])
    assert own.hypergradient is before
    assert own.step_weights is None
    for step, (found, at) in enumerate(seen.found):
        share = min(step / 4, 1)
        made = learner(
            adapt="all",
            hypergradient=hs.FirstOrder() if step < 2 else hs.Recursive(),
            step_weights=[0, (1 - share) / 2, (1 + share) / 2],
        )
        with torch.no_grad():
            for name, value in made.parameters().items():
                value.copy_(at[name])
        expected = gradient_of(made, made)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    first, exact = (gradient_of(learner(adapt="all", hypergradient=how), own) for how in (hs.FirstOrder(), hs.Unrolled()))
    assert not torch.allclose(first["1.weight"], exact["1.weight"], rtol=1e-2), "else the test could not tell them apart"


def test_schedules_resume_bit_for_bit(tmp_path: Path) -> None:
    own = [hs.Schedule(hypergradient=lambda step: hs.FirstOrder() if step < 3 else None, step_weights=multi_step)]
    whole = train(learner(adapt="all"), source(), CONFIG, out=tmp_path / "whole", quiet=True, callbacks=own)
    with pytest.raises(CallbackError):
        train(learner(adapt="all"), source(), CONFIG, out=tmp_path / "cut", quiet=True, callbacks=[*own, Raises(at=3)])
    rest = train(learner(adapt="all"), source(), CONFIG, out=tmp_path / "cut", resume=True, quiet=True, callbacks=own)
    train(learner(adapt="all"), source(), CONFIG, out=tmp_path / "plain", quiet=True)
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert strip(rest.history) == strip(whole.history)
    assert not same(tmp_path / "whole", tmp_path / "plain")


class Raises(hs.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def before(self, training: hs.Training) -> None:
        if training.step == self.at:
            raise OSError("no network")


def test_weights_that_cannot_be_are_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"'Schedule' failed in before.. at step 0: step_weights=.*give 3 weights"):
        train(learner(), source(), CONFIG, quiet=True, callbacks=[hs.Schedule(step_weights=lambda step: [1.0])])
    for wrong in ([0.0, 1.0, float("nan")], "equal", [[0, 0, 1]]):
        with pytest.raises(ConfigError, match="step_weights="):
            learner(step_weights=wrong)


# -- loggers ---------------------------------------------------------------------------------------------------------------


class Kept(Logger):
    """A tracker in memory."""

    opened: list[dict[str, Any]]

    def __init__(self) -> None:
        self.opened, self.seen, self.closed = [], [], []  # type: ignore[var-annotated]

    def open(self, training: hs.Training, settings: dict[str, Any]) -> None:
        self.opened.append(settings)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.seen.append((step, values))

    def close(self, training: hs.Training) -> None:
        self.closed.append(training.run.interrupted)


def test_a_logger_gets_every_line_by_name() -> None:
    kept = Kept()
    run = train(
        learner(), source(), CONFIG, quiet=True, callbacks=[kept, hs.Observer((2,), lambda own, step: {"a": {"b": step}, "t": "x"})]
    )
    assert [step for step, _ in kept.seen] == [line["step"] for line in run.history]
    assert [v for _, v in kept.seen if "observed/a/b" in v] == [{"observed/a/b": 2.0}]
    validated = [v["validation/accuracy"] for _, v in kept.seen if "validation/accuracy" in v]
    assert validated == [line["validation"] for line in run.history if "validation" in line]
    assert [v["train/loss"] for _, v in kept.seen if "train/loss" in v] == [line["loss"] for line in run.history if "loss" in line]
    assert kept.opened[0]["validate_every"] == 2
    assert kept.closed == [False]


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_shows_what_the_run_kept_over_a_resumption_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(CallbackError, match="no network"):  # at step 3, after the checkpoint of step 2: step 3 is done again
        train(learner(), source(), CONFIG, out=tmp_path, quiet=True, callbacks=[*callbacks_of("tensorboard"), Raises(at=3)])
    run = train(learner(), source(), CONFIG, out=tmp_path, quiet=True, resume=True, callbacks=callbacks_of("tensorboard"))
    found = events(tmp_path / "logs" / "tensorboard")
    losses = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in run.history if "loss" in line]
    assert found["train/loss"] == losses
    assert [step for step, _ in found["validation/accuracy"]] == [0, 2, 4, 6]


def test_a_library_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow.tracking", "trackio": "trackio"}.items():
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match=rf"pip install 'headstart\[{name}\]'"):
            callbacks_of(name)
    for wrong, said in {
        "tensorbord": "did you mean 'tensorboard'",
        "nowhere:Thing": "cannot be loaded",
        "headstart:TrainConfig": "must give",
    }.items():
        with pytest.raises(ConfigError, match=said):
            callbacks_of(wrong)
    assert callbacks_of(" , ") == []


def test_the_extras_are_declared() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(CALLBACKS) <= set(project["optional-dependencies"])


class ByName(Raises):
    def __init__(self) -> None:
        super().__init__(at=2)


def test_a_run_of_a_config_has_its_callbacks_and_is_told_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from the config, which a resumed run has again; logs may change, callbacks may not."""
    pytest.importorskip("tensorboard")
    own: dict[str, Any] = {"data": "sinusoid", "iterations": 3, "validate_every": 3, "validation_episodes": 4, "tasks": 2, "lr": 0.01}
    config = RunConfig.from_flat({**own, "log": "tensorboard", "callbacks": "test_callbacks:ByName"})
    with pytest.raises(CallbackError, match=r"'ByName' failed in before.. at step 2"):
        start(config, tmp_path / "run", quiet=True)
    kept = RunConfig.load(tmp_path / "run" / "config.json")
    assert (kept.log, kept.callbacks) == ("tensorboard", "test_callbacks:ByName")
    with pytest.raises(ConfigError, match="callbacks='test_callbacks:ByName'"):
        start(RunConfig.from_flat(own), tmp_path / "run", quiet=True, resume=True)
    monkeypatch.setattr(ByName, "before", lambda self, training: None)
    without = RunConfig.from_flat({**own, "callbacks": "test_callbacks:ByName"})
    assert start(without, tmp_path / "run", quiet=True, resume=True)[0].iterations == 3
    assert (tmp_path / "run" / "logs" / "tensorboard").is_dir()
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    start(without, tmp_path / "run", quiet=True, overwrite=True)
    assert not (tmp_path / "run" / "logs").exists()


def test_every_run_stops_by_its_validations() -> None:
    """What ends a run by itself is a callback like any other (tests/test_training.py says when)."""
    lines = [{"step": i, "validation": v} for i, v in enumerate([0.5, 0.4, 0.3])]
    training = hs.Training(learner(), hs.TrainConfig(patience=2, validate_every=1), hs.Run(iterations=2, history=lines))
    assert "no better validation" in Stopping().reason_to_stop(training)
    lines.append({"step": 3, "loss": 1.0})
    assert Stopping().reason_to_stop(training) == "", "nothing was validated since it was asked last"


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio"])
def test_a_tracker_goes_on_with_its_run(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real libraries, kept on this machine, where they are installed."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip(tracker)
    with pytest.raises(CallbackError, match="no network"):
        train(learner(), source(), CONFIG, out=tmp_path / "run", quiet=True, callbacks=[*callbacks_of(tracker), Raises(at=3)])
    kept = json.loads((tmp_path / "run" / "logs" / "ids.json").read_text())[tracker]
    run = train(learner(), source(), CONFIG, out=tmp_path / "run", quiet=True, resume=True, callbacks=callbacks_of(tracker))
    assert json.loads((tmp_path / "run" / "logs" / "ids.json").read_text()) == {tracker: kept}
    if tracker == "mlflow":
        import mlflow

        client = mlflow.tracking.MlflowClient()
        found = client.get_run(kept)
        assert found.info.status == "FINISHED"
        assert found.data.params["validate_every"] == "2"
        steps = {e.step: e.value for e in client.get_metric_history(kept, "train/loss")}
        assert steps == {line["step"]: line["loss"] for line in run.history if "loss" in line}
    if tracker == "trackio":
        from trackio.sqlite_storage import SQLiteStorage

        logged = SQLiteStorage.get_logs("headstart", kept)
        assert {e["step"]: e["train/loss"] for e in logged if "train/loss" in e} == {
            line["step"]: line["loss"] for line in run.history if "loss" in line
        }
    if tracker == "wandb":
        assert len(list((tmp_path / "run" / "logs" / "wandb").glob(f"offline-run-*-{kept}"))) == 2
