"""Finds the command that is meant, and runs it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import tyro

from headstart.cli.adapt import Adapt
from headstart.cli.bench import Bench
from headstart.cli.compare import Compare
from headstart.cli.data import Data
from headstart.cli.doctor import Doctor
from headstart.cli.evaluate import Evaluate
from headstart.cli.export import Export
from headstart.cli.listing import with_choices
from headstart.cli.plan import PlanRun
from headstart.cli.playground import Playground
from headstart.cli.predict import Predict
from headstart.cli.reproduce import Reproduce
from headstart.cli.serve import Serve
from headstart.cli.train import Train
from headstart.cli.verify import Verify
from headstart.container import read_json
from headstart.errors import HeadstartError, RankError
from headstart.ranks import ALONE, joined
from headstart.training.config import RunConfig
from headstart.training.run_folder import CONFIG
from headstart.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for a failed verification, 2 for a bad input, 130 when interrupted."""
    said = logging.StreamHandler(sys.stderr)
    said.addFilter(
        lambda record: record.name == "headstart" or record.levelno >= logging.WARNING
    )  # not what every library says of its work
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[said])
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):
        print(f"headstart {__version__}")
        return 0
    try:
        command = parse(args)
        with joined() if isinstance(command, DIVIDED) else nullcontext(ALONE) as ranks, _quiet(not ranks.is_first):
            code = command()
            sys.stdout.flush()  # else a full disk behind it would be noticed when nobody can say so any more
            return code
    except RankError as error:
        # Of an error on one rank that rank has the message; the first repeats it, and the others would only echo.
        if int(os.environ.get("RANK") or 0) == 0:
            print(f"headstart: {error}", file=sys.stderr)
        return 2
    except HeadstartError as error:
        print(f"headstart: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads our output has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"headstart: {error}; the system refuses it: look at the room, the rights and the name", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headstart: interrupted", file=sys.stderr)
        return 130


DIVIDED = (Train, Evaluate, PlanRun)
"""Commands whose work several processes share; of the others each process does its own."""


@contextmanager
def _quiet(on: bool) -> Iterator[None]:
    """Nothing but errors is said, if ``on``: of several processes one speaks."""
    if not on:
        yield
        return
    logging.getLogger("headstart").setLevel(logging.ERROR)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def parse(
    args: list[str],
) -> Train | Evaluate | Adapt | Predict | Export | Serve | Playground | PlanRun | Reproduce | Compare | Verify | Bench | Doctor | Data:
    """The command that arguments stand for; a config file among them gives the defaults of the others."""
    file = _option("--config", args)
    kept = Path(_option("--out", args) or "") / CONFIG
    if not file and "--resume" in args and kept.is_file():
        file = str(kept)  # a run goes on with its own settings
    defaults = RunConfig.load(file) if file else RunConfig()
    given = (*_given(args), *(_keys(file) if file else ()))
    train = Annotated[Train, tyro.conf.subcommand("train", default=Train(defaults, given=given), description=_listed("train", Train, args))]
    test = Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    adapting = Annotated[Adapt, tyro.conf.subcommand("adapt")]
    predicting = Annotated[Predict, tyro.conf.subcommand("predict")]
    exporting = Annotated[Export, tyro.conf.subcommand("export")]
    serving = Annotated[Serve, tyro.conf.subcommand("serve")]
    playing = Annotated[Playground, tyro.conf.subcommand("playground")]
    planning = Annotated[
        PlanRun, tyro.conf.subcommand("plan", default=PlanRun(defaults, given=given), description=_listed("plan", PlanRun, args))
    ]
    again = Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    beside = Annotated[Compare, tyro.conf.subcommand("compare")]
    check = Annotated[Verify, tyro.conf.subcommand("verify")]
    timing = Annotated[Bench, tyro.conf.subcommand("bench")]
    looking = Annotated[Doctor, tyro.conf.subcommand("doctor")]
    data = Annotated[Data, tyro.conf.subcommand("data")]
    return tyro.cli(  # type: ignore[no-any-return, call-overload]
        train | test | adapting | predicting | exporting | serving | playing | planning | again | beside | check | timing | looking | data,
        prog="headstart",
        description="Few-shot meta-learning: learn a start from which a new task is learned with a handful of examples.",
        args=args or ["--help"],
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.ConsolidateSubcommandArgs, tyro.conf.OmitSubcommandPrefixes),
    )


def _given(args: list[str]) -> list[str]:
    """Names of the settings that arguments set."""
    return [arg.removeprefix("--").partition("=")[0].replace("-", "_") for arg in args if arg.startswith("--")]


def _keys(file: str) -> list[str]:
    """Names of the settings in a config file that :meth:`RunConfig.load` has read."""
    return list(read_json(Path(file)))


def _listed(name: str, command: type, args: list[str]) -> str | None:
    """The description with all choices where the help of this one command may be asked for; None for the short one."""
    return with_choices(command) if args[:1] == [name] else None


def _option(name: str, args: list[str]) -> str:
    """The value of an option that sets the defaults of others, and so must be known first."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}=")
    return ""
