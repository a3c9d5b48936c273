"""One command for all folds of a cross-validation over classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from headstart.container import read_json, write_json
from headstart.evaluation import Evaluation
from headstart.evaluation.result import show_with
from headstart.training.holding import held
from headstart.training.run import BASELINES, EVALUATION

FOLDS = "folds.json"


def over_folds(folds: int, out: Path, train: Callable[[int, Path], int]) -> int:
    """Trains and tests on each fold, and prints the mean over folds with an interval over them.

    Args:
        folds: how many.
        out: gets a run folder for each, and ``folds.json``.
        train: trains and evaluates one fold into a folder; gives its exit code.

    Returns:
        The exit code of the first that was not 0, or 0.
    """
    with held(out):
        return _over(folds, out, train)


def _over(folds: int, out: Path, train: Callable[[int, Path], int]) -> int:
    found: dict[str, list[float]] = {}
    metric = "accuracy"
    for k in range(1, folds + 1):
        print(f"\nfold {k} of {folds}")
        folder = out / f"fold-{k}"
        code = train(k, folder)
        if code:
            return code
        if not (folder / EVALUATION).exists():
            continue
        result = Evaluation.load(folder / EVALUATION)
        metric = result.metric
        found.setdefault("meta-learned", []).append(result.mean)
        for beside in read_json(folder / BASELINES) if (folder / BASELINES).exists() else []:
            found.setdefault(beside["name"], []).append(beside["evaluation"]["mean"])
    write_json(out / FOLDS, {"metric": metric, "folds": folds, "means": found})
    width = max(map(len, found), default=0)
    if found:
        print(f"\nover {folds} folds, every class tested once; ± is the 95 % interval over folds:")
    for name, means in found.items():
        print(f"  {name:<{width}}  {show_with(metric, sum(means) / len(means), _half(means))}")
    return 0


def _half(means: list[float]) -> float:
    """Half of the 95 % t-interval; zero for one value, which has none."""
    n = len(means)
    if n < 2:
        return 0.0
    quantile = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}.get(n, 2.0)
    return quantile * float(torch.tensor(means, dtype=torch.float64).std()) / n**0.5
