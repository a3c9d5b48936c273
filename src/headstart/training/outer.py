"""The outer optimizer: one group of parameters each for w, φ and the inner solver's own, and a schedule of their step sizes."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from headstart.errors import ConfigError, refuses
from headstart.learner import MetaLearner
from headstart.registry import Registry, parse_options
from headstart.training.checks import above_zero, at_least
from headstart.types import ParamsLike

OPTIMIZERS: Registry[torch.optim.Optimizer] = Registry("optimizer")
SCHEDULES: Registry[LRScheduler] = Registry("schedule")

OPTIMIZERS.register("adamw")(torch.optim.AdamW)
OPTIMIZERS.register("adam")(torch.optim.Adam)
OPTIMIZERS.register("sgd")(torch.optim.SGD)
OPTIMIZERS.register("rmsprop")(torch.optim.RMSprop)
OPTIMIZERS.register("nadam")(torch.optim.NAdam)
OPTIMIZERS.register("radam")(torch.optim.RAdam)
OPTIMIZERS.register("adagrad")(torch.optim.Adagrad)
RETURN = 4
"""A continued run goes back onto its schedule over one in so many of the iterations that were added."""


@SCHEDULES.register("constant")
def _constant(optimizer: torch.optim.Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda i: 1.0)


@SCHEDULES.register("cosine")
def _cosine(optimizer: torch.optim.Optimizer, iterations: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda i: 0.5 * (1 + math.cos(math.pi * i / iterations)))


@dataclass(frozen=True)
class OuterConfig:
    """How the outer loop steps."""

    iterations: int = 1000
    """outer steps"""
    outer_lr: float = 1e-3
    """step size of the outer optimizer"""
    outer_lr_w: float = 0.0
    """another step size for w, what adapts (the theory's β_w); 0 for outer_lr"""
    outer_lr_phi: float = 0.0
    """another step size for φ, what is shared (the theory's β_φ); 0 for outer_lr"""
    optimizer: str = "adamw"
    """the outer optimizer: a name, or a class of torch's kind as module:name"""
    optimizer_options: str = ""
    """its options as NAME=VALUE,NAME=VALUE, such as momentum=0.9"""
    weight_decay: float = 0.0
    """weight decay of the outer optimizer; it leaves the inner solver's own parameters alone"""
    schedule: str = "cosine"
    """how the outer step size goes over the iterations: cosine falls to zero, constant stays, or a scheduler of torch's kind as
    module:name"""
    schedule_options: str = ""
    """options of the schedule as NAME=VALUE,NAME=VALUE"""
    clip: float = 10.0
    """largest norm of a meta-gradient; longer ones are scaled down"""
    deterministic: bool = False
    """only operations that give the same result every time (torch.use_deterministic_algorithms); on a GPU this needs
    CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment"""

    @refuses
    def __post_init__(self) -> None:
        at_least(self, 1, "iterations")
        at_least(self, 0, "weight_decay", "outer_lr_w", "outer_lr_phi")
        above_zero(self, "outer_lr", "clip")
        if not isinstance(self.deterministic, bool):
            raise ConfigError(f"deterministic={self.deterministic!r}: use True or False")
        # Tried out on one number, so that a name or an option that cannot work is refused before any work is done.
        trial = _optimizer(self, [{"params": [torch.zeros(1, requires_grad=True)]}])
        _schedule(self, trial)

    def rate_of(self, group: str) -> float:
        """The step size of ``"w"``, ``"phi"`` or ``"solver"`` before scheduling."""
        return {"w": self.outer_lr_w, "phi": self.outer_lr_phi}.get(group, 0.0) or self.outer_lr


@dataclass(frozen=True)
class Return:
    """How a continued run comes back onto its schedule, without a jump.

    Args:
        begun: the iteration at which it went on.
        length: over so many iterations the step sizes go from where they stood to the schedule.
        stood: the step size of every group in the last step before.
    """

    begun: int
    length: int
    stood: tuple[float, ...]

    def rate(self, group: int, iteration: int, scheduled: float) -> float:
        """The step size of a group in an iteration for which the schedule has another."""
        share = min(1.0, (iteration - self.begun + 1) / self.length)
        return scheduled if share == 1.0 else self.stood[group] + share * (scheduled - self.stood[group])


class Outer:
    """Steps w, φ and the inner solver's own parameters along meta-gradients, each with its own step size.

    The inner solver's own parameters — step sizes, the logarithm of a regularisation — decay by no weight decay, and their step
    size is ``outer_lr`` times their scale, so that Adam moves a step size of 0.01 by small parts of 0.01. Scales are the solver's
    to tell (``scales()``); else the mean size of a step size when training begins, and 1 for others.

    A run that goes on for more iterations than it was planned for takes its step sizes from the schedule of the longer run. It
    gets there over the first quarter of the iterations that were added, in a straight line from where they stood, so that there
    is no jump.

    Args:
        learner: whose parameters it moves.
        config: the optimizer, its step sizes and schedule.
        iteration: steps that were taken before.
        saved: what :meth:`state` returned then.

    Raises:
        ConfigError: the optimizer was another before.

    Example:
        >>> import headstart as hs
        >>> learner = hs.metasgd(hs.models.mlp(1, 1, (8,)), steps=1, lr=0.01, loss="squared_error")
        >>> outer = Outer(learner, OuterConfig(outer_lr=0.1, outer_lr_w=0.2))
        >>> {group["name"]: round(group["lr"], 6) for group in outer.optimizer.param_groups}
        {'w': 0.2, 'solver × 0.01': 0.001}
    """

    def __init__(self, learner: MetaLearner, config: OuterConfig, iteration: int = 0, saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        if saved.get("optimizer", config.optimizer) != config.optimizer:
            raise ConfigError(f"the run was made with optimizer={saved['optimizer']!r}, and not {config.optimizer!r}; that cannot change")
        self.config, self.parameters = config, learner.parameters()
        self.scales: dict[str, float] = saved.get("scales") or scales_of(learner)
        self.optimizer = _optimizer(config, self._groups(learner))
        self.scheduler = _schedule(config, self.optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects optimizer steps between those of a schedule
            for _ in range(iteration):
                self.scheduler.step()
        self.last: list[float] = list(saved.get("last", []))
        self.back: Return | None = Return(**{**saved["back"], "stood": tuple(saved["back"]["stood"])}) if saved.get("back") else None
        self.note = ""
        planned = saved.get("iterations", config.iterations)
        if planned != config.iterations and 0 < iteration < config.iterations and self.last:
            self.back = Return(iteration, math.ceil((config.iterations - iteration) / RETURN), tuple(self.last))
            self.note = (
                f"the run was planned for {planned} steps and goes on from step {iteration} to {config.iterations}: from"
                f" {self.last[0]:.3g} the outer step size goes over {self.back.length} steps to the {config.schedule} schedule of"
                f" {config.iterations} steps"
            )

    def step(self, gradients: ParamsLike, iteration: int) -> None:
        """One step along the (scaled) meta-gradient.

        Args:
            gradients: of every parameter, by name.
            iteration: counted from 0.
        """
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name]
        groups = self.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        self.last = [self.back.rate(i, iteration, lr) if self.back else lr for i, lr in enumerate(scheduled)]
        for group, lr in zip(groups, self.last, strict=True):
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group, lr in zip(groups, scheduled, strict=True):
            group["lr"] = lr  # some schedules go on from the value that they find
        self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the optimizer's own state, so that a run goes on as it would have."""
        back = None if self.back is None else {"begun": self.back.begun, "length": self.back.length, "stood": list(self.back.stood)}
        planned = self.config.iterations
        return {"optimizer": self.config.optimizer, "iterations": planned, "scales": self.scales, "last": self.last, "back": back}

    def _groups(self, learner: MetaLearner) -> list[dict[str, Any]]:
        config, adapted = self.config, learner.partition.split()[0]
        decays = "weight_decay" in inspect.signature(OPTIMIZERS.find(config.optimizer)).parameters
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            own = name.startswith("inner.")
            kind = "solver" if own else "w" if name in adapted else "phi"
            scale = self.scales.get(name, 1.0) if own else 1.0
            label = f"{kind} × {scale:.6g}" if own else kind
            group = groups.setdefault(label, {"params": [], "name": label, "lr": config.rate_of(kind) * scale})
            if own and decays:
                group["weight_decay"] = 0.0
            group["params"].append(parameter)
        return list(groups.values())


def scales_of(learner: MetaLearner) -> dict[str, float]:
    """The scale of each of the inner solver's own parameters, by its name among the learner's.

    The solver says them by ``scales()``, from names, or from what names begin with, to scales; else they are the mean size that step
    sizes (``lr.…``) have now, and 1 for others.
    """
    say = getattr(learner.inner, "scales", None)
    told: Mapping[str, float] = say() if say is not None else {}
    return {f"inner.{name}": _scale(name, value, told) for name, value in learner.theta.items()}


def _scale(name: str, value: Tensor, told: Mapping[str, float]) -> float:
    fitting = [start for start in told if name.startswith(start)]
    if fitting:
        return float(told[max(fitting, key=len)])
    return (float(value.detach().abs().mean()) or 1.0) if name.startswith("lr.") else 1.0


def _optimizer(config: OuterConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    options = parse_options(config.optimizer_options, "optimizer_options")
    known = inspect.signature(OPTIMIZERS.find(config.optimizer)).parameters
    if "weight_decay" in known or config.weight_decay:
        options = {"weight_decay": config.weight_decay, **options}
    try:
        return OPTIMIZERS.build(config.optimizer, params=groups, lr=config.outer_lr, **options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise ConfigError(f"optimizer {config.optimizer!r} cannot be made of {given or 'no options'}: {error}") from error


def _schedule(config: OuterConfig, optimizer: torch.optim.Optimizer) -> LRScheduler:
    options = parse_options(config.schedule_options, "schedule_options")
    if "iterations" in inspect.signature(SCHEDULES.find(config.schedule)).parameters:
        options = {"iterations": config.iterations, **options}
    try:
        found = SCHEDULES.build(config.schedule, optimizer=optimizer, **options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{k}={v!r}" for k, v in options.items())
        raise ConfigError(f"schedule {config.schedule!r} cannot be made of {given or 'no options'}: {error}") from error
    needs = [p.name for p in inspect.signature(found.step).parameters.values() if p.default is inspect.Parameter.empty]
    if needs:
        raise ConfigError(
            f"schedule={config.schedule!r} goes by {needs[0]}, which the outer loop does not have; use one that goes by steps"
        )
    return found
