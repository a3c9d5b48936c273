"""Every algorithm of the gallery on the same data, with the same time of training and the same test episodes.

    python benchmarks/gallery.py --source fc100 --data-path PATH --seeds 0 1 2 --seconds 60 --out runs/gallery
    python benchmarks/gallery.py --source fc100 --data-path PATH --algorithms reptile --seeds 0 --out runs/gallery    # one cell
    python benchmarks/gallery.py --table --out runs/gallery --page docs/gallery/README.md

A cell is one (source, algorithm, seed). It lies in OUT/SOURCE/ALGORITHM/SEED: an ordinary run folder, whose config and iterations are kept,
and cell.json once it is done. A cell that is done is skipped; one that was cut short goes on from its last checkpoint. The number of outer
steps is what fits into the seconds, by the processor's time for a few steps, so that other work on the machine has little influence: give
each process one thread (OMP_NUM_THREADS=1). Algorithms that first classify all training classes spend half of the seconds on that. Test
episodes are those of seed 0, whatever the seed of training.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.stats import t as student

import headstart as hs
from common import machine
from headstart.errors import HeadstartError
from headstart.evaluation.batch_norm import has_batch_norm
from headstart.registry import parse_options
from headstart.training import run as runs
from headstart.training.config import RunConfig
from headstart.training.loop import training_sampler
from headstart.training.pretraining import WholeData, classifier
from headstart.training.run_folder import CONFIG

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "gallery"
SOURCES: dict[str, dict[str, Any]] = {
    "fc100": {"data": "fc100", "ways": 5, "shots": 5, "queries": 10, "augment": "crop", "filters": 32, "weight_decay": 0.0005},
    "omniglot": {"data": "omniglot", "ways": 20, "shots": 1, "queries": 5, "augment": "affine", "filters": 32},
    "fsmol": {"data": "fsmol", "shots": 16, "queries": 16, "hidden": [512, 128], "weight_decay": 0.05},
    "glyphs": {"data": "glyphs", "ways": 5, "shots": 1, "queries": 5, "augment": "affine", "filters": 32},
}
NAMES = {
    "fc100": "FC100, 5-way 5-shot",
    "omniglot": "Omniglot, 20-way 1-shot",
    "fsmol": "FS-Mol, 16 rows",
    "glyphs": "glyphs, 5-way 1-shot",
}
QUERIES = {"fsmol": 64, "fc100": 5, "omniglot": 5}
"""Of each class in test episodes, where not 15: where everything adapts, examples are most of what an evaluation costs."""
DENSE, INDEPENDENT = {"sampling": "dense", "tasks": 128}, {"sampling": "independent", "tasks": 4}
"""How tasks are drawn where the body is shared, and runs once on a pool of examples, and where it adapts."""
COMMON: dict[str, Any] = {"outer_lr": 0.002, "minutes": 0.0}
CELL, TIMED = "cell.json", 3
MARKS = ("<!-- table: benchmarks/gallery.py --table writes between these lines -->", "<!-- end of the table -->")


def algorithms() -> list[str]:
    """The algorithms, by the names of their configs."""
    return sorted(path.stem for path in CONFIGS.glob("*.json"))


def config_of(source: str, algorithm: str, seed: int, **given: Any) -> RunConfig:
    """The settings of a cell but for its iterations: what all share, what the source needs, and what the algorithm is."""
    own = json.loads((CONFIGS / f"{algorithm}.json").read_text())
    by_class = "ways" in SOURCES[source]
    drawn = (
        DENSE
        if by_class and own.get("adapt", "head") in ("head", "head.weight", "head.code")
        else {**INDEPENDENT, "tasks": 4 if by_class else 16}
    )
    return RunConfig.from_flat({**COMMON, **SOURCES[source], **drawn, "seed": seed, **own, **given}, algorithm)


def step_seconds(learner: hs.MetaLearner, sampler: Any) -> float:
    """The processor's time for a meta-gradient: the median of a few, after two that do not count."""
    learner.model.train()
    taken = []
    for index in range(2 + TIMED):
        begin = time.process_time()
        learner.meta_gradient(sampler.batch(index))
        taken.append(time.process_time() - begin)
    return statistics.median(taken[2:])


def timed(config: RunConfig, source: Any, seconds: float) -> RunConfig:
    """The config with an inner step size, and with as many outer steps as fit into the seconds."""
    config, _ = runs.decided(config, source)
    learner, train = runs.learner_for(config, source), config.train
    learner.target_scale = getattr(source.train, "target_scale", None)
    if train.pretrain:
        whole = WholeData.of(source, train)
        own, _ = classifier(learner, len(whole.train.split.classes), train.seed)
        seconds /= 2
        train = replace(train, pretrain=max(1, int(seconds / step_seconds(own, whole.train))))
    train = replace(train, iterations=max(1, int(seconds / step_seconds(learner, training_sampler(source, train)))))
    return replace(config, train=replace(train, validate_every=train.iterations))


def measured(config: RunConfig, folder: Path, source_name: str, seconds: float, episodes: int) -> dict[str, Any]:
    """Trains a cell, or goes on with it, and evaluates it."""
    source = runs.load(config)
    if (folder / CONFIG).exists():
        config = RunConfig.load(folder / CONFIG)
    else:
        config = timed(config, source, seconds)
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / CONFIG)
    run, config, learner, source = runs.start(config, folder, resume=True, quiet=True)
    sizes = {"ways": config.train.ways, "shots": config.train.shots, "queries": QUERIES.get(source_name), "episodes": episodes}
    found = {}
    for policy in ("support", "episode") if has_batch_norm(learner.model) else ("support",):
        result = hs.evaluate(learner, source.test, **sizes, batch_norm=policy)  # type: ignore[arg-type]
        found[policy] = {
            "mean": result.mean,
            "ci95": result.ci95,
            "before": result.per_step[0][0],
            "statistics": result.protocol["batch_norm"],
        }
    return {
        "result": found,
        "transductive": learner.start.transductive,
        "metric": result.metric,
        "episodes": episodes,
        "iterations": run.iterations,
        "lr": config.learner.lr,
        "steps": config.learner.steps,
        "machine": machine(),
    }


def run_cells(arguments: argparse.Namespace) -> None:
    """Runs the cells that are asked for and not done yet."""
    hs.tune_process()
    for seed in arguments.seeds:
        for algorithm in arguments.algorithms or algorithms():
            folder = arguments.out / arguments.source / algorithm / str(seed)
            if (folder / CELL).exists():
                print(f"{folder}: done before", flush=True)
                continue
            cell: dict[str, Any] = {"source": arguments.source, "algorithm": algorithm, "seed": seed, "wanted_seconds": arguments.seconds}
            cell["settings"] = arguments.settings
            try:
                given = {"data_path": arguments.data_path, "validation_episodes": arguments.validation_episodes}
                given |= parse_options(arguments.settings, "settings")
                config = config_of(arguments.source, algorithm, seed, **given)
                cell |= measured(config, folder, arguments.source, arguments.seconds, arguments.episodes)
                own = cell["result"]["support"]
                said = f"{100 * own['mean']:.2f} ± {100 * own['ci95']:.2f} after {cell['iterations']} steps"
            except HeadstartError as error:
                cell["refused"] = said = str(error)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CELL).write_text(json.dumps(cell, indent=1) + "\n")
            print(f"{folder}: {said}", flush=True)


# -- the table -------------------------------------------------------------------------------------------------------------


def interval(cells: list[dict[str, Any]], policy: str) -> str:
    """The mean over seeds with Student's 95 % interval; of one seed that over its episodes."""
    values = [100 * cell["result"][policy]["mean"] for cell in cells]
    if len(values) == 1:
        return f"{values[0]:.2f} ± {100 * cells[0]['result'][policy]['ci95']:.2f} (one seed)"
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def table(out: Path) -> str:
    """All cells that are done, as Markdown: a table for each source, its rows by accuracy."""
    cells = [json.loads(path.read_text()) for path in sorted(out.glob(f"*/*/*/{CELL}"))]
    parts = []
    for source in [s for s in SOURCES if any(cell["source"] == s for cell in cells)]:
        own = [cell for cell in cells if cell["source"] == source]
        done = [cell for cell in own if "result" in cell]
        seconds = sorted({cell["wanted_seconds"] for cell in own})
        machines = sorted({cell["machine"] for cell in done})
        episodes = ", ".join(str(n) for n in sorted({cell["episodes"] for cell in done}))
        head = f"{NAMES[source]}: {' or '.join(f'{s:g}' for s in seconds)} s of one thread in training, {episodes} test episodes"
        head += "".join(f", {text}" for text in sorted({cell.get("settings", "") for cell in own}) if text)
        rows = [(min(_means(done, name), default=-1.0), name) for name in {cell["algorithm"] for cell in own}]
        lines = [
            "| algorithm | accuracy | batch statistics of each episode (transductive) | seeds | outer steps | command |",
            "|---" * 6 + "|",
        ]
        lines += [_row(name, source, [cell for cell in own if cell["algorithm"] == name]) for _, name in sorted(rows, reverse=True)]
        parts.append("\n".join([f"**{head}** ({'; '.join(machines)})", "", *lines]))
    return "\n\n".join(parts) or "No cell has been run yet."


def _means(cells: list[dict[str, Any]], name: str) -> list[float]:
    own = [cell["result"]["support"]["mean"] for cell in cells if cell["algorithm"] == name]
    return [statistics.mean(own)] if own else []


def _row(name: str, source: str, cells: list[dict[str, Any]]) -> str:
    done, command = [cell for cell in cells if "result" in cell], f"`--source {source} --algorithms {name}`"
    shown = f"[{name}](#{name})"
    if not done:
        return f"| {shown} | — | {_shortly(cells[0]['refused'])} | {len(cells)} | | {command} |"
    seeds = f"{len(done)}" + (
        f" ({len(cells) - len(done)} refused: {_shortly(next(c['refused'] for c in cells if 'refused' in c))})"
        if len(done) < len(cells)
        else ""
    )
    accuracy = interval(done, "support") + (" **transductive**" if done[0]["transductive"] else "")
    episode = interval(done, "episode") if "episode" in done[0]["result"] else ""
    return f"| {shown} | {accuracy} | {episode} | {seeds} | {_range([cell['iterations'] for cell in done])} | {command} |"


def _shortly(reason: str) -> str:
    return textwrap.shorten(reason, 100, placeholder=" …")


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}–{max(values)}"


def into_page(page: Path, text: str) -> None:
    """Puts the table between its marks."""
    whole = page.read_text()
    begin, end = (whole.index(mark) for mark in MARKS)
    page.write_text(f"{whole[: begin + len(MARKS[0])]}\n\n{text}\n\n{whole[end:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=SOURCES)
    parser.add_argument("--data-path", default="", help="where the files of the source are")
    parser.add_argument("--algorithms", nargs="*", choices=algorithms(), metavar="NAME", help=f"by default all: {', '.join(algorithms())}")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each cell")
    parser.add_argument("--episodes", type=int, default=600, help="test episodes")
    parser.add_argument("--validation-episodes", type=int, default=60, help="of each validation, which is off the clock")
    parser.add_argument("--settings", default="", help="of all runs alike, as NAME=VALUE,NAME=VALUE, such as filters=64")
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--table", action="store_true", help="print the table of the cells in OUT, and run nothing")
    parser.add_argument("--page", type=Path, help="with --table: a Markdown file to put it into")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if arguments.table:
        text = table(arguments.out)
        print(text)
        if arguments.page:
            into_page(arguments.page, text)
        return
    if not arguments.source:
        parser.error("--source is missing")
    run_cells(arguments)


if __name__ == "__main__":
    main()
