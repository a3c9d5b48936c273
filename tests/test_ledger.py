"""The ledger: measured calls are those that the paper predicts, for every preset, hypergradient and way of running."""

from __future__ import annotations

import pytest
import torch

import headstart as hs
from headstart.counting import SYMBOLS
from headstart.theory.oracle_counts import ORACLES, OracleCounts, oracle_calls
from zoo import WAYS, make, tasks_for

LEARNERS = {
    "anil": lambda m, **k: hs.anil(m, 3, 0.1, **k),
    "anil l2": lambda m, **k: hs.anil(m, 3, 0.1, 0.1, **k),
    "anil unrolled": lambda m, **k: hs.anil(m, 3, 0.1, hypergradient=hs.Unrolled(), **k),
    "anil recursive": lambda m, **k: hs.anil(m, 3, 0.1, hypergradient=hs.Recursive("double-backward"), **k),
    "anil forward": lambda m, **k: hs.anil(m, 3, 0.1, hypergradient=hs.Recursive("forward-over-reverse"), **k),
    "anil first order": lambda m, **k: hs.anil(m, 3, 0.1, hypergradient=hs.FirstOrder(), **k),
    "anil no steps": lambda m, **k: hs.anil(m, 0, 0.1, **k),
    "last:2": lambda m, **k: hs.anil(m, 3, 0.1, adapt="last:2", **k),
    "last:2 recursive": lambda m, **k: hs.anil(m, 3, 0.1, adapt="last:2", hypergradient=hs.Recursive(), **k),
    "no replay": lambda m, **k: hs.anil(m, 3, 0.1, replay=False, **k),
    "maml": lambda m, **k: hs.maml(m, 3, 0.01, **k),
    "maml unrolled": lambda m, **k: hs.maml(m, 3, 0.01, hypergradient=hs.Unrolled(), **k),
    "fomaml": lambda m, **k: hs.fomaml(m, 3, 0.01, **k),
    "boil": lambda m, **k: hs.boil(m, 2, 0.5, **k),
    "imaml": lambda m, **k: hs.imaml(m, 40, 0.1, 5.0, **k),
    "implicit": lambda m, **k: hs.anil(m, 60, 0.5, 0.5, hypergradient=hs.Implicit(stationary=None), **k),
    "metasgd": lambda m, **k: hs.metasgd(m, 2, 0.01, **k),
    "mamlpp": lambda m, **k: hs.mamlpp(m, 3, 0.01, **k),
    "protonet": lambda m, **k: hs.protonet(m, **k),
    "protomaml": lambda m, **k: hs.protomaml(m, 3, 0.01, **k),
    "r2d2": lambda m, **k: hs.r2d2(m, **k),
    "inner steps weighted": lambda m, **k: hs.anil(m, 3, 0.1, step_weights=[0, 0.5, 0, 0.5], hypergradient=hs.Unrolled(), **k),
}


def measured(learner: hs.MetaLearner, tasks: hs.TaskBatch) -> tuple[hs.Ledger, int | None]:
    with hs.ledger() as book:
        _, stats = learner.meta_gradient(tasks)
    return book, stats.info.get("iterations")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_measured_equals_predicted(name: str, weighted: bool) -> None:
    learner, tasks = LEARNERS[name](make("mlp")), tasks_for("mlp", weighted=weighted)
    book, iterations = measured(learner, tasks)
    assert book == hs.predicted_calls(learner, tasks, iterations)
    assert book["grad_w_query"].calls > 0


@pytest.mark.parametrize("name", ["conv", "two inputs", "attention", "frozen", "tied"])
@pytest.mark.parametrize("adapt", ["head", "all"])
def test_on_other_models(name: str, adapt: str) -> None:
    learner, tasks = hs.anil(make(name), 2, adapt=adapt, lr=0.1), tasks_for(name)
    assert measured(learner, tasks)[0] == hs.predicted_calls(learner, tasks)


@pytest.mark.parametrize("method", [hs.Unrolled(), hs.Recursive("double-backward"), hs.FirstOrder()])
def test_looped_and_vectorised_count_alike(method: object) -> None:
    books = []
    for options in ({"vectorise": True}, {"vectorise": False}, {"vectorise": True, "chunk_tasks": 2}, {"chunk_tasks": 1}):
        learner = hs.anil(make("mlp"), 3, 0.1, adapt="last:2", hypergradient=method, **options)
        books.append(measured(learner, tasks_for("mlp", tasks=5))[0])
    assert all(book == books[0] for book in books)


def test_table_of_the_paper() -> None:
    """N·B, B, B, N·B, N·B for ANIL; what is in φ is missing for MAML (theory, section 4)."""
    tasks, N, B = tasks_for("mlp", tasks=5), 4, 5
    anil, _ = measured(hs.anil(make("mlp"), N, lr=0.1), tasks)
    maml, _ = measured(hs.maml(make("mlp"), N, lr=0.01), tasks)
    assert [anil[k].calls for k in SYMBOLS] == [N * B, B, B, N * B, N * B]
    assert [maml[k].calls for k in SYMBOLS] == [N * B, B, 0, N * B, 0]
    everything = sum(p.numel() for p in make("mlp").parameters())
    head = (4 + 1) * WAYS
    assert anil["hvp"].numbers == N * B * head
    assert anil["cvp"].numbers == N * B * (everything - head)
    assert maml["hvp"].numbers == N * B * everything


def test_one_table_for_the_theory_and_the_predictions() -> None:
    """The theory names the oracles as the ledger does, and a learner's predicted calls are the table."""
    assert tuple(SYMBOLS) == ORACLES
    tasks = tasks_for("mlp", tasks=5)
    for learner, table in (
        (hs.anil(make("mlp"), 4, lr=0.1), oracle_calls(4, 5)),
        (hs.maml(make("mlp"), 4, lr=0.01), oracle_calls(4, 5, shared=False)),
        (hs.anil(make("mlp"), 4, hypergradient=hs.FirstOrder(), lr=0.1), oracle_calls(4, 5, first_order=True)),
        (hs.r2d2(make("mlp")), OracleCounts.closed_form().table(5)),
    ):
        predicted = hs.predicted_calls(learner, tasks)
        assert {k: predicted[k].calls for k in ORACLES} == table


def test_examples_that_fill_up_a_task_are_not_counted() -> None:
    whole = tasks_for("mlp", tasks=3)
    sides = [(t.support_x[0], t.support_y[0], t.query_x[0], t.query_y[0]) for t in whole]
    tasks = hs.TaskBatch.ragged([(x[: 2 + i], y[: 2 + i], x_q[: 1 + i], y_q[: 1 + i]) for i, (x, y, x_q, y_q) in enumerate(sides)])
    learner = hs.anil(make("mlp"), 4, lr=0.1)
    book, _ = measured(learner, tasks)
    assert book == hs.predicted_calls(learner, tasks)
    assert book["grad_w_support"].examples == 4 * (2 + 3 + 4)
    assert book["grad_w_query"].examples == 1 + 2 + 3


def test_nothing_is_counted_outside_or_without_a_gradient() -> None:
    learner, tasks = hs.anil(make("mlp"), 3, lr=0.1), tasks_for("mlp")
    with hs.ledger() as book:
        pass
    learner.meta_gradient(tasks)
    assert book == hs.Ledger()
    with hs.ledger() as book:
        learner.trajectory(tasks)
    assert book["grad_w_support"].calls == 3 * len(tasks)
    assert not book["hvp"].calls
    assert not book["grad_w_query"].calls


def test_ledgers_nest_and_the_gradient_is_the_same() -> None:
    learner, tasks = hs.anil(make("mlp"), 3, adapt="last:2", lr=0.1), tasks_for("mlp")
    plain, _ = learner.meta_gradient(tasks)
    with hs.ledger() as outer:
        learner.meta_gradient(tasks)
        with hs.ledger() as inside:
            counted, _ = learner.meta_gradient(tasks)
    assert inside == outer
    assert all(torch.equal(plain[k], counted[k]) for k in plain)


def test_multiply_adds_of_a_linear_map() -> None:
    with hs.ledger(multiply_adds=True) as book:
        torch.randn(3, 4) @ torch.randn(4, 5)
    assert book.multiply_adds == 3 * 4 * 5


def test_implicit_needs_its_iterations() -> None:
    with pytest.raises(hs.HeadstartError, match="iterations"):
        hs.predicted_calls(hs.imaml(make("mlp"), lr=0.01), tasks_for("mlp"))
