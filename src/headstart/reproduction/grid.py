"""The figures, and the cells that they need: every cell is one run, and belongs to any number of figures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from headstart.errors import ConfigError
from headstart.reproduction.scales import LAMBDA, Scale, changed
from headstart.training.config import RunConfig

Outer = Literal["", "bounds", "smoothness"]
"""Where a cell's outer step sizes come from: its config, the worst-case bounds, or the measured smoothness of the objective."""
USUAL = {"lr": 0.4, "start": "model"}
"""What names of cells leave out, where headstart's own default has become another."""
HALF, FIFTH = 0.5, 0.2
"""α of the nonconvex figures over that of the strongly convex ones, as deeper layers are curved more; and a further one for step-sizes."""


@dataclass(frozen=True)
class Setting:
    """One curve of a figure.

    Args:
        label: what to call it there.
        group: curves of one group share a colour scale, and N or another number goes along it.
        x: that number.
        config: the run, its seed aside.
        outer: where the outer step sizes come from.
        geometry: measure the inner loss's curvature along training, and test transductively as well.
    """

    label: str
    group: str
    x: float
    config: RunConfig
    outer: Outer = ""
    geometry: bool = False

    @property
    def full(self) -> str:
        """The label with its group."""
        return self.label if self.group in self.label else f"{self.group}, {self.label}"

    def name(self) -> str:
        """A short name that only this setting has."""
        # What is as usual does not count, so that a new setting of headstart, or another default, gives no cell another name.
        usual = {**RunConfig().flat(), **USUAL}
        flat = {k: v for k, v in self.config.flat().items() if k not in ("seed", "data_path") and v != usual[k]}
        text = json.dumps([flat, self.outer], sort_keys=True)
        adapt = {"all": "maml"}.get(self.config.learner.adapt, self.config.learner.adapt.replace(":", ""))
        return f"{adapt}-n{self.config.learner.steps}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Figure:
    """A question, and the settings that answer it.

    Args:
        name: on the command line.
        title: what the figure asks.
        settings: its curves.
        seeds: of every setting.
        along: what the number of a setting is.
    """

    name: str
    title: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    along: str = "inner steps N"


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Args:
        setting: what is run; its label is that of the first figure with it.
        seed: of its episodes and first weights.
        geometry: whether curvature is measured along training.
        figures: those it is part of.
    """

    setting: Setting
    seed: int
    geometry: bool
    figures: tuple[str, ...] = field(compare=False)

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.setting.name()}-s{self.seed}"

    @property
    def config(self) -> RunConfig:
        """The run."""
        return changed(self.setting.config, seed=self.seed)


def cells_of(figures: Sequence[Figure]) -> list[Cell]:
    """The cells of some figures, each once; those of one seed stand together, the dear ones first."""
    found: dict[tuple[str, int], Cell] = {}
    for figure in figures:
        for setting in figure.settings:
            for i, seed in enumerate(figure.seeds):
                key = (setting.name(), seed)
                before = found.get(key)
                geometry = (setting.geometry and i == 0) or (before is not None and before.geometry)
                names = (*(before.figures if before else ()), figure.name)
                found[key] = Cell(before.setting if before else setting, seed, geometry, names)
    dear = lambda c: ({"all": 3, "last:2": 1}.get(c.config.learner.adapt, 0) * c.config.learner.steps, c.config.train.tasks)  # noqa: E731
    return sorted(found.values(), key=lambda c: (c.seed, *(-v for v in dear(c))))


# -- the figures -----------------------------------------------------------------------------------------------------------


def _convex(own: RunConfig, scale: Scale) -> Figure:
    settings = [Setting(f"N = {N}", "head", N, changed(own, steps=N, l2=LAMBDA), geometry=True) for N in scale.steps]
    return Figure("F1", "Strongly convex: the last layer adapts, with an L2 term", tuple(settings), scale.seeds)


def _nonconvex(own: RunConfig, scale: Scale) -> Figure:
    lr = HALF * float(own.learner.lr)
    block = [
        Setting(f"N = {N}", "last block and head", N, changed(own, adapt="last:2", steps=N, lr=lr), geometry=True) for N in scale.steps
    ]
    return Figure("F2", "Nonconvex: the last convolution block and the head adapt", tuple(block), scale.seeds)


def _hidden(own: RunConfig, scale: Scale) -> Figure:
    lr, width = HALF * float(own.learner.lr), f"hidden_head={own.learner.filters}"
    two = [
        Setting(
            f"N = {N}",
            "hidden layer and head",
            N,
            changed(own, adapt="last:2", steps=N, lr=lr, model="conv4", model_options=width),
            geometry=True,
        )
        for N in scale.few
    ]
    return Figure("F2b", "Nonconvex, the other reading: a hidden linear layer and the head adapt", tuple(two), scale.seeds)


def _maml(own: RunConfig, scale: Scale) -> Figure:
    pairs = (("ANIL", "head"), ("MAML", "all"))
    settings = [
        Setting(f"{name}, N = {N}", name, N, changed(own, adapt=adapt, steps=N), geometry=True) for name, adapt in pairs for N in scale.maml
    ]
    return Figure("F3", "ANIL against MAML: the same network, N and step size", tuple(settings), scale.seeds)


def _step_sizes(own: RunConfig, scale: Scale) -> Figure:
    lr, found = float(own.learner.lr), []
    for geometry, changes, usual in (("head", {"l2": LAMBDA}, lr), ("last block and head", {"adapt": "last:2"}, HALF * lr)):
        for N in scale.few:
            rates = [(f"α = {a:g}", a) for a in (lr, HALF * lr, FIFTH * lr)] + [(f"α = {5 * usual:g}/N", round(5 * usual / N, 6))]
            found += [
                Setting(f"{geometry}, {say}, N = {N}", f"{geometry}, {say}", N, changed(own, steps=N, lr=a, **changes)) for say, a in rates
            ]
    return Figure("step-sizes", "Equal inner step sizes in both geometries, and α in proportion to 1/N", tuple(found), scale.fewer_seeds)


def _batch(own: RunConfig, scale: Scale) -> Figure:
    sizes = sorted({*scale.batches, own.train.tasks})
    settings = [Setting(f"B = {B}", "head", B, changed(own, l2=LAMBDA, tasks=B)) for B in sizes]
    return Figure("batch", "Tasks in a meta-batch", tuple(settings), scale.fewer_seeds, "tasks B")


def _classes(own: RunConfig, scale: Scale, classes: int) -> Figure:
    counts = sorted({max(own.train.ways, round(share * classes)) for share in (0.1, 0.25, 0.5)})
    settings = [Setting(f"{k} classes", "head", k, changed(own, l2=LAMBDA, train_classes=k)) for k in counts if k < classes]
    settings.append(Setting(f"all {classes} classes", "head", classes, changed(own, l2=LAMBDA)))
    return Figure("classes", "How many training classes tasks are made of", tuple(settings), scale.fewer_seeds, "training classes")


def _regularisation(own: RunConfig, scale: Scale) -> Figure:
    settings = [Setting(f"λ = {v:g}", "head", v, changed(own, l2=v)) for v in (0.0, LAMBDA / 10, LAMBDA, 10 * LAMBDA)]
    return Figure("lambda", "The regularisation λ, from 0 up", tuple(settings), scale.fewer_seeds, "λ")


def _examples(own: RunConfig, scale: Scale) -> Figure:
    shots, queries = own.train.shots, own.train.queries
    pairs = [(1, queries), (shots, queries), (2 * shots, queries), (shots, 1), (shots, 3 * queries)]
    if shots == 1:  # few examples of a class there are
        pairs = [(1, 2), (1, queries), (3, queries)]
    settings = [
        Setting(f"{s} support, {q} query", "query" if s == shots else "support", s * 100 + q, changed(own, l2=LAMBDA, shots=s, queries=q))
        for s, q in pairs
    ]
    return Figure("examples", "Support and query examples per class", tuple(settings), scale.fewer_seeds, "examples")


def _sampling(own: RunConfig, scale: Scale) -> Figure:
    per_task = own.train.ways * (own.train.shots + own.train.queries)
    classes = min(20, max(own.train.ways, own.train.tasks))
    examples = max(own.train.shots + own.train.queries, own.train.tasks * per_task // classes)
    dense = changed(own, l2=LAMBDA, sampling="dense", tasks=16 * own.train.tasks, pool_classes=classes, pool_examples=examples)
    settings = (
        Setting(f"independent, {own.train.tasks} tasks", "head", 0, changed(own, l2=LAMBDA)),
        Setting(f"dense, {dense.train.tasks} tasks of as many images", "head", 1, dense),
    )
    return Figure("sampling", "Independent tasks, or many tasks from one pool of as many images", settings, scale.fewer_seeds, "sampling")


def _implicit(own: RunConfig, scale: Scale) -> Figure:
    steps = (*scale.few[:2], scale.steps[-1])
    options = {"hypergradient": "implicit", "hypergradient_options": "stationary=none"}
    settings = [
        Setting(f"{say}, N = {N}", say, N, changed(own, l2=LAMBDA, steps=N, **o))
        for say, o in (("exact", {}), ("implicit", options))
        for N in steps
    ]
    return Figure("implicit", "The exact meta-gradient, or the implicit one of a converged inner loop", tuple(settings), scale.fewer_seeds)


def _outer(own: RunConfig, scale: Scale) -> Figure:
    convex, sgd = changed(own, l2=LAMBDA), changed(own, l2=LAMBDA, optimizer="sgd")
    settings = (
        Setting(f"Adam, {own.train.outer_lr:g}", "head", 0, convex),
        Setting("SGD, β_w and β_φ from the measured smoothness of F", "head", 1, sgd, outer="smoothness"),
        Setting("SGD, β_w and β_φ of the worst-case bounds", "head", 2, sgd, outer="bounds"),
    )
    return Figure("outer", "The theory's outer step sizes beside Adam", settings, scale.fewer_seeds, "outer optimizer")


FIGURES: dict[str, Callable[..., Figure]] = {
    "F1": _convex,
    "F2": _nonconvex,
    "F2b": _hidden,
    "F3": _maml,
    "step-sizes": _step_sizes,
    "batch": _batch,
    "classes": _classes,
    "lambda": _regularisation,
    "examples": _examples,
    "sampling": _sampling,
    "implicit": _implicit,
    "outer": _outer,
}


def figures_of(names: Sequence[str], own: RunConfig, scale: Scale, classes: int) -> list[Figure]:
    """The figures of some names, or all.

    Args:
        names: of :data:`FIGURES`; none for all.
        own: the base of all settings.
        scale: how much is run.
        classes: training classes there are.

    Raises:
        ConfigError: a name is not known.
    """
    for name in names:
        if name not in FIGURES:
            raise ConfigError(f"figure {name!r} is not known; choose from {', '.join(FIGURES)}")
    wanted = [name for name in FIGURES if name in names or not names]
    return [_classes(own, scale, classes) if name == "classes" else FIGURES[name](own, scale) for name in wanted]
