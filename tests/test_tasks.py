from __future__ import annotations

import pytest
import torch

import headstart as hs
from headstart.errors import TaskError
from truth import distance

X, Y = torch.zeros(2, 4, 3), torch.zeros(2, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, Y[:, :3], X, Y), r"support_x .* \(2, 4, 3\) .* support_y is \(2, 3\)"),
        ((X[0], Y[0], X[0], Y[0]), r"y\[None\]"),
        ((X, Y, X[:1], Y[:1]), "support has 2 tasks and query 1"),
        ((X, Y, torch.zeros(2, 4, 5), Y), "same shape and type"),
        ((X, Y, X.double(), Y), "same shape and type"),
        ((X, Y - 1, X, Y), "label -1"),
        ((X, Y.int(), X, Y), "torch.long"),
        ((X, Y.float(), X, Y), "both as labels or both as targets"),
        ((X / 0, Y, X, Y), "NaN or infinite"),
        ((X, Y / 0.0, X, Y / 0.0), "NaN or infinite targets"),
        (({"a": X}, Y, X, Y), "built differently"),
        (([], Y, X, Y), "support_x must be a tensor"),
        ((X[:, :0], Y[:, :0], X, Y), "at least one task with one example"),
    ],
)
def test_bad_tasks_are_refused(arguments: tuple[object, ...], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        hs.TaskBatch(*arguments)  # type: ignore[arg-type]


def test_bad_weights_and_pools_are_refused() -> None:
    for weight, words in ((torch.zeros(2, 4), "zero everywhere"), (torch.ones(2, 3), "shape"), (-torch.ones(2, 4), "negative")):
        with pytest.raises(TaskError, match=words):
            hs.TaskBatch(X, Y, X, Y, support_weight=weight)
    index = torch.full((2, 4), 9)
    with pytest.raises(TaskError, match="pool has 3 examples"):
        hs.TaskBatch.from_pool(X[0, :3], hs.Side(index, Y), hs.Side(index, Y))
    with pytest.raises(TaskError, match="no tasks"):
        hs.TaskBatch.ragged([])
    with pytest.raises(TaskError, match="task 0 has 4 examples but 3 labels"):
        hs.TaskBatch.ragged([(X[0], Y[0, :3], X[0], Y[0])])


def test_labels_must_fit_the_model() -> None:
    learner = hs.anil(hs.models.mlp(3, ways=2), lr=0.1)
    with pytest.raises(TaskError, match="labels up to 4, but the model has 2 outputs"):
        learner.meta_gradient(hs.TaskBatch(X, Y + 4, X, Y))
    with pytest.raises(TaskError, match="squared_error"):
        learner.meta_gradient(hs.TaskBatch(X, Y.float(), X, Y.float()))
    with pytest.raises(TaskError, match=r"cannot run on these examples .*3, 2"):
        learner.meta_gradient(hs.TaskBatch(X[..., :2], Y, X[..., :2], Y))
    with pytest.raises(TaskError, match="one task"):
        learner.adapt(X[0], Y)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "all"])
def test_a_ragged_batch_is_the_mean_of_its_tasks_alone(adapt: str) -> None:
    torch.manual_seed(0)
    model = hs.models.mlp(3, ways=2, hidden=(4,)).double()
    learner = hs.MetaLearner(hs.Partition(model, adapt), hs.GradientDescent(3, 0.3, 0.1))
    sizes = [(2, 5), (4, 1), (3, 3)]
    alone = [(torch.randn(s, 3), torch.randint(2, (s,)), torch.randn(q, 3), torch.randint(2, (q,))) for s, q in sizes]
    together, stats = learner.meta_gradient(hs.TaskBatch.ragged(alone))
    singles = [learner.meta_gradient(hs.TaskBatch(*(part[None] for part in task)))[0] for task in alone]
    mean = {k: torch.stack([g[k] for g in singles]).mean(0) for k in together}
    assert distance(together, mean) < 1e-12
    assert len(stats.losses) == 3


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_tasks_of_a_pool_are_the_same_tasks_written_out(adapt: str) -> None:
    torch.manual_seed(0)
    model = hs.models.mlp(3, ways=2, hidden=(4, 4)).double()
    learner = hs.MetaLearner(hs.Partition(model, adapt), hs.GradientDescent(3, 0.3))
    pool, s, q = torch.randn(7, 3), torch.randint(7, (5, 4)), torch.randint(7, (5, 2))
    y_s, y_q = torch.randint(2, (5, 4)), torch.randint(2, (5, 2))
    one, _ = learner.meta_gradient(hs.TaskBatch.from_pool(pool, hs.Side(s, y_s), hs.Side(q, y_q)))
    two, _ = learner.meta_gradient(hs.TaskBatch(pool[s], y_s, pool[q], y_q))
    assert distance(one, two) < 1e-12


def test_a_batch_moves_and_slices() -> None:
    tasks = hs.TaskBatch(X, Y, X, Y)
    assert len(tasks[:1]) == 1
    assert [len(c) for c in tasks.chunks(1)] == [1, 1]
    assert tasks.to("cpu").support_x.shape == X.shape
    assert tasks.pool_size == 16
