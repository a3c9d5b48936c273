"""Presets are compositions of parts, and each of them learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from fakes import source
from headstart.errors import MethodError, TaskError
from truth import distance
from zoo import make, tasks_for

PRESETS: dict[str, Callable[[Any], hs.MetaLearner]] = {
    "anil": lambda m: hs.anil(m, 3, 0.4),
    "maml": lambda m: hs.maml(m, 3, 0.1),
    "boil": lambda m: hs.boil(m, 2, 0.3),
    "fomaml": lambda m: hs.fomaml(m, 3, 0.1),
    "imaml": lambda m: hs.imaml(m, 20, 0.1, prox=4.0, hypergradient=hs.Implicit(tolerance=1e-4)),
    "metasgd": lambda m: hs.metasgd(m, 2, 0.1),
    "mamlpp": lambda m: hs.mamlpp(m, 3, 0.1),
    "protonet": hs.protonet,
    "protomaml": lambda m: hs.protomaml(m, 3, 0.01),
    "r2d2": lambda m: hs.r2d2(m, 1.0, 3.0),
    "reptile": lambda m: hs.reptile(m, 5, 0.1),
    "metacurvature": lambda m: hs.metacurvature(m, 3, 0.1),
    "metaoptnet": lambda m: hs.metaoptnet(m, 0.1, 3.0),
    "soft_kmeans": hs.soft_kmeans,
    "anil_cosine": lambda m: hs.anil_cosine(hs.models.conv4(1, 5, 16, filters=8, head="cosine"), 3, 0.4),
    "anil_latent": lambda m: hs.anil_latent(hs.models.conv4(1, 5, 16, filters=8, head="latent"), 3, 0.01),
    "metabaseline": lambda m: hs.metabaseline(hs.models.conv4(1, 5, 16, filters=8, head="cosine")),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_learns(name: str) -> None:
    """On the same episodes the query loss after adaptation falls, in evaluation mode and after a few dozen outer steps."""
    torch.manual_seed(0)
    # Implicit() needs curvature that prox can outweigh, which batch statistics over five images do not give.
    smooth = nn.Sequential(nn.Flatten(), nn.Linear(256, 32), nn.Tanh(), nn.Linear(32, 5))
    learner = PRESETS[name](smooth if name in ("imaml", "reptile", "metacurvature") else hs.models.conv4(1, 5, 16, filters=8))
    data = source()
    fixed = hs.data.Episodes(data.train, ways=5, shots=1, queries=3, tasks=6, stream="test").batch(0)
    learner.model.train()
    before = learner.meta_gradient(fixed)[1].loss
    optimizer = torch.optim.Adam(list(learner.parameters().values()), lr=3e-3)
    sampler = hs.data.Episodes(data.train, ways=5, shots=1, queries=3, tasks=4)
    torch.set_flush_denormal(True)
    for i in range(25):
        grads, _ = learner.meta_gradient(sampler.batch(i))
        for key, parameter in learner.parameters().items():
            parameter.grad = grads[key]
        optimizer.step()
    assert learner.meta_gradient(fixed)[1].loss < 0.9 * before


@pytest.mark.usefixtures("double")
def test_presets_are_compositions() -> None:
    tasks = tasks_for("mlp")
    pairs = [
        (hs.anil(make("mlp"), 2, 0.3, 0.1), hs.MetaLearner(hs.Partition(make("mlp"), "head"), hs.GradientDescent(2, 0.3, 0.1))),
        (hs.boil(make("mlp"), 2, 0.3), hs.MetaLearner(hs.Partition(make("mlp"), "body"), hs.GradientDescent(2, 0.3))),
        (hs.fomaml(make("mlp"), 2, 0.3), hs.MetaLearner(hs.Partition(make("mlp"), "all"), hs.GradientDescent(2, 0.3), hs.FirstOrder())),
    ]
    for preset, composed in pairs:
        a, b = preset.meta_gradient(tasks)[0], composed.meta_gradient(tasks)[0]
        assert all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.usefixtures("double")
def test_protonet_is_the_distance_to_class_means() -> None:
    """Softmax over −‖z − c_k‖², its loss and its gradient, written out."""
    model, tasks = make("mlp"), tasks_for("mlp", tasks=3)
    y = torch.tensor([0, 1, 2, 0]).expand(3, 4).contiguous()
    tasks = hs.TaskBatch(tasks.support_x, y, tasks.query_x, tasks.query_y)
    grads, stats = hs.protonet(model).meta_gradient(tasks)
    total = torch.zeros(())
    for t in range(3):
        z_S, z_Q = model[:4](tasks.support_x[t]), model[:4](tasks.query_x[t])
        centres = torch.stack([z_S[y[t] == c].mean(0) for c in range(3)])
        total = total + torch.nn.functional.cross_entropy(-(torch.cdist(z_Q, centres) ** 2), tasks.query_y[t]) / 3
    assert stats.loss == pytest.approx(float(total.detach()), rel=1e-12)
    body = {n: p for n, p in model.named_parameters() if not n.startswith("4.")}
    expected = dict(zip(body, torch.autograd.grad(total, list(body.values())), strict=True))
    assert distance({k: grads[k] for k in expected}, expected) < 1e-10


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("start", [hs.SharedVector(), hs.Prototypes(), None])
def test_label_order_has_no_influence_with_a_start_that_does_not_know_it(start: Any) -> None:
    model, tasks = make("mlp"), tasks_for("mlp", tasks=5)
    learner = hs.anil(model, 3, 0.3, start=start)
    order = torch.tensor([2, 0, 1])
    renamed = hs.TaskBatch(tasks.support_x, order[tasks.support_y], tasks.query_x, order[tasks.query_y])
    a, b = learner.trajectory(tasks)[-1], learner.trajectory(renamed)[-1]
    same = bool(torch.allclose(a, b[..., order], rtol=1e-10))
    assert same == (start is not None)


@pytest.mark.usefixtures("double")
def test_prototypes_of_a_class_without_examples_attract_nothing() -> None:
    tasks = tasks_for("mlp")
    two = hs.TaskBatch(tasks.support_x, tasks.support_y % 2, tasks.query_x, tasks.query_y % 2)
    logits = hs.protonet(make("mlp")).trajectory(two)[-1]
    assert bool(torch.isfinite(logits).all())
    assert 2 not in logits.argmax(-1)


@pytest.mark.usefixtures("double")
def test_a_shared_vector_gives_a_head_the_ways_of_the_tasks() -> None:
    """Tasks of three classes on a model of two outputs are as on one of three whose rows are alike."""
    tasks, two, three = tasks_for("mlp"), make("mlp"), make("mlp")
    two[4] = nn.Linear(two[4].in_features, 2)
    three.load_state_dict({**three.state_dict(), **{k: v for k, v in two.state_dict().items() if not k.startswith("4.")}})
    with torch.no_grad():
        three[4].weight.copy_(two[4].weight.mean(0).expand(3, -1))
        three[4].bias.copy_(two[4].bias.mean().expand(3))
    small, large = hs.anil(two, 3, 0.3, start=hs.SharedVector()), hs.anil(three, 3, 0.3)
    assert torch.allclose(small.trajectory(tasks)[-1], large.trajectory(tasks)[-1], rtol=1e-10)
    x, y = tasks.support_x[0], tasks.support_y[0]
    assert torch.allclose(small.adapt(x, y).logits(x), large.adapt(x, y).logits(x), rtol=1e-10)
    grads, of_three = small.meta_gradient(tasks)[0], large.meta_gradient(tasks)[0]
    assert torch.allclose(grads["4.weight"], of_three["4.weight"].sum(0).expand(2, -1) / 2, rtol=1e-8)
    assert distance({k: grads[k] for k in grads if not k.startswith("4.")}, {k: v for k, v in of_three.items() if k[0] != "4"}) < 1e-10
    with pytest.raises(TaskError, match="adapt the head alone with"):
        hs.maml(two, 3, 0.1, start=hs.SharedVector()).trajectory(tasks)


@pytest.mark.usefixtures("double")
def test_a_weight_of_two_moves_a_prototype_as_the_example_twice() -> None:
    learner, x, y = hs.protonet(hs.models.mlp(4, 2)), torch.randn(9, 4), torch.arange(9) // 3
    weight = torch.tensor([0, 1, 2] * 3)
    twice = torch.repeat_interleave(torch.arange(len(y)), weight)
    assert torch.allclose(learner.adapt(x, y, support_weight=weight.double()).logits(x), learner.adapt(x[twice], y[twice]).logits(x))


def test_starts_and_heads_that_do_not_fit_are_refused() -> None:
    tasks = tasks_for("mlp")
    model = make("mlp")
    with pytest.raises(MethodError, match="linear layer with a bias"):
        hs.anil(model, adapt="last:2", start=hs.Prototypes(), lr=0.1).meta_gradient(tasks)
    with pytest.raises(MethodError, match="last layer does not adapt"):
        hs.anil(model, adapt="body", start=hs.SharedVector(), lr=0.1).meta_gradient(tasks)
    with pytest.raises(MethodError, match="real targets"):
        hs.protonet(model, loss="squared_error").meta_gradient(tasks_for("mlp", real_targets=True))
    with pytest.raises(MethodError, match="needs one linear layer"):
        hs.MetaLearner(hs.Partition(model, "all"), hs.Ridge()).meta_gradient(tasks)
    with pytest.raises(MethodError, match=r"SampleSpace\(\) does not apply: the adapted parameters"):
        hs.anil(model, adapt="all", hypergradient=hs.SampleSpace(), lr=0.1).meta_gradient(tasks)
    with pytest.raises(MethodError, match="more than plain gradient descent"):
        hs.MetaLearner(hs.Partition(model), hs.GradientDescent(momentum=0.5), hs.SampleSpace()).meta_gradient(tasks)
    custom = hs.losses.Loss("mine", lambda z, y: z.sum(-1))
    with pytest.raises(MethodError, match="'mine' in the logits is not known"):
        hs.anil(model, loss=custom, hypergradient=hs.SampleSpace(), lr=0.1).meta_gradient(tasks)
    with pytest.raises(MethodError, match="cannot run under vmap"):
        hs.anil(make("two inputs"), adapt="last:2", vectorise=True, lr=0.1).meta_gradient(tasks_for("two inputs"))
