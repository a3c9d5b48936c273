"""The command line: parses, builds a config, calls; no logic of its own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from headstart.data.check import check
from headstart.data.fetch import REMOTES, fetch
from headstart.data.sampling import Data as AnyData
from headstart.data.sources import SOURCES, downloads, entry_of, load
from headstart.data.store import Source
from headstart.errors import ConfigError, DataError, HeadstartError
from headstart.evaluation import BatchNorm, evaluate
from headstart.experiments.report import write_report
from headstart.learner import MetaLearner
from headstart.training import run as runs
from headstart.training.checkpoint import prepare_folder, write_atomically
from headstart.training.config import RunConfig

try:
    import tyro
except ImportError:  # pragma: no cover
    sys.exit("headstart: the command line needs its extra: pip install 'headstart[cli]'")


@dataclass(frozen=True)
class Train:
    """Meta-train on a data source, evaluate on tasks it never saw, and keep everything in a run folder.

    Example: headstart train --data glyphs --ways 5 --shots 1 --iterations 500 --out runs/first
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    out: Path | None = None
    """run folder; by default a new one under runs/"""
    config: Path | None = None
    """a JSON file of settings, such as the config.json of a run; other options override it"""
    resume: bool = False
    """go on with the run in --out, from its last checkpoint"""
    overwrite: bool = False
    """replace the run in --out"""
    test_episodes: int = 1000
    """episodes of the evaluation that follows training; 0 for none"""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a run on test tasks it never saw, and write its report.

    Example: headstart evaluate runs/first --episodes 1000
    """

    run: Annotated[Path, tyro.conf.Positional]
    """the run folder"""
    episodes: int = 1000
    """test episodes"""
    ways: int | None = None
    """classes per episode; as in training by default"""
    shots: int | None = None
    """support examples per class, or per task of a table; as in training by default"""
    queries: int | None = None
    """query examples per class, or per task of a table; 15 by default, or as many as the smallest class allows"""
    steps: int | None = None
    """inner steps; as in training by default"""
    seed: int = 0
    """of the episodes"""
    batch_norm: BatchNorm = "running"
    """statistics of batch normalisation: running (training examples; inductive), episode (transductive, as in published MAML
    numbers), batch (100 episodes together)"""


@dataclass(frozen=True)
class PlanRun:
    """Measure ways to meta-train on your own model and tasks, and recommend what adapts, how many inner steps and which step size.

    Example: headstart plan --data glyphs --budget 5m --out plans/glyphs
    """

    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RunConfig)
    budget: str = "10m"
    """the training time to plan for, such as 90s, 10m or 1h; planning comes on top, and takes minutes for a large network"""
    pilot: bool = False
    """train the finalists for half the budget together, and rank them by what they reach"""
    candidates: str = "head,last:2,all"
    """choices of what adapts, separated by commas"""
    inner_steps: tuple[int, ...] = (1, 3, 5, 10)
    """numbers of inner steps to weigh"""
    lambdas: tuple[float, ...] = ()
    """values of λ to weigh for a linear head; by default 0 and a hundredth of its largest eigenvalue"""
    out: Path | None = None
    """folder for plan.json, config.json and report.html; by default a new one under plans/"""
    config: Path | None = None
    """a JSON file of settings; other options override it"""


@dataclass(frozen=True)
class Verify:
    """Check the mathematics on problems with closed-form constants: exactness, every bound, descent, the ledger.

    Exits with 1 if anything is violated. Example: headstart verify
    """

    pairs: int = 10_000
    """random pairs of points per problem"""
    seed: int = 0
    """of all that is random"""
    out: Path | None = None
    """a JSON file for the rows of the table"""


@dataclass(frozen=True)
class ListSources:
    """List the data sources."""


@dataclass(frozen=True)
class Info:
    """Say what a data source is, what it needs, and where it comes from."""

    name: Annotated[str, tyro.conf.Positional]
    """name of the source"""


@dataclass(frozen=True)
class Fetch:
    """Fetch the files of a data source: resumed where it was cut, and checked."""

    name: Annotated[str, tyro.conf.Positional]
    """name of the source"""
    to: Path | None = None
    """folder to put them in; by default the cache, where --data NAME finds them"""


@dataclass(frozen=True)
class Check:
    """Load a data source and look it over: classes, sizes, and examples in more than one split.

    Example: headstart data check folder:my/pictures
    """

    data: Annotated[str, tyro.conf.Positional]
    """the source, as for train: NAME or NAME:PATH"""
    data_path: str = ""
    """where the source's files are"""
    data_options: str = ""
    """options of the source as NAME=VALUE,NAME=VALUE"""


@dataclass(frozen=True)
class Data:
    """List, describe, fetch and check data sources."""

    command: (
        Annotated[ListSources, tyro.conf.subcommand("list")]
        | Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Check, tyro.conf.subcommand("check")]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failed verification, 2 for a bad input, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command = _parse(args)
        match command:
            case Data():
                return _data(command.command)
            case Train():
                return _train(command)
            case Evaluate():
                return _evaluate(command)
            case PlanRun():
                return _plan(command)
            case Verify():
                return _verify(command)
    except HeadstartError as error:
        print(f"headstart: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headstart: interrupted", file=sys.stderr)
        return 130


def _parse(args: list[str]) -> Train | Evaluate | PlanRun | Verify | Data:
    file = _option("--config", args)
    kept = Path(_option("--out", args) or "") / runs.CONFIG
    if not file and "--resume" in args and kept.is_file():
        file = str(kept)  # a run goes on with its own settings
    defaults = RunConfig.load(file) if file else RunConfig()
    train = Annotated[Train, tyro.conf.subcommand("train", default=Train(defaults))]
    test = Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    planning = Annotated[PlanRun, tyro.conf.subcommand("plan", default=PlanRun(defaults))]
    check = Annotated[Verify, tyro.conf.subcommand("verify")]
    data = Annotated[Data, tyro.conf.subcommand("data")]
    return tyro.cli(  # type: ignore[no-any-return, call-overload]
        train | test | planning | check | data,
        prog="headstart",
        description="Few-shot meta-learning: learn a start from which a new task is learned with a handful of examples.",
        args=args or ["--help"],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.ConsolidateSubcommandArgs, tyro.conf.OmitSubcommandPrefixes),
    )


def _option(name: str, args: list[str]) -> str:
    """The value of an option that sets the defaults of others, and so must be known first."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
    return ""


def _train(command: Train) -> int:
    config = command.run
    out = command.out or _new_folder(config)
    _check_episodes(command.test_episodes)
    run, learner, source = runs.start(config, out, resume=command.resume, overwrite=command.overwrite)
    print(f"\n{run}")
    if command.test_episodes and not run.interrupted:
        return _measure(Evaluate(Path(out), command.test_episodes), config, learner, source)
    report = write_report(out, config, learner, source)
    print(f"report: {report}\nnext:   headstart evaluate {out}")
    if run.interrupted:
        print(f"        headstart train --resume --out {out}")
    return 130 if run.interrupted else 0


def _check_episodes(episodes: int) -> None:
    if episodes == 1 or episodes < 0:
        raise ConfigError(f"test_episodes={episodes}: at least 2 are needed for an interval; 0 evaluates nothing")


def _evaluate(command: Evaluate) -> int:
    return _measure(command, *runs.open_run(command.run))


def _measure(command: Evaluate, config: RunConfig, learner: MetaLearner, source: AnyData) -> int:
    result = evaluate(
        learner,
        source.test,
        ways=config.train.ways if command.ways is None else command.ways,
        shots=config.train.shots if command.shots is None else command.shots,
        queries=command.queries,
        episodes=command.episodes,
        steps=command.steps,
        seed=command.seed,
        batch_norm=command.batch_norm,
    )
    write_atomically(command.run / runs.EVALUATION, result.save)
    report = write_report(command.run, config, learner, source, result)
    print(f"\n{result}\nreport: {report}")
    return 0


def _plan(command: PlanRun) -> int:
    from headstart.experiments.plan_report import write_plan_report
    from headstart.planning.config import PlanConfig, seconds_of
    from headstart.planning.search import plan

    adapt = tuple(c.strip() for c in command.candidates.split(",") if c.strip())
    config = PlanConfig(adapt, command.inner_steps, command.lambdas or None, seconds_of(command.budget), command.pilot)
    learner, source = runs.build(command.run)
    out = command.out or _unused(Path("plans") / command.run.data.partition(":")[0])
    prepare_folder(out)
    found = plan(learner.model, source, command.run.train, config, start=learner.start, hypergradient=learner.hypergradient)
    found.save(out, command.run)
    report = write_plan_report(out, found, f"{command.run.data}: a plan for {command.budget} of training")
    print(f"{found}\nreport: {report}\nnext:   headstart train --config {out / 'config.json'}")
    return 0


def _verify(command: Verify) -> int:
    from headstart.verifying.checks import verify

    found = verify(command.pairs, command.seed)
    print(found)
    if command.out is not None:
        found.save(command.out)
    return 0 if found.ok else 1


def _data(command: ListSources | Info | Fetch | Check) -> int:
    if isinstance(command, ListSources):
        for name, entry in SOURCES.items():
            print(f"{name:<14} {entry.about}")
    elif isinstance(command, Info):
        entry = entry_of(command.name)
        print(f"{command.name}: {entry.about}\nneeds:   {entry.needs_path or 'nothing'}")
        for remote in REMOTES.get(entry.remote, ()):
            print(f"file:    {remote.url}\n         md5 {remote.md5}; {remote.licence}")
        if entry.remote:
            print(f"fetch:   headstart data fetch {command.name}   (into {downloads(command.name)})")
    elif isinstance(command, Fetch):
        entry = entry_of(command.name)
        if not entry.remote:
            raise DataError(f"{command.name} has nothing to fetch; it needs {entry.needs_path or 'nothing'}")
        for remote in REMOTES[entry.remote]:
            print(fetch(remote, command.to or downloads(command.name)))
    else:
        options = RunConfig(data_options=command.data_options).source_options()
        source = load(command.data, command.data_path or None, **options)
        print(check(source) if isinstance(source, Source) else source)
    return 0


def _new_folder(config: RunConfig) -> Path:
    name = f"{config.data.partition(':')[0]}-{config.learner.adapt}-{config.train.ways}way-{config.train.shots}shot".replace(
        ":", ""
    ).replace("*", "")
    return _unused(Path("runs") / name)


def _unused(first: Path) -> Path:
    """The path, with a number behind it if there is something already."""
    path, count = first, 2
    while path.exists():
        path, count = first.with_name(f"{first.name}-{count}"), count + 1
    return path


if __name__ == "__main__":
    sys.exit(main())
