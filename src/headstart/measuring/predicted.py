"""Oracle calls of one meta-gradient, predicted: the table of Ji et al. (2020), section 3, for every hypergradient."""

from __future__ import annotations

from headstart.counting import CVP, GRAD_PHI_QUERY, GRAD_W_QUERY, Ledger
from headstart.learner import MetaLearner
from headstart.measuring.access import oracle_counts
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
        >>> learner = hs.maml(hs.models.mlp(features=4, ways=2), steps=3, lr=0.01)
        >>> x, y = torch.randn(8, 6, 4), torch.randint(2, (8, 6))
        >>> predicted_calls(learner, hs.TaskBatch(x, y, x, y))["hvp"]
        Calls(calls=24, numbers=46128, examples=144)
    """
    w, phi = learner.partition.split()
    n_w, n_phi = sum(p.numel() for p in w.values()), sum(p.numel() for p in phi.values())
    queries = 1 if learner.step_weights is None else int((learner.step_weights != 0).sum())
    calls = oracle_counts(learner, tasks, iterations).table(len(tasks), shared=bool(n_phi), queries=queries)
    in_phi, of_query = (GRAD_PHI_QUERY, CVP), (GRAD_W_QUERY, GRAD_PHI_QUERY)
    book = Ledger()
    for oracle, times in calls.items():
        examples = (tasks.query if oracle in of_query else tasks.support).count
        # A call touches the examples of its own task, so all tasks together touch all examples once for each call of a task.
        book.add(oracle, times, times * (n_phi if oracle in in_phi else n_w), times // len(tasks) * examples)
    return book
