"""Several processes train one learner: the same losses, statistics, weights and results as one alone, bit for bit where parts are given."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

import headstart as hs
from fakes import source, split
from headstart.data import Sinusoid
from headstart.data.augment import BY_NAME
from headstart.data.drawing import Custom, sampler_of
from headstart.errors import ConfigError, DataError, HeadstartError, RankError
from headstart.keeping import tensors_of
from headstart.ranks import Ranks, _fresh, share
from headstart.training.config import EpisodeConfig, RunConfig
from headstart.training.divided import Division, digest
from headstart.training.run import start
from processes import together

CONFIG = hs.TrainConfig(tasks=4, queries=3, iterations=3, validate_every=2, validation_episodes=4, outer_lr=0.01)


class Weighted:
    """Sine waves as a user's own tasks, with weights that differ, in double precision."""

    tasks, prefetch = 4, True

    def __init__(self, fails_in: str = "") -> None:
        self.fails_in = fails_in

    def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
        if self.fails_in == os.environ.get("TEST_RANK", "none") and index == 2:
            raise DataError("the file is gone")
        b, weight = Sinusoid(6, 7, 4, seed=3).batch(index), torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.double)
        x, y = (torch.as_tensor(v).double() for v in (b.support_x, b.support_y))
        return hs.TaskBatch(x, y, b.query_x.double(), b.query_y.double(), task_weight=weight)


class Few(Weighted):
    """Batches of fewer tasks than it says, so that parts are empty."""

    def batch(self, index: int, device: Any = "cpu") -> hs.TaskBatch:
        return super().batch(index)[: 1 + index % 2].own_pool()


class Own:
    def __init__(self, train: Any) -> None:
        self.train = train
        self.validation = self.test = Weighted()


def pictures() -> hs.MetaLearner:
    torch.manual_seed(0)
    model = hs.models.conv4(1, 5, 16, filters=2)
    model.body.append(nn.Dropout(0.2))
    model.register_buffer("mask", torch.tensor([float("-inf"), 1.0]))  # what no part moves stays as it is
    return hs.anil(model, steps=2, lr=0.4)


def waves(lr: float | str = 0.01) -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.maml(hs.models.mlp(1, 1, (6,)).double(), steps=1, lr=lr, loss="squared_error")


def compared() -> hs.MetaLearner:
    torch.manual_seed(0)
    return hs.metabaseline(hs.models.conv4(1, 5, 16, filters=2, head="cosine"))


class Each(hs.Callback):
    """Finds its rank, and wants to end at a step of its own."""

    def step(self, training: hs.Training) -> dict[str, int]:
        return {"rank": Ranks.present().rank}

    def reason_to_stop(self, training: hs.Training) -> str:
        rank = Ranks.present().rank
        return f"rank {rank} has enough" if training.step == 3 - rank else ""


class Speaks(hs.Callback):
    """Stands for a logger."""

    def end(self, training: hs.Training) -> None:
        Path(str(training.run.out), f"spoke-{Ranks.present().rank}").touch()


def live(dtype: torch.dtype = torch.float64) -> hs.MetaLearner:
    """Batch statistics in what adapts, so that running averages move on by its first run."""
    torch.manual_seed(0)
    return hs.maml(nn.Sequential(nn.Linear(1, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).to(dtype), 1, 0.01, loss="squared_error")


def outcome(learner: hs.MetaLearner, data: Any, config: hs.TrainConfig, **how: Any) -> dict[str, Any]:
    run = hs.train(learner, data, config, quiet=True, **how)
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in run.history]
    return {"state": {k: v.detach().clone() for k, v in tensors_of(learner).items()}, "history": history, "best": run.best}


DENSE = replace(CONFIG, sampling="dense", tasks=6, pools=3, augment="crop")
EXACT: dict[str, Any] = {
    "dense": lambda: outcome(pictures(), source(), replace(DENSE, validation_episodes=210)),
    "ranges": lambda: outcome(pictures(), source(), replace(CONFIG, pools=4, fewest_ways=2, augment="affine", clip=1e-3)),
    "weights": lambda: outcome(waves(), Own(Weighted()), replace(CONFIG, pools=3)),
    "measured": lambda: outcome(waves("auto"), Own(Weighted()), replace(CONFIG, pools=2, iterations=1)),
    "empty parts": lambda: outcome(waves(), Own(Few()), replace(CONFIG, pools=3)),
    "live": lambda: outcome(live(), Own(Weighted()), replace(CONFIG, pools=4)),
    "pretrained": lambda: outcome(compared(), source(), replace(CONFIG, pools=2, iterations=1, pretrain=4)),
    "annealed": lambda: outcome(live(torch.float32), hs.data.load("sinusoid"), replace(CONFIG, shots=5, pools=2, first_order=0.5)),
    "one pool": lambda: outcome(pictures(), source(), replace(DENSE, pools=1)),
}
"""With a number of parts that is given, everything is the same, bit for bit."""


def near() -> dict[str, Any]:
    """Without one, ranks take tasks, and sums are in another order."""
    return outcome(waves(), Own(Weighted()), CONFIG)


def evaluated() -> dict[str, Any]:
    """Of episodes from a pool that a head adapts to, of those that run through the model, and of a user's own."""
    ranks, found = Ranks.present(), {}
    for name, learner in {"head": pictures(), "all": hs.maml(pictures().model, steps=1, lr=0.1)}.items():
        found[name] = hs.evaluate(learner, split(6, "test", each=[8, 9, 7, 8, 8, 12]), shots=1, queries=3, episodes=210, ranks=ranks)
    found["own"] = hs.evaluate(waves(), Weighted(), episodes=9, ranks=ranks)
    return found


def work(rank: int, folder: Path) -> dict[str, Any]:
    return {name: make() for name, make in EXACT.items()} | {"near": near(), "evaluated": evaluated()}


def assert_same(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    assert one["history"] == other["history"], name
    assert one["best"] == other["best"]
    assert one["state"].keys() == other["state"].keys()
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), f"{name}: {key}"


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    torch.set_num_threads(1)
    return work(0, Path())


@pytest.mark.parametrize("world", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_what_one_gives(world: int, alone: dict[str, Any], tmp_path: Path) -> None:
    """Weights, running averages, losses and validation; also where ranks do not divide the parts, or are more than there are."""
    for rank, found in enumerate(together(world, work, tmp_path)):
        assert not isinstance(found, str), found
        for name in EXACT:
            assert_same(found[name], alone[name], f"{name}, rank {rank} of {world}")
        for key, value in alone["near"]["state"].items():
            torch.testing.assert_close(found["near"]["state"][key], value, rtol=1e-9, atol=1e-12)
        losses = [[e["loss"] for e in f["near"]["history"] if "loss" in e] for f in (found, alone)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
        assert found["evaluated"] == alone["evaluated"]


def test_running_averages_have_moved_in_these_cases(alone: dict[str, Any]) -> None:
    state = alone["live"]["state"]
    assert float(state["model/1.running_mean"].abs().max()) > 0
    assert alone["dense"]["state"]["model/mask"].tolist() == [float("-inf"), 1.0]


# -- what goes wrong, and going on -------------------------------------------------------------------------------------------


def hostile(rank: int, folder: Path) -> dict[str, Any]:
    os.environ["TEST_RANK"] = str(rank)
    found: dict[str, Any] = {}

    def failing(name: str, run: Any) -> None:
        try:
            found[name] = run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"

    failing("a part", lambda: outcome(waves(), Own(Weighted("1")), CONFIG))
    other = waves()
    if rank == 1:
        with torch.no_grad():
            other.model[0].bias[0] += 1e-9
    failing("a model", lambda: outcome(other, Own(Weighted()), CONFIG))
    failing("data", lambda: outcome(waves(), Own(Weighted() if rank else Sinusoid(6, 7, 4)), CONFIG))
    failing("settings", lambda: outcome(waves(), Own(Weighted()), replace(CONFIG, outer_lr=0.01 * (1 + rank))))
    failing("an evaluation", lambda: hs.evaluate(waves(), Weighted("1"), episodes=16, ranks=Ranks.present()))
    failing("the first", lambda: Ranks.present().first(lambda: 1 / 0))
    learner, calls = waves(), 0
    meta_gradient = learner.meta_gradient

    def stopped(tasks: hs.TaskBatch) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3 and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return meta_gradient(tasks)

    learner.meta_gradient = stopped  # type: ignore[method-assign]
    config = replace(CONFIG, pools=2, iterations=9)
    run = hs.train(learner, Own(Weighted()), config, out=folder / "run", quiet=True)
    found["stopped"] = (run.interrupted, run.iterations)
    each = hs.train(waves(), Own(Weighted()), config, quiet=True, callbacks=[Each()])
    found["each"] = (each.stopped, each.iterations, [entry["observed"] for entry in each.history if "observed" in entry])
    return found


def gone_on(rank: int, folder: Path) -> dict[str, Any]:
    return outcome(waves(), Own(Weighted()), replace(CONFIG, pools=2, iterations=9), out=folder / "run", resume=True)


def test_errors_and_ctrl_c_are_agreed_on_and_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error on one rank ends all; a run that two ranks began goes on with three, and ends where one alone would have."""
    monkeypatch.delenv("TEST_RANK", raising=False)
    first, second = together(2, hostile, tmp_path)
    assert not isinstance(second, str), second
    for name in ("a part", "an evaluation"):
        assert (first[name], second[name]) == ("RankError: rank 1 of 2 ended: the file is gone", "DataError: the file is gone")
    for name, what in {"a model": "model", "data": "data", "settings": "configuration"}.items():
        for found in (first, second):
            assert found[name].startswith(f"RankError: rank 1 has another {what} than rank 0"), found[name]
    assert first["the first"] == "ZeroDivisionError: division by zero"
    assert second["the first"] == "RankError: rank 0 of 2 ended: ZeroDivisionError: division by zero"
    assert first["stopped"] == second["stopped"] == (True, 3)
    assert first["each"] == second["each"] == ("rank 1 has enough", 2, [{"rank": 0}] * 3)
    three = together(3, gone_on, tmp_path)
    whole = outcome(waves(), Own(Weighted()), replace(CONFIG, pools=2, iterations=9))
    for found in three:
        assert not isinstance(found, str), found
        assert_same(found, whole, "resumed")


def commanded(rank: int, folder: Path) -> dict[str, Any]:
    """The command line, whose open settings one rank decides; and a plan, in which all must take the same turns."""
    from headstart.cli import main

    options = ["--data", "sinusoid", "--adapt", "all", "--steps", "1", "--hidden", "6", "--shots", "5", "--queries", "5", "--tasks", "4"]
    options += ["--validate-every", "3", "--validation-episodes", "6", "--test-episodes", "150", "--minutes", "0.02"]
    code = main(["train", *options, "--log", "test_ranks:Speaks", "--out", str(folder / "run")])
    again = main(["train", *options, "--out", str(folder / "run")])  # which holds a run already
    small = hs.TrainConfig(shots=5, queries=5, tasks=4, validation_episodes=4)
    weighed = hs.PlanConfig(("head", "all"), (1,), seconds=1)
    found = hs.plan(hs.models.mlp(1, 1, [6]), hs.data.load("sinusoid"), small, weighed, ranks=Ranks.present())
    return {"codes": (code, again), "plan": [(c.name(), c.pilot) for c in found.candidates]}


def test_a_command_and_a_plan_of_two_ranks(tmp_path: Path) -> None:
    first, second = together(2, commanded, tmp_path)
    assert not isinstance(second, str), second
    assert first["codes"] == second["codes"] == (0, 2)
    assert first["plan"] == second["plan"]
    assert any(pilot is not None for _, pilot in first["plan"])
    config = RunConfig.load(tmp_path / "run" / "config.json")
    assert config.train.pools == 2, "decided by the first, so that other numbers of ranks can go on"
    assert isinstance(config.learner.lr, float)
    assert [path.name for path in (tmp_path / "run").glob("spoke*")] == ["spoke-0"]
    again, *_ = start(config, tmp_path / "alone", quiet=True)
    names = [name for name in ("best", "last") if (tmp_path / "run" / f"{name}.safetensors").exists()]
    assert names == ["best", "last"]
    for name in names:
        one, other = (load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("run", "alone"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert again.iterations == config.train.iterations
    assert {"evaluation.json", "report.html", "baselines.json"} <= {path.name for path in (tmp_path / "run").iterdir()}


# -- without other processes ---------------------------------------------------------------------------------------------------


def test_parts_together_are_the_batch() -> None:
    """Of classes with augmentation, of tables' kind and of a user's own; each part has the examples that it uses and no others."""
    own = split(12, "train")
    for sampler in (
        sampler_of(own, ways=5, shots=1, queries=3, tasks=7, augment=BY_NAME["colour"]),
        sampler_of(own, ways=(2, 5), shots=(1, 3), queries=2, tasks=7, augment=BY_NAME["affine"]),
        Sinusoid(3, 4, 7),
        Custom(Weighted()),
    ):
        whole = sampler.batch(2)
        for of in (2, 3, 4):
            parts = sampler.parts(2, range(of), of)
            assert sum(map(len, parts.values())) == len(whole)
            flat = [task for part in parts.values() for task in part]
            for task, same in zip(flat, whole, strict=True):
                for side in ("support", "query"):
                    mine, other = getattr(task, side), getattr(same, side)
                    there = slice(None) if mine.weight is None else mine.weight[0] > 0
                    assert torch.equal(task.take(mine)[0][there], same.take(other)[0][there])
                    assert torch.equal(mine.y, other.y)
                assert task.ways == same.ways
                assert (task.weight is None and same.weight is None) or torch.equal(task.weight, same.weight)
            used = [torch.cat([p.support.index.reshape(-1), p.query.index.reshape(-1)]).unique() for p in parts.values()]
            assert [len(u) for u in used] == [p.pool_size for p in parts.values()]


def test_a_sampler_of_ones_own_may_divide_itself() -> None:
    class Divides(Weighted):
        def parts(self, index: int, which: Any, of: int, device: Any = "cpu") -> dict[int, hs.TaskBatch]:
            return {part: self.batch(10 * index + part) for part in which}

    found = Custom(Divides()).parts(2, [1], 3)
    assert torch.equal(found[1].examples, Weighted().batch(21).examples)


def test_the_pools_of_a_dense_batch_are_drawn_apart() -> None:
    sampler = sampler_of(split(12, "train"), ways=3, shots=1, queries=3, tasks=6, kind="dense", pool_classes=4, pool_examples=5)
    parts = sampler.parts(0, range(3), 3)
    assert [len(p) for p in parts.values()] == [2, 2, 2]
    assert torch.equal(parts[0].examples, sampler.batch(0).examples), "the first pool is the one there was"
    assert not torch.equal(parts[0].examples, parts[1].examples)
    assert torch.equal(sampler.parts(0, [1], 3)[1].examples, parts[1].examples), "whoever draws it"


def test_one_part_is_what_there_was_and_more_are_its_mean() -> None:
    """The gradient of parts, against the gradient of the whole batch, with unequal weights and parts of unequal size."""
    learner, sampler = waves(), Custom(Weighted())
    grads, stats = learner.meta_gradient(sampler.batch(0))
    for parts in (1, 2, 3, 4):
        division = Division(Ranks(), parts)
        found, seen, stop = division.meta_gradient(learner, lambda d=division: d.drawn(sampler, torch.device("cpu"))(0), 5)
        assert not stop
        assert seen.accuracy is None
        assert seen.loss == pytest.approx(stats.loss, rel=1e-13)
        for name, g in grads.items():
            torch.testing.assert_close(found[name], g, rtol=1e-12, atol=1e-14)


def test_running_averages_move_by_the_mean_of_the_parts() -> None:
    learner, sampler = live(), Custom(Weighted())
    learner.model.train()
    mean = learner.model[1].running_mean
    begin, after = mean.clone(), list[Tensor]()
    for tasks in sampler.parts(0, range(3), 3).values():
        mean.copy_(begin)
        learner.meta_gradient(tasks)
        after.append(len(tasks) / 4 * mean)
    mean.copy_(begin)
    count = int(learner.model[1].num_batches_tracked)
    Division(Ranks(), 3).meta_gradient(learner, lambda: sampler.parts(0, range(3), 3), 0)
    torch.testing.assert_close(mean, sum(after), rtol=1e-12, atol=1e-15)  # type: ignore[arg-type]
    assert int(learner.model[1].num_batches_tracked) == count + 1


def test_processes_that_are_started_again_do_not_see_what_earlier_ones_wrote() -> None:
    store = dist.HashStore()
    for attempt in range(3):
        store.set("headstart/2", f"left by one that was killed in attempt {attempt}")
        with ThreadPoolExecutor(3) as pool:
            places = list(pool.map(lambda rank: _fresh(store, rank, 3), (2, 0, 1)))
        assert not places[0].check(["address"]), "as an earlier attempt has written one"
        places[1].set("address", str(attempt))
        assert [place.get("address") for place in places] == [str(attempt).encode()] * 3


def test_shares_are_neighbours_and_complete() -> None:
    for parts in range(9):
        for world in range(1, 7):
            own = [share(parts, world, rank) for rank in range(world)]
            assert [part for one in own for part in one] == list(range(parts))
            assert max(map(len, own)) - min(map(len, own)) <= 1


def test_bad_numbers_of_pools() -> None:
    with pytest.raises(ConfigError, match="pools=5: it must be at most tasks=4"):
        EpisodeConfig(tasks=4, pools=5)
    with pytest.raises(ConfigError, match="pools=0"):
        EpisodeConfig(pools=0)
    assert "so 2 do nothing" in Division.of(EpisodeConfig(tasks=4, sampling="dense"), 4, Ranks(0, 3)).idle()
    assert Division.of(EpisodeConfig(tasks=4), 4, Ranks(0, 9)).parts == 4


def test_digests_tell_apart_what_differs() -> None:
    things = [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), torch.tensor([0.0, -0.0]), {"a": 1}, {"b": 1}, [1], "x", CONFIG]
    assert len({digest(thing) for thing in things}) == len(things)
    assert digest(waves().loss) == digest(waves().loss)
    assert issubclass(RankError, HeadstartError)
