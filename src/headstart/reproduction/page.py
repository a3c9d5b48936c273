"""The report: one self-contained page, and Markdown with its pictures and raw numbers beside it."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from headstart.container import read_json, write_text
from headstart.reproduction.costs import COSTS
from headstart.reproduction.findings import Findings, findings
from headstart.reproduction.plan import Work
from headstart.reproduction.scales import LAMBDA, published

HTML, MARKDOWN, RAW, FIGURES = "report.html", "report.md", "results.json", "figures"
STYLE = """
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 1.2rem auto; padding: 0 1rem; color: #1d232b; }
 h1 { font-size: 1.35rem; margin: 0 0 .4rem; }
 h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #d5d9de; padding-top: 1rem; }
 h3 { font-size: 1rem; } .note, figcaption { color: #555d67; font-size: .85rem; }
 .advice { font-size: 1.25rem; font-weight: 600; margin: .2rem 0; }
 table { border-collapse: collapse; font-size: .88rem; }
 td, th { padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
 tbody tr { border-top: 1px solid #e6e9ec; } td { font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
 .verdicts .verdict { display: inline-block; margin: .1rem 0; }
 .verdict { font-weight: 600; padding: .05rem .5rem; border-radius: .3rem; white-space: nowrap; border: 1.5px solid; }
 .agrees { color: #005a8c; border-color: #0072b2; }
 .disagrees { color: #9c3f00; border-color: #d55e00; border-style: double; border-width: 3px; }
 .undecided { color: #4b525b; border-color: #8a8f98; border-style: dashed; }
 .claim { border-left: 3px solid #c9ced4; padding-left: .8rem; margin: .6rem 0; } .claim p { margin: .2rem 0; }
 .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(19.5rem, 1fr)); gap: .8rem 1.2rem; align-items: start; }
 figure { margin: 0; break-inside: avoid; max-width: 30rem; } svg { width: 100%; height: auto; } nav a { margin-right: .5rem; }
 pre { overflow-x: auto; font-size: .82rem; }
 @media print {
  body { font-size: 10pt; max-width: none; margin: 0; } nav { display: none; }
  .panels { grid-template-columns: 1fr 1fr; } tr { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } .wide table { font-size: .72rem; } pre { white-space: pre-wrap; } }
"""
SOURCE = "Ji, Lee, Liang and Poor, Convergence of Meta-Learning with Task-Specific Adaptation over Partial Parameters (NeurIPS 2020)"


def write_report(work: Work) -> Findings:
    """Writes the page, the Markdown with its figures, and the raw numbers into the folder of a reproduction.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    results = work.results()
    costs = read_json(work.out / COSTS) if (work.out / COSTS).exists() else {}
    title = f"{work.data}: the experiments of Ji et al. (2020), at scale “{work.scale}”"
    found = findings(work.grid, results, costs, title, len(work.cells))
    _render(work, found)
    raw = {
        "protocol": protocol(work),
        "verdicts": [asdict(v) for v in found.verdicts],
        "figures": {
            f.name: [{"label": s.label, "group": s.group, "x": s.x, "cells": [f"{s.name()}-s{k}" for k in f.seeds]} for s in f.settings]
            for f in work.grid
        },
        "costs": costs,
        "cells": {name: asdict(result) for name, result in sorted(results.items())},
    }
    write_text(work.out / RAW, json.dumps(raw, ensure_ascii=False) + "\n")
    return found


def _render(work: Work, found: Findings) -> None:
    import jinja2

    (work.out / FIGURES).mkdir(parents=True, exist_ok=True)
    for section in found.sections:
        for panel in section.panels:
            write_text(work.out / FIGURES / f"{panel.name}.svg", f"{panel.markup}\n")
    shared: dict[str, Any] = {"f": found, "protocol": protocol(work), "departures": departures(work), "commands": commands(work)}
    machine = ", ".join(f"{k} {v}" for k, v in found.machine.items() if v is not None)
    for name, escape in ((HTML, True), (MARKDOWN, False)):
        text = files("headstart.reproduction").joinpath("templates", name).read_text(encoding="utf-8")
        page = jinja2.Environment(autoescape=escape, trim_blocks=True, lstrip_blocks=True).from_string(text)
        filled = page.render(**shared, style=STYLE, machine=machine)
        write_text(work.out / name, filled.rstrip() + "\n")


def protocol(work: Work) -> list[str]:
    """What defines the numbers."""
    own, size = work.base.train, work.size
    looks = ", ".join(f"{100 * share:g} %" for share in size.looks)
    return [
        f"After {SOURCE}. {own.ways}-way {own.shots}-shot on {work.data}, conv4 with {work.base.learner.filters} filters, {own.tasks} tasks"
        f" of {own.queries} query images a class in a meta-batch, {own.iterations} outer steps of {own.optimizer} at {own.outer_lr:g}.",
        f"Seeds {', '.join(map(str, size.seeds))} for F1 to F3, {', '.join(map(str, size.fewer_seeds))} for the other figures. Cells of one"
        " seed see the same tasks and first weights, so settings are compared seed by seed.",
        "Training loss: the query loss after adaptation of each step's tasks, as a running mean. The true objective F and its gradient:"
        f" {size.objective_tasks} fixed tasks of the training classes, in training mode as training sees them, after {looks} of the run.",
        f"Test accuracy: {size.last_episodes} test episodes at the end and {size.test_episodes} before, the same ones for all, N as in"
        " training, statistics of batch normalisation from training images (inductive). The last weights are taken: nothing is selected by"
        " validation or test.",
        "Seconds are of training alone: the median time of a step, each setting taking its turn in one process with one thread after all"
        " cells were finished, times the number of steps. Evaluation and looks are not in it. The clock of each cell, beside which other"
        " cells ran, is in the raw numbers.",
        "Oracle calls are those that the paper counts for Algorithm 1: ∇_w L_S, ∇_w L_D, ∇_φ L_D, H·v and C·v, one per task each, whatever"
        " headstart's solver does to save them. Multiply-adds are those that it makes.",
        "Intervals over seeds are 95 % of Student's t; trends are Page's test with seeds as blocks, at a level of 5 %. Nothing is corrected"
        " for the number of claims.",
        f"λ = {LAMBDA:g} in the strongly convex figures, and α of the nonconvex ones is half of that of the strongly convex ones, unless a"
        " figure says otherwise: the paper's text does not give λ, and its step sizes differed between the geometries. The figure"
        " step-sizes has them alike.",
    ]


def departures(work: Work) -> list[list[str]]:
    """The settings in which a scale is not the published one."""
    before, now = published(work.data).flat(), work.base.flat()
    kept = {"data_path", "validate_every", "validation_episodes"}
    rows = [[name, f"{before[name]}", f"{now[name]}"] for name in before if before[name] != now[name] and name not in kept]
    rows.append(
        ["seeds", "42, 52, 62, 72, 82", ", ".join(map(str, work.size.seeds)) + "; others " + ", ".join(map(str, work.size.fewer_seeds))]
    )
    rows.append(["weights at test", "chosen by validation", "the last"])
    rows.append(["batch statistics at test", "of the episode (transductive)", "of training images (inductive)"])
    return rows


def commands(work: Work) -> list[str]:
    """What makes this report, and what looks closer."""
    path = " --data-path PATH" if work.data_path else ""
    names = "".join(f" {name}" for name in work.figures)
    return [
        f"headstart reproduce{names} --data {work.data}{path} --scale {work.scale} --out OUT",
        "headstart compare OUT/cells/CELL OUT/cells/CELL",
    ]
