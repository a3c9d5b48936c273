"""The shared part runs once, for any module; what has no influence or no gradient has a defined meaning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart.errors import TaskError
from truth import Truth, distance
from zoo import MODELS, WAYS, Tied, make, tasks_for


class Counted(nn.Linear):
    """A layer that counts the examples it really runs on; what is replayed does not run."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.seen: list[int] = []  # in place: an attribute that is assigned anew is put back

    @property
    def examples(self) -> int:
        return sum(self.seen)

    @examples.setter
    def examples(self, count: int) -> None:
        assert count == 0
        self.seen.clear()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("steps", [0, 1, 20])
@pytest.mark.parametrize("mode", [None, hs.Unrolled(), hs.Recursive()])
@pytest.mark.parametrize("adapt", ["head", "last:2"])
def test_the_body_runs_once_per_example_whatever_N_is(adapt: str, mode: Any, steps: int) -> None:
    body = Counted(3, 4)
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    learner = hs.anil(model, steps, adapt=adapt, hypergradient=mode, lr=0.1)
    x, y = torch.randn(5, 6, 3), torch.randint(2, (5, 6))
    tasks = hs.TaskBatch(x, y, x, y)
    learner.meta_gradient(tasks)  # probes the model, once
    body.examples = 0
    learner.meta_gradient(tasks)
    assert body.examples == tasks.pool_size == 60


def test_a_pool_example_runs_once_however_many_tasks_use_it() -> None:
    body = Counted(3, 4)
    learner = hs.anil(nn.Sequential(body, nn.ReLU(), nn.Linear(4, 2)), lr=0.1)
    index, y = torch.randint(7, (50, 4)), torch.randint(2, (50, 4))
    tasks = hs.TaskBatch.from_pool(torch.randn(7, 3), hs.Side(index, y), hs.Side(index, y))
    learner.meta_gradient(tasks)
    body.examples = 0
    learner.meta_gradient(tasks)
    assert body.examples == 7


@pytest.mark.parametrize(
    ("model", "adapt", "expected"),
    [
        ("conv", "last:2", ["0", "1", "2", "3", "4"]),
        ("used twice", "head", []),  # only the input of the head is recorded
        ("used twice", "again.*", ["first"]),
        ("two inputs", "last:2", ["left"]),  # the norm counts with the recurrent layer
        ("two inputs", "left*", ["right"]),
        ("attention", "mix*,head", ["qkv"]),
        ("attention", "qkv.bias", []),
        ("mlp", "all", []),
    ],
)
def test_what_is_replayed(model: str, adapt: str, expected: list[str]) -> None:
    made = make(model)
    explanation = hs.anil(made, adapt=adapt, lr=0.1).explain(tasks_for(model))
    assert [
        name for name in explanation.replayed if next(made.get_submodule(name).parameters(), None) is not None or model == "conv"
    ] == expected
    assert explanation.head == (adapt == "head")
    if adapt == "all":
        assert "no submodule" in explanation.reason
        assert "nothing: no submodule" in str(explanation)


def test_explain_states_the_work() -> None:
    """Multiply-adds of the body once, and of the head per step, by hand."""
    model = hs.models.mlp(30, ways=5, hidden=(20,))
    x, y = torch.randn(4, 10, 30), torch.randint(5, (4, 10))
    explanation = hs.anil(model, steps=3, lr=0.1).explain(hs.TaskBatch(x, y, x, y))
    assert explanation.once_flops == 2 * 80 * 30 * 20
    assert explanation.step_flops == 2 * 40 * 20 * 5
    text = str(explanation)
    for words in ("105 adapted (w), 620 shared (φ)", "SampleSpace()", "runs once", "runs per step", "steps=3"):
        assert words in text
    assert "Recursive(" in str(hs.maml(model, steps=50, lr=0.01).explain(hs.TaskBatch(x, y, x, y)))
    deep = hs.models.mlp(30, ways=5, hidden=(20, 20))
    assert "Unrolled()" in str(hs.anil(deep, steps=2, adapt="last:2", lr=0.1).explain(hs.TaskBatch(x, y, x, y)))


class Sneaky(nn.Module):
    """Depends on the adapted layer in a way no gradient shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate = (self.first(x) > 0).to(x.dtype)
        return self.head(self.second(gate) + self.first(x))


def test_a_replay_that_would_be_wrong_is_not_used() -> None:
    torch.manual_seed(0)
    model = Sneaky()
    x, y = torch.randn(3, 6, 3), torch.randint(2, (3, 6))
    tasks = hs.TaskBatch(x, y, x, y)
    learner = hs.anil(model, adapt="first.*", lr=1.0)
    assert "changed the model's output" in learner.explain(tasks).reason
    without = hs.anil(model, adapt="first.*", lr=1.0, replay=False)
    assert distance(learner.meta_gradient(tasks)[0], without.meta_gradient(tasks)[0]) == 0


class InPlace(nn.Module):
    """Writes into what a replayed layer returned."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        z.mul_(2).add_(1)
        return self.head(torch.tanh(self.middle(torch.tanh(z))))


@pytest.mark.usefixtures("double")
def test_in_place_writes_do_not_reach_the_record() -> None:
    model = InPlace().double()
    tasks = tasks_for("mlp")
    one, _ = hs.anil(model, adapt="last:2", lr=0.1).meta_gradient(tasks)
    two, _ = hs.anil(model, adapt="last:2", replay=False, lr=0.1).meta_gradient(tasks)
    assert hs.anil(model, adapt="last:2", lr=0.1).explain(tasks).replayed == ("body",)
    assert distance(one, two) < 1e-14


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_the_model_changes(name: str) -> None:
    """Neither a probe, nor a meta-gradient, nor adapting leaves a trace: weights, buffers, hooks, modes, random state."""
    model, tasks = make(name), tasks_for(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    learner = hs.anil(model, steps=2, adapt="last:2" if name != "linear" else "head", lr=0.1)
    learner.meta_gradient(tasks)
    learner.adapt({k: v[0] for k, v in tasks.support_x.items()} if name == "two inputs" else tasks.support_x[0], tasks.support_y[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert not any(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("double")
def test_frozen_and_unused_parameters() -> None:
    """A frozen parameter gets no gradient; an unused one gets zero."""
    frozen, tasks = make("frozen"), tasks_for("frozen")
    for adapt in ("head", "last:2", "all"):
        grads, _ = hs.anil(frozen, adapt=adapt, lr=0.1).meta_gradient(tasks)
        assert grads.keys() == {"0.weight", "0.bias", "2.bias", "4.weight"}
        assert all(float(g.abs().max()) > 0 for g in grads.values())
    unused = make("unused")
    for adapt in ("head", "spare.*,head", "all"):
        for mode in (None, hs.Unrolled(), hs.Recursive(), hs.FirstOrder()):
            grads, _ = hs.anil(unused, adapt=adapt, hypergradient=mode, lr=0.1).meta_gradient(tasks_for("unused"))
            assert float(grads["spare.weight"].abs().max()) == 0


@pytest.mark.usefixtures("double")
def test_tied_weights_adapt_together() -> None:
    """One gradient, the sum over both places."""
    torch.manual_seed(0)
    model, tasks = Tied().double(), tasks_for("tied")
    partition = hs.Partition(model, "out.*")
    grads, _ = hs.MetaLearner(partition, hs.GradientDescent(2, 0.3)).meta_gradient(tasks)
    assert distance(grads, Truth(model, partition.adapted, tasks, "cross_entropy", 0.0).proposition_1(2, 0.3)) < 1e-10
    adapted = hs.MetaLearner(partition, hs.GradientDescent(2, 0.3)).adapt(tasks.support_x[0], tasks.support_y[0])
    module = adapted.to_module()
    assert module.embed.weight is module.out.weight
    torch.testing.assert_close(module(tasks.query_x[0]), adapted.logits(tasks.query_x[0]))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_batch_statistics_in_training_mode(adapt: str) -> None:
    """What runs once normalises over the meta-batch and over the task; either moves the running averages on, once."""
    model, tasks = make("conv").train(), tasks_for("conv")
    before = model[1].running_mean.clone()
    learner = hs.anil(model, steps=2, adapt=adapt, hypergradient=hs.Unrolled(), lr=0.1)
    grads, _ = learner.meta_gradient(tasks)
    changed = not torch.equal(before, model[1].running_mean)
    assert changed
    for other in (hs.Recursive(), hs.Recursive("forward-over-reverse")):
        for vectorise in (False, True):
            again = hs.anil(model, steps=2, adapt=adapt, hypergradient=other, vectorise=vectorise, chunk_tasks=2, lr=0.1)
            assert distance(again.meta_gradient(tasks)[0], grads) < 1e-10
    if adapt == "head":  # against autograd through a model cut by hand
        x = torch.cat([tasks.support_x.flatten(0, 1), tasks.query_x.flatten(0, 1)])
        z = torch.tanh(model[5](model[:5](x)))
        count = tasks.support_y.numel()
        total = torch.zeros(())
        for t in range(len(tasks)):
            z_S, z_Q = z[:count].view(len(tasks), -1, 4)[t], z[count:].view(len(tasks), -1, 4)[t]
            W, b = model[7].weight, model[7].bias
            for _ in range(2):
                loss = nn.functional.cross_entropy(z_S @ W.T + b, tasks.support_y[t])
                gW, gb = torch.autograd.grad(loss, (W, b), create_graph=True)
                W, b = W - 0.1 * gW, b - 0.1 * gb
            total = total + nn.functional.cross_entropy(z_Q @ W.T + b, tasks.query_y[t]) / len(tasks)
        expected = torch.autograd.grad(total, list(model.parameters()))
        assert distance(grads, dict(zip(dict(model.named_parameters()), expected, strict=True))) < 1e-10


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "2.*", "all"])
def test_dropout_draws_one_mask_per_task_and_keeps_it(adapt: str) -> None:
    """L_S is one function of (w, φ): the exact modes agree, and the random state outside moves only with the shared run."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, WAYS)).double()
    tasks = tasks_for("mlp", tasks=3)
    results = []
    for mode in (hs.Unrolled(), hs.Recursive(), hs.Recursive("forward-over-reverse")):
        torch.manual_seed(5)
        results.append(hs.anil(model, steps=3, adapt=adapt, hypergradient=mode, lr=0.1).meta_gradient(tasks)[0])
    assert distance(results[0], results[1]) < 1e-10
    assert distance(results[0], results[2]) < 1e-10
    torch.manual_seed(6)
    other, _ = hs.anil(model, steps=3, adapt=adapt, lr=0.1).meta_gradient(tasks)
    if adapt != "all":
        assert distance(other, results[0]) > 1e-3
    model.eval()
    assert distance(hs.anil(model, steps=3, adapt=adapt, lr=0.1).meta_gradient(tasks)[0], results[0]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapt", ["head", "last:2"])
def test_half_precision_models(dtype: torch.dtype, adapt: str) -> None:
    """Weights, iterates and gradients are in the model's type, losses in float32; near the float32 result."""
    torch.manual_seed(0)
    model = hs.models.mlp(6, ways=3, hidden=(8, 8))
    x, y = torch.randn(4, 6, 6), torch.randint(3, (4, 6))
    exact, _ = hs.anil(model, adapt=adapt, lr=0.1).meta_gradient(hs.TaskBatch(x, y, x, y))
    model.to(dtype)
    grads, stats = hs.anil(model, adapt=adapt, lr=0.1).meta_gradient(hs.TaskBatch(x.to(dtype), y, x.to(dtype), y))
    assert all(g.dtype == dtype for g in grads.values())
    assert stats.losses.dtype == torch.float32
    assert distance({k: g.float() for k, g in grads.items()}, exact) < 0.1
    adapted = hs.anil(model, adapt=adapt, lr=0.1).adapt(x[0].to(dtype), y[0])
    assert all(v.dtype == dtype for v in adapted.w.values())


@pytest.mark.usefixtures("double")
def test_chunks_of_examples_and_tasks_do_not_change_the_numbers() -> None:
    model, tasks = make("conv"), tasks_for("conv", tasks=5)
    for adapt in ("head", "last:2"):
        whole, _ = hs.anil(model, adapt=adapt, lr=0.1).meta_gradient(tasks)
        for options in ({"chunk_examples": 3}, {"chunk_tasks": 2}, {"chunk_tasks": 2, "vectorise": True, "chunk_examples": 7}):
            assert distance(hs.anil(model, adapt=adapt, lr=0.1, **options).meta_gradient(tasks)[0], whole) < 1e-12


class Reply(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.head, self.kind = nn.Linear(4, 3), nn.Linear(3, WAYS), kind

    def forward(self, x: Tensor) -> Any:
        logits = self.head(torch.tanh(self.body(x)))
        return {"dict": {"logits": logits, "extra": x}, "tuple": (x, logits)}[self.kind]


@pytest.mark.usefixtures("double")
def test_models_with_several_outputs() -> None:
    tasks = tasks_for("mlp")
    torch.manual_seed(0)
    named = Reply("dict").double()
    a, _ = hs.anil(named, lr=0.1).meta_gradient(tasks)
    tupled = Reply("tuple").double()
    tupled.load_state_dict(named.state_dict())
    with pytest.raises(TaskError, match="output=f"):
        hs.anil(tupled, lr=0.1).meta_gradient(tasks)
    learner = hs.anil(tupled, output=lambda out: out[1], lr=0.1)
    assert distance(learner.meta_gradient(tasks)[0], a) == 0
    assert learner.adapt(tasks.support_x[0], tasks.support_y[0]).predict(tasks.query_x[0]).shape == tasks.query_y[0].shape


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
@pytest.mark.parametrize("name", ["conv", "attention", "frozen"])
def test_an_adapted_model_is_an_ordinary_model(name: str, adapt: str) -> None:
    """adapt() gives the weights of plain gradient descent, and its predictions are those of trajectory()."""
    model, tasks = make(name), tasks_for(name)
    learner = hs.anil(model, steps=4, lr=0.3, l2=0.1, adapt=adapt)
    by_step = learner.trajectory(tasks)
    assert len(by_step) == 5
    more = learner.trajectory(tasks, steps=7)
    torch.testing.assert_close(more[4], by_step[4])
    reference = Truth(model, learner.partition.adapted, tasks, "cross_entropy", 0.1)
    for t in range(len(tasks)):
        adapted = learner.adapt(tasks.support_x[t], tasks.support_y[t])
        w = reference.path(t, 4, 0.3, reference.w, reference.phi)[-1]
        torch.testing.assert_close(reference.flat({**adapted.w, **learner.partition.split()[1]})[0], w)
        torch.testing.assert_close(adapted.logits(tasks.query_x[t]), by_step[-1][t])
        torch.testing.assert_close(adapted.to_module()(tasks.query_x[t]), by_step[-1][t])
        assert torch.equal(adapted.predict(tasks.query_x[t]), by_step[-1][t].argmax(-1))
        torch.testing.assert_close(adapted.predict_proba(tasks.query_x[t]).sum(-1), torch.ones(3))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,)])
def test_a_model_that_is_one_head(wrap) -> None:
    """Nothing runs before it: its inputs are its features, alone or as a tuple of one, whether or not they ask for a gradient."""
    x, y = torch.randn(4, 6, 3, requires_grad=True), torch.randint(2, (4, 6))
    torch.manual_seed(0)
    found = []
    for replay in (True, False):
        torch.manual_seed(0)
        learner = hs.anil(torch.nn.Linear(3, 2), steps=2, lr=0.3, replay=replay)
        grads, _ = learner.meta_gradient(hs.TaskBatch(wrap(x), y, wrap(x), y))
        found.append(grads)
    assert learner.program(hs.TaskBatch(wrap(x), y, wrap(x), y)).head is None
    for name, g in found[0].items():
        torch.testing.assert_close(g, found[1][name])
