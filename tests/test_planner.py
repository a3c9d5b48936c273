"""The planner: its formulas on problems with known answers, and whole plans on small models and tasks."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from fakes import source
from headstart.cli import main
from headstart.errors import ConfigError
from headstart.measuring.cost import Cost, peak_memory
from headstart.measuring.objective import Objective, measure_objective
from headstart.planning.candidates import Candidate, Pilot, rank
from headstart.planning.config import PlanConfig, seconds_of
from headstart.planning.search import _Search, plan
from headstart.theory.descent import best_step, expected_decrease, iterations_to, joint_decrease
from headstart.training.config import RunConfig

COST = Cost(1.0, None, {"hvp": 1}, 1)
HERE = Objective(2.0, 0.5, {"w": 1.0}, {"w": 0.0}, {"w": 1.0})


def candidate(**changes: Any) -> Candidate:
    return replace(Candidate("head", 5, 0.1, 0.0, "convex", 0.0, 1.0, 4, "independent", COST, HERE, 1e9), **changes)


def test_a_step_on_a_noisy_quadratic_is_worth_what_the_formula_says() -> None:
    """F = (ℓ/2)x²: with gradient noise of variance v, E F(x − βg) is least at the best β and falls by the expected decrease."""
    ell, x, v = 3.0, 1.7, 2.0
    square = (ell * x) ** 2
    after = lambda b: 0.5 * ell * ((x - b * ell * x) ** 2 + b * b * v)  # noqa: E731
    beta = best_step(square, v, ell)
    assert all(after(beta) <= after(beta * (1 + d)) for d in (-0.1, -0.01, 0.01, 0.1))
    assert 0.5 * ell * x * x - after(beta) == pytest.approx(expected_decrease(square, v, ell))
    assert expected_decrease(square, 0.0, ell) == pytest.approx(0.5 * ell * x * x), "without noise one step ends at the minimum"
    assert expected_decrease(-1.0, 1.0, 1.0) == best_step(1.0, 1.0, 0.0) == 0.0
    assert iterations_to(3.0, 1.0, 0.5) == 4.0
    assert iterations_to(1.0, 2.0, 0.0) == 0.0
    assert iterations_to(2.0, 1.0, 0.0) == math.inf
    with pytest.raises(ConfigError, match="variance=-1"):
        best_step(1.0, -1.0, 1.0)


def test_two_blocks_never_promise_more_than_a_quadratic_gives() -> None:
    """For random positive semidefinite Hessians, stepping both blocks with the doubled curvatures falls at least so much."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        R = torch.randn(6, 6, generator=generator, dtype=torch.double)
        H, x = R @ R.mT, torch.randn(6, generator=generator, dtype=torch.double)
        g = H @ x
        blocks = [(float(g[b] @ g[b]), 0.0, float(torch.linalg.eigvalsh(H[b, b])[-1])) for b in (slice(0, 2), slice(2, 6))]
        step = torch.cat([best_step(s, v, 2 * L) * g[b] for (s, v, L), b in zip(blocks, (slice(0, 2), slice(2, 6)), strict=True)])
        fall = 0.5 * x @ H @ x - 0.5 * (x - step) @ H @ (x - step)
        assert float(fall) >= joint_decrease(*blocks) - 1e-9


class Offset(nn.Module):
    """Output φ + w, so that everything about its meta-objective is known."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.ones_like(x)) + self.shared(x)


def test_local_quantities_of_a_known_objective() -> None:
    """L_S = ½(w + φx − y)² with x = 0 in support and 1 in query: F(w, φ) = ½(γ^N w + φ − c)², γ = 1 − α, y_S = 0, y_Q = c."""
    lr, N = 0.3, 2
    model = Offset().double()
    with torch.no_grad():
        model.head.weight.fill_(2.0)
        model.shared.weight.fill_(0.5)

    class Shifts:
        tasks = 1

        def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
            c = 1.0 + (-1) ** index
            one = torch.ones(1, 1, 1, dtype=torch.double)
            return hs.TaskBatch(0 * one, 0 * one[..., 0], one, c * one[..., 0])

    learner = hs.anil(model, N, lr, loss="squared_error", adapt="head.*", hypergradient=hs.Recursive("double-backward"))
    found = measure_objective(learner, Shifts(), torch.device("cpu"), batches=4, iterations=2)
    gamma = (1 - lr) ** N
    errors = [gamma * 2.0 + 0.5 - c for c in (2.0, 0.0, 2.0, 0.0)]
    assert found.loss == pytest.approx(sum(0.5 * e * e for e in errors) / 4)
    mean = sum(errors) / 4
    variance = sum((e - mean) ** 2 for e in errors) / 3
    assert found.variance["phi"] == pytest.approx(variance)
    assert found.square["phi"] == pytest.approx(mean**2 - variance / 4)
    assert found.square["w"] == pytest.approx(gamma**2 * found.square["phi"])
    assert found.smoothness == pytest.approx({"w": gamma**2, "phi": 1.0}, rel=1e-5)


def test_ranking() -> None:
    slow, fast = candidate(steps=1, cost=replace(COST, seconds=2.0)), candidate(steps=3)
    stuck = candidate(steps=10, start=replace(HERE, square={"w": -1.0}))
    broken = candidate(steps=20, start=Objective(math.inf, None, {"w": 0.0}, {"w": 0.0}, {"w": 0.0}))
    assert [c.steps for c in rank([broken, stuck, slow, fast])] == [3, 1, 10, 20]
    again = [replace(slow, later=HERE), replace(fast, later=replace(HERE, square={"w": 0.1})), candidate(steps=7)]
    assert [c.steps for c in rank(again)] == [1, 3, 7], "what was measured later counts, and before what was not"
    close = candidate(steps=10, cost=replace(COST, seconds=1.2))
    assert [c.steps for c in rank([fast, close])] == [10, 3], "not told apart: where convex, more inner steps first"
    rough = [replace(c, geometry="nonconvex") for c in (close, fast)]
    assert [c.steps for c in rank(rough)] == [3, 10], "and fewer where not"
    good, bad = (replace(c, pilot=Pilot(10, 1.0, "accuracy", mean, 0.01, 0.2)) for c, mean in ((slow, 0.6), (fast, 0.5)))
    assert [c.steps for c in rank([fast, bad, good])] == [1, 3, 3], "pilots count more than predictions"
    tied = [replace(c, pilot=Pilot(10, 1.0, "accuracy", mean, 0.05, 0.2)) for c, mean in ((slow, 0.6), (fast, 0.55))]
    assert rank(tied)[0].steps == 3, "not told apart: the cheaper step first"
    errors = [replace(c, pilot=Pilot(10, 1.0, "squared error", mean, 0.01, 2.0)) for c, mean in ((slow, 0.6), (fast, 0.5))]
    assert rank(errors)[0].steps == 3, "less error is better"


@pytest.mark.parametrize("pilot", [False, True])
def test_a_plan_for_pictures(pilot: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hs.models.conv4(1, 5, 16, filters=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small = hs.TrainConfig(queries=3, tasks=16, sampling="dense", validation_episodes=20)
    found = plan(model, source(), small, PlanConfig(("head", "last:2", "nothing.*"), (1, 4), seconds=8, pilot=pilot))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the model stays as it is"
    by_key = {(c.adapt, c.steps, c.l2 > 0): c for c in found.candidates}
    wanted = {
        ("head", 1, False),
        ("head", 4, False),
        ("head", 1, True),
        ("head", 4, True),
        ("last:2", 1, False),
        ("last:2", 4, False),
    }
    assert wanted - {("last:2", 4, False)} <= set(by_key) <= wanted, "on a busy machine the dearest may not fit"
    if pilot:
        rounds = [c.pilot.round for c in found.candidates if c.pilot]
        assert rounds == sorted(rounds, reverse=True), "those that got further come first"
        assert found.recommended.pilot is not None
        assert not all(c.pilot.apart for c in found.candidates if c.pilot)
        return
    assert by_key["head", 4, False].geometry == "convex"
    l2 = by_key["head", 4, True]
    assert l2.geometry == "strongly convex"
    assert l2.mu >= l2.l2 * (1 - 1e-6)
    assert by_key["last:2", 4, False].geometry == "nonconvex"
    assert by_key["head", 4, False].cost.calls["hvp"] == 4 * 16
    assert by_key["last:2", 4, False].sampling == "independent", "a pool pays for a linear head only"
    assert any("nothing.* is left out" in note for note in found.notes)
    assert any(c.pilot is not None for c in found.candidates) == pilot
    assert found.candidates == rank(found.candidates)
    assert "recommended: " in str(found)
    config = RunConfig(train=small)
    folder = found.save(tmp_path / "plan", config)
    written = json.loads((folder / "plan.json").read_text())
    entry = written["candidates"][0]
    assert {"adapt", "geometry", "mu", "L", "steps", "lr", "predicted", "measured"} <= entry.keys()
    assert written["recommended"] == entry
    ready = RunConfig.load(folder / "config.json")
    assert (ready.learner.adapt, ready.learner.steps, ready.learner.lr) == (entry["adapt"], entry["steps"], entry["lr"])
    assert ready.train.iterations == found.iterations()


def test_a_plan_where_nothing_works() -> None:
    with pytest.raises(ConfigError, match="none of adapt="):
        plan(hs.models.conv4(1, 5, 16, filters=4), source(), hs.TrainConfig(), PlanConfig(("nothing.*",), (1,), seconds=1))


def test_regressions_and_samplers_of_ones_own() -> None:
    waves = hs.data.load("sinusoid")
    own = SimpleNamespace(train=hs.data.Sinusoid(5, 5, 4), validation=hs.data.Sinusoid(5, 5, 4, stream="validation"))
    for data in (waves, own):
        torch.manual_seed(0)
        settings = hs.TrainConfig(shots=5, queries=5, tasks=4, validation_episodes=10)
        found = plan(hs.models.mlp(1, 1, [8]), data, settings, PlanConfig(("head", "all"), (1, 2), seconds=1, pilot=True))
        assert found.recommended.pilot is not None
        assert found.recommended.pilot.metric == "squared error"
        assert {c.geometry for c in found.candidates if c.adapt == "all"} <= {"nonconvex", "strongly convex", "not measured"}


def test_budgets() -> None:
    for wrong in ("ten", "10x", "", "m"):
        with pytest.raises(ConfigError, match="budget="):
            seconds_of(wrong)
    with pytest.raises(ConfigError, match="budget=0"):
        PlanConfig(seconds=0)
    with pytest.raises(ConfigError, match="steps="):
        PlanConfig(steps=(0,))


def test_peak_memory_sees_a_large_tensor() -> None:
    hs.tune_process()
    kept = [torch.ones(50 * 2**20 // 4) for _ in range(8)]  # memory that was used before, and stays with the process
    del kept
    gc.collect()  # what other tests left must not be freed in between
    used = peak_memory(lambda: torch.ones(256 * 2**20 // 4).sum(), torch.device("cpu"))
    assert used is None or 200 < used < 300


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hs.data, "load", lambda *_, **__: source())
    monkeypatch.chdir(tmp_path)
    small = ["--filters", "4", "--queries", "3", "--tasks", "4", "--validation-episodes", "10"]
    assert main(["plan", *small, "--budget", "2s", "--candidates", "head,last:2", "--inner-steps", "1", "3", "--no-pilot"]) == 0
    out = capsys.readouterr().out
    assert "recommended: " in out
    assert "headstart train --config plans/glyphs/config.json" in out
    page = Path("plans/glyphs/report.html").read_text()
    assert page.count("<svg") == 3
    assert "Eigenvalues of the inner Hessian" in page
    assert main(["train", "--config", "plans/glyphs/config.json", "--iterations", "2", "--out", "run", "--test-episodes", "10"]) == 0
    few = ["--candidates", "head", "--inner-steps", "1", "3"]
    assert main(["plan", *small, "--budget", "2s", *few, "--no-pilot", "--out", "plans/given"]) == 0
    assert RunConfig.load(Path("plans/given/config.json")).train.sampling == "independent", "tasks were given"
    free = ["--filters", "4", "--queries", "3", "--validation-episodes", "10"]
    assert main(["plan", *free, "--budget", "2s", *few, "--no-pilot", "--out", "plans/pooled"]) == 0
    assert RunConfig.load(Path("plans/pooled/config.json")).train.sampling == "dense", "as training would draw them"
    capsys.readouterr()
    assert main(["plan", *small, "--budget", "2s", *few, "--out", "plans/raced"]) == 0
    assert "outer steps (" in capsys.readouterr().out
    assert "Candidates, best first" in Path("plans/raced/report.html").read_text()
    assert main(["train", *small, "--plan", "2s", "--out", "planned", "--test-episodes", "10"]) == 0
    found = json.loads(Path("plans/planned/plan.json").read_text())["recommended"]
    config = RunConfig.load("planned/config.json").learner
    assert (config.adapt, config.steps, config.lr, config.l2) == tuple(found[k] for k in ("adapt", "steps", "lr", "l2"))
    assert main(["plan", *small, "--budget", "soon"]) == 2
    assert "write a duration such as 90s" in capsys.readouterr().err


@pytest.mark.parametrize(("head", "kept"), [(True, [10]), (False, [1])])
def test_where_little_fits_a_head_keeps_its_largest_number_of_steps(head: bool, kept: list[int]) -> None:
    """Steps of a head cost next to nothing and help; those of a body are what takes long."""

    class Bench:
        def is_head(self, adapt: str) -> bool:
            return head

        def cost(self, adapt: str, choice: Any) -> Any:
            return SimpleNamespace(seconds=10.0)

    search = _Search(Bench(), PlanConfig(steps=(1, 5, 10), seconds=60), SimpleNamespace())  # type: ignore[arg-type]
    assert list(search._costs("some")) == kept
    assert search.notes == [f"some with N = 5 or {'less' if head else 'more'} is left out: fewer than 50 outer steps fit 15 s"]
