"""Oracle calls of one meta-gradient, predicted: the table of Ji et al. (2020), section 3, for every hypergradient."""

from __future__ import annotations

from headstart.counting import CVP, GRAD_PHI_QUERY, GRAD_W_QUERY, GRAD_W_SUPPORT, HVP, Ledger
from headstart.errors import ConfigError
from headstart.hypergradient.first_order import FirstOrder
from headstart.hypergradient.implicit import Implicit
from headstart.inner.ridge import Ridge
from headstart.learner import MetaLearner
from headstart.tasks import TaskBatch


def predicted_calls(learner: MetaLearner, tasks: TaskBatch, iterations: int | None = None) -> Ledger:
    """The oracle calls that ``learner.meta_gradient(tasks)`` makes, without making them.

    With B tasks and N inner steps: ``∇_w L_S`` N·B, ``∇_w L_D`` and ``∇_φ L_D`` B each, ``H·v`` and ``C·v`` N·B each; what is
    in φ is not there when everything adapts (MAML). First-order methods make no products. The implicit one makes c·B and B
    products with c solver iterations, and takes up to two more ``∇_w L_S`` to see that its inner loop has converged. A closed
    form has no inner calls. With ``step_weights`` the query gradients are taken after every step of weight above zero.

    Args:
        learner: any learner.
        tasks: B tasks.
        iterations: c, for :class:`~headstart.Implicit`; ``stats.info["iterations"]`` of a meta-gradient.

    Raises:
        ConfigError: the hypergradient is implicit and ``iterations`` is missing.

    Example:
        >>> import torch, headstart as hs
        >>> learner = hs.maml(hs.models.mlp(features=4, ways=2), steps=3)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> predicted_calls(learner, hs.TaskBatch(x, y, x, y))["hvp"]
        Calls(calls=24, numbers=46128, examples=144)
    """
    method, steps, B = learner.chosen_hypergradient(tasks), learner.inner.steps, len(tasks)
    w, phi = learner.partition.split()
    n_w, n_phi = sum(p.numel() for p in w.values()), sum(p.numel() for p in phi.values())
    support = tasks.support.index.numel() if tasks.support.weight is None else int((tasks.support.weight > 0).sum())
    query = tasks.query.index.numel() if tasks.query.weight is None else int((tasks.query.weight > 0).sum())
    queries = 1 if learner.step_weights is None else int((learner.step_weights != 0).sum())
    inner = mixed = products = 0 if isinstance(learner.inner, Ridge) else steps
    if isinstance(method, FirstOrder):
        mixed = products = 0
    if isinstance(method, Implicit):
        if iterations is None:
            raise ConfigError('Implicit() iterates until it has converged: give iterations=stats.info["iterations"] of a meta-gradient')
        inner, products, mixed = steps + (1 if method.stationary is None else 2), iterations, 1
    book = Ledger()
    for oracle, times, size, examples in (
        (GRAD_W_SUPPORT, inner, n_w, support),
        (GRAD_W_QUERY, queries, n_w, query),
        (GRAD_PHI_QUERY, queries if n_phi else 0, n_phi, query),
        (HVP, products, n_w, support),
        (CVP, mixed if n_phi else 0, n_phi, support),
    ):
        book.add(oracle, times * B, times * B * size, times * examples)
    return book
