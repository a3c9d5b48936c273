"""Runs side by side: what differs in their settings, their curves over steps and seconds, and paired differences on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headstart.container import make_folder, read_lines, write_text
from headstart.errors import ConfigError
from headstart.evaluation import Comparison, Evaluation, compare, evaluate
from headstart.experiments.drawing import CLEAR, DASHES, STYLE, figure, plain, svg
from headstart.training.run import open_run
from headstart.training.run_folder import METRICS

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }} table { display: block; overflow-x: auto; }</style></head><body>
<h1>{{ title }}</h1>
<table><tr><th></th><th>run</th><th>{{ metric }}</th><th>compared with the first</th></tr>
{% for row in rows %}
<tr><td>{{ loop.index }}</td>{% for cell in row %}<td class="number">{{ cell }}</td>{% endfor %}</tr>{% endfor %}</table>
<p class="note">{{ protocol }}</p>
<h2>What differs</h2>{% if differences %}<table><tr><th>setting</th>{% for _ in rows %}<th>{{ loop.index }}</th>{% endfor %}</tr>
{% for name, values in differences.items() %}
<tr><td>{{ name }}</td>{% for v in values %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}</table>
{% else %}<p>Nothing: the runs have the same settings.</p>{% endif %}
<h2>Curves</h2>{% for panel in panels %}{{ panel }}{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class SideBySide:
    """Some runs, compared.

    Args:
        names: of the runs.
        evaluations: on the same test episodes.
        comparisons: of every run but the first with the first, episode by episode.
        differences: settings in which they differ, with the value of each run.
        histories: the lines of their metrics.
    """

    names: tuple[str, ...]
    evaluations: tuple[Evaluation, ...]
    comparisons: tuple[Comparison, ...]
    differences: Mapping[str, Sequence[Any]]
    histories: tuple[list[dict[str, Any]], ...]

    def rows(self) -> list[list[str]]:
        """A line for each run: its name, its result, and how it differs from the first."""
        beside = ["", *(str(c) for c in self.comparisons)]
        return [[n, e.show_with(e.mean, e.ci95), b] for n, e, b in zip(self.names, self.evaluations, beside, strict=True)]

    def __str__(self) -> str:
        width = max(map(len, self.names))
        lines = [f"{i}  {name:<{width}}  {result}  {beside}".rstrip() for i, (name, result, beside) in enumerate(self.rows(), 1)]
        differ = [f"  {name}: {' | '.join(map(str, values))}" for name, values in self.differences.items()]
        return "\n".join([*lines, "what differs:" if differ else "the settings are the same", *differ])


def side_by_side(folders: Sequence[str | Path], episodes: int = 1000, seed: int = 0) -> SideBySide:
    """Evaluates some runs on the same test episodes, and puts their settings and curves beside each other.

    Args:
        folders: of two runs or more, on the same data with the same ways and shots.
        episodes: test episodes.
        seed: of the episodes.

    Raises:
        ConfigError: there are fewer than two, or the runs are not for the same tasks.
        CheckpointError: one is no run folder.
    """
    if len(folders) < 2:
        raise ConfigError(f"runs={[str(f) for f in folders]}: give two run folders or more to compare")
    evaluations: list[Evaluation] = []
    flats: list[dict[str, Any]] = []
    histories: list[list[dict[str, Any]]] = []
    for folder in folders:
        config, learner, source = open_run(folder)
        flat = config.flat()
        for key in ("data", "data_options", "ways", "shots"):
            if flats and flat[key] != flats[0][key]:
                raise ConfigError(
                    f"the runs are for other tasks: {key} is {flats[0][key]!r} and {flat[key]!r}; compare runs of the same tasks"
                )
        own = config.train
        evaluations.append(evaluate(learner, source.test, ways=own.ways, shots=own.shots, episodes=episodes, seed=seed))
        flats.append(flat)
        histories.append(read_lines(Path(folder) / METRICS)[0])
    names = [k for k in flats[0] if any(f[k] != flats[0][k] for f in flats) and k != "data_path"]
    return SideBySide(
        tuple(str(f) for f in folders),
        tuple(evaluations),
        tuple(compare(e, evaluations[0]) for e in evaluations[1:]),
        {k: [f[k] for f in flats] for k in names},
        tuple(histories),
    )


def write_comparison(found: SideBySide, path: Path) -> None:
    """Writes the comparison as one self-contained page."""
    import jinja2

    kinds = (("loss", "training loss (query, after adaptation)", 1.0), ("validation", f"validation {found.evaluations[0].metric}", 1.0))
    panels = [_curves(found, key, label, along) for key, label, _ in kinds for along in ("step", "seconds")]
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    text = page.render(
        title=f"{len(found.names)} runs side by side",
        style=STYLE,
        metric=found.evaluations[0].metric,
        rows=found.rows(),
        protocol=str(found.evaluations[0]).split("\n")[-1],
        differences=found.differences,
        panels=[p for p in panels if p is not None],
    )
    make_folder(path.parent)
    write_text(path, text)


def _curves(found: SideBySide, key: str, label: str, along: str) -> Any:
    drawing, axis = figure(8, 3)
    for i, history in enumerate(found.histories):
        # A validation has no clock of its own: it stands at the step before it.
        clock = {e["step"]: e["seconds"] for e in history if "seconds" in e}
        seen = [e for e in history if e.get(key) is not None and (along == "step" or e["step"] in clock)]
        width = max(1, len(seen) // 50) if key == "loss" else 1
        values = [e[key] for e in seen]
        smooth = [sum(values[j - width + 1 : j + 1]) / width for j in range(width - 1, len(values))]
        x = [e["step"] if along == "step" else clock[e["step"]] for e in seen][width - 1 :]
        if x:
            marker = "o" if key == "validation" else ""
            axis.plot(
                x,
                smooth,
                color=CLEAR[i % 7],
                linestyle=DASHES[i % 4],
                marker=marker,
                markersize=4,
                label=f"{i + 1} {Path(found.names[i]).name}",
            )
    if not axis.lines:
        return None
    axis.set(xlabel="outer steps" if along == "step" else "seconds of training alone", ylabel=label)
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return svg(drawing)
