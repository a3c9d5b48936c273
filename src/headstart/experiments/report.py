"""A run as one self-contained page: learning curves, accuracy by inner step, and a test episode with its predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from headstart.container import read_json, read_lines, write_text
from headstart.data.drawing import Data, Signature, sampler_of, signature
from headstart.data.source import Split
from headstart.evaluation import Evaluation
from headstart.experiments.drawing import BLUE, GREEN, GREY, RED, STYLE, figure, plain, svg
from headstart.learner import MetaLearner
from headstart.training.config import RunConfig
from headstart.training.loop import METRICS

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
{% if evaluation %}
<p class="result">{{ evaluation.show_with(evaluation.mean, evaluation.ci95, 1) }}</p>
<p class="note">{{ evaluation.metric }} on tasks never seen in training, with a 95 % interval over episodes:</p>
<p class="note">{{ evaluation }}</p>
{% else %}<p class="note">Not evaluated yet: run <code>headstart evaluate {{ folder }}</code>.</p>{% endif %}
{% if curves %}<h2>Learning</h2>{{ curves }}{% endif %}
{% if steps %}<h2>{{ evaluation.metric | capitalize }} by inner step</h2>{{ steps }}
<table><tr><th>inner steps</th><th>{{ evaluation.metric }}</th></tr>
{% for mean, half in evaluation.per_step %}
<tr><td>{{ loop.index0 }}</td><td class="number">{{ evaluation.show_with(mean, half, 1) }}</td></tr>
{% endfor %}
</table>{% endif %}
{% if episode %}<h2>One test episode</h2>
<p class="note">The first test episode, not a chosen one: {{ sentence }}</p>{{ episode }}{% endif %}
<h2>Settings</h2><table>
{% for key, value in settings.items() %}<tr><td>{{ key }}</td><td class="number">{{ value }}</td></tr>{% endfor %}
</table></body></html>
"""


def write_report(
    folder: str | Path,
    config: RunConfig,
    learner: MetaLearner | None = None,
    source: Data | None = None,
    evaluation: Evaluation | None = None,
    page: Path | None = None,
) -> Path:
    """Writes ``report.html`` into a run folder.

    Args:
        folder: the run folder; its metrics.jsonl gives the curves.
        config: the run's config.
        learner, source: with both, one test episode of pictures, or of a curve, is shown with the learner's predictions.
        evaluation: the result to show.
        page: the file to write, where not ``report.html``.

    Returns:
        Where the page is.
    """
    import jinja2

    folder = Path(folder)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    settings = read_json(folder / "config.json")
    episode, sentence = (None, "")
    if learner is not None and source is not None:
        tasks = signature(source.test, config.train.ways)
        if tasks.by_class and len(tasks.shape) == 3:
            episode, sentence = _episode(learner, source.test, config)
        elif tasks == Signature((1,), 1, regression=True):
            episode, sentence = _curve(learner, source.test, config)
    text = environment.from_string(PAGE).render(
        title=_title(config, source),
        folder=str(folder),
        evaluation=evaluation,
        curves=_curves(folder / METRICS, config, source is None or signature(source.test, config.train.ways).by_class),
        steps=None if evaluation is None else _by_step(evaluation),
        episode=episode,
        sentence=sentence,
        settings=settings,
        style=STYLE,
    )
    path = page or folder / "report.html"
    write_text(path, text)
    return path


def _title(config: RunConfig, source: Data | None) -> str:
    ways = f"{config.train.ways}-way " if source is None or signature(source.test, config.train.ways).by_class else ""
    return f"{config.data}: {ways}{config.train.shots}-shot, adapting {config.learner.adapt}"


def _curves(metrics: Path, config: RunConfig, classes: bool) -> Any:
    lines, _ = read_lines(metrics)
    steps = [e for e in lines if "loss" in e]
    checks = [e for e in lines if "validation" in e]
    if not steps:
        return None
    drawing, (left, right) = figure(9, 3.2, ncols=2)
    x = [e["step"] for e in steps]
    width = max(1, len(x) // 50)  # a running mean over a fiftieth of the run
    smooth = lambda y: torch.tensor(y).unfold(0, width, 1).mean(1).tolist()  # noqa: E731
    for axis, key, label, scale in ((left, "loss", "query loss after adaptation", 1), (right, "accuracy", "accuracy (%)", 100)):
        y = [scale * e[key] for e in steps if e[key] is not None]
        if y:
            axis.plot(x, y, color=GREY, alpha=0.25, linewidth=0.6)
            axis.plot(x[width - 1 :], smooth(y), color=GREY, label="training classes")
        axis.set(xlabel="outer step", ylabel=label)
    left.set_yscale("log")
    accuracy = steps[0]["accuracy"] is not None
    scale = 100 if accuracy else 1
    if checks:
        right.errorbar(
            [e["step"] for e in checks],
            [scale * e["validation"] for e in checks],
            [scale * e["ci95"] for e in checks],
            color=BLUE,
            marker="o",
            markersize=3,
            label="validation classes" if accuracy else "validation tasks",
        )
    if not accuracy:
        right.set(ylabel="squared error", yscale="log")
    elif classes:
        right.axhline(100 / config.train.ways, color=GREY, linestyle=":", label="chance")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, loc="best")
    plain(left, right)
    return svg(drawing)


def _by_step(evaluation: Evaluation) -> Any:
    drawing, axis = figure(5, 2.8)
    accuracy = evaluation.metric == "accuracy"
    means, halves = ([(100 if accuracy else 1) * pair[i] for pair in evaluation.per_step] for i in (0, 1))
    axis.errorbar(range(len(means)), means, halves, color=BLUE, marker="o", markersize=4)
    if isinstance(evaluation.protocol.get("ways"), int):
        axis.axhline(100 / evaluation.protocol["ways"], color=GREY, linestyle=":")
    axis.set(
        xlabel="inner steps", ylabel="test accuracy (%)" if accuracy else f"test {evaluation.metric}", ylim=(0, 100 if accuracy else None)
    )
    axis.xaxis.get_major_locator().set_params(integer=True)
    plain(axis)
    return svg(drawing)


def _episode(learner: MetaLearner, split: Split, config: RunConfig) -> tuple[Any, str]:
    """The support examples of one episode, one row per class, and its queries with what was predicted."""
    ways, shots = config.train.ways, config.train.shots
    queries = max(1, min(6, min(split.counts) - shots))
    sampler = sampler_of(split, ways=ways, shots=shots, queries=queries, tasks=1, stream="test")
    device = next(learner.model.parameters()).device
    tasks = sampler.batch(0, device)
    rows = sampler.rows(0, device)  # the same draw, as rows of the split: the pictures themselves
    with learner.in_use(tasks.examples):
        *_, logits = learner.trajectory(tasks)
    predicted = logits[0].argmax(-1)
    shown_ways, shown_shots = min(ways, 10), min(shots, 5)
    columns = shown_shots + queries
    drawing, axes = figure(1.0 * columns + 0.6, 1.22 * shown_ways, nrows=shown_ways, ncols=columns, squeeze=False)
    for c in range(shown_ways):
        for side, (where, y) in enumerate(((rows.support.index[0], tasks.support_y[0]), (rows.query.index[0], tasks.query_y[0]))):
            for k, position in enumerate((y == c).nonzero()[:, 0].tolist()[: (shown_shots, queries)[side]]):
                axis = axes[c][k + shown_shots * side]
                picture = split.stored(where[position]).movedim(0, -1).squeeze(-1).numpy()
                axis.imshow(picture, cmap="gray_r" if picture.ndim == 2 else None, vmin=0, vmax=255)
                axis.set(xticks=[], yticks=[])
                if side == 0:
                    axis.set_title(f"label {c}" if k == 0 else "", fontsize=9)
                    colour, line = GREY, 1.0
                else:
                    guess = int(predicted[position])
                    colour, line = (GREEN, 2.0) if guess == c else (RED, 3.0)
                    axis.set_title("" if guess == c else f"{guess}?", fontsize=9, color=RED)
                for spine in axis.spines.values():
                    spine.set(color=colour, linewidth=line)
    right = int((predicted == tasks.query_y[0]).sum())
    text = (
        f"left, the {shots} labelled example{'s' * (shots != 1)} of each class; right, queries, {right} of {len(predicted)} right."
        " Green: right. Red: wrong, with the label that was predicted."
    )
    return svg(drawing), text


def _curve(learner: MetaLearner, tasks_of: Any, config: RunConfig) -> tuple[Any, str]:
    """The support points of one task over one input, and the curve before and after adaptation."""
    device = next(learner.model.parameters()).device
    tasks = sampler_of(tasks_of, shots=config.train.shots, queries=60, tasks=1, stream="test").batch(0, device)
    with learner.in_use(tasks.examples):
        by_step = learner.trajectory(tasks)
    x, order = tasks.query_x[0, :, 0].sort()
    drawing, axis = figure(5, 2.8)
    for values, colour, style, label in (
        (tasks.query_y[0], GREY, "-", "query targets"),
        (by_step[0][0, :, 0], BLUE, ":", "before adaptation"),
        (by_step[-1][0, :, 0], BLUE, "-", "after"),
    ):
        axis.plot(x.cpu(), values.reshape(-1)[order].cpu(), color=colour, linestyle=style, label=label)
    axis.plot(tasks.support_x[0, :, 0].cpu(), tasks.support_y[0].reshape(-1).cpu(), "o", color=GREEN, label="support")
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return svg(drawing), f"{config.train.shots} support points, and the learner's prediction before and after {learner.inner.steps} steps."
