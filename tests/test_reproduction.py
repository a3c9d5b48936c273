"""The paper's experiments by one command: cells, claims on them, statistics, verdicts and the report."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headstart as hs
from headstart.cli import main
from headstart.errors import ConfigError
from headstart.reproduction.cells import RESULT, Result, claimed
from headstart.reproduction.costs import COSTS
from headstart.reproduction.grid import FIGURES, Figure, Setting, cells_of, figures_of
from headstart.reproduction.page import write_report
from headstart.reproduction.plan import Work
from headstart.reproduction.scales import SCALES, base, published, scale_of
from headstart.reproduction.statistics import Interval, Reached, Trend, log_ratio, smooth
from headstart.reproduction.verdicts import Evidence, verdicts
from headstart.training.config import RunConfig

JOIN = [sys.executable, "-m", "headstart.reproduction.join"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole smoke scale, by the command, with two processes."""
    out = tmp_path_factory.mktemp("smoke")
    assert main(["reproduce", "--scale", "smoke", "--out", str(out), "--jobs", "2"]) == 0
    return out


def numbers(path: Path) -> dict[str, Any]:
    """What a cell found, its clocks aside."""
    found = json.loads(path.read_text())
    looks = [{k: v for k, v in look.items() if k != "seconds"} for look in found["looks"]]
    return {**found, "looks": looks, "seconds": None}


# -- the command -----------------------------------------------------------------------------------------------------------


def test_smoke_ends_with_a_page_that_stands_alone(smoke: Path) -> None:
    work = Work.load(smoke)
    assert not work.left()
    assert len(work.cells) == len(list(smoke.glob(f"cells/*/{RESULT}"))) > 40
    page = (smoke / "report.html").read_text()
    for name in (*FIGURES, "geometry", "protocol"):
        assert f'id="{name}"' in page
    assert page.count("<svg") > 40
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "nan" not in re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)
    text = (smoke / "report.md").read_text()
    pictures = re.findall(r'src="(figures/[^"]+)"', text)
    assert len(pictures) > 40
    assert all((smoke / p).exists() for p in pictures)
    raw = json.loads((smoke / "results.json").read_text())
    assert raw["cells"].keys() == {cell.name for cell in work.cells}
    assert {v["claim"] for v in raw["verdicts"]} == {"C1", "C2", "C3", "C4"}


def test_costs_are_those_of_the_paper_and_of_the_solver(smoke: Path) -> None:
    costs = json.loads((smoke / COSTS).read_text())["settings"]
    work = Work.load(smoke)
    B = work.base.train.tasks
    for figure in work.grid:
        for s in figure.settings:
            own, N = costs[s.name()], s.config.learner.steps
            assert own["seconds"] > 0
            assert own["multiply_adds"] > 0
            if figure.name in ("F1", "F2"):
                assert own["all_calls"] == B * (3 * N + 2)
            if figure.name == "F3" and s.group == "MAML":
                assert own["all_calls"] == B * (2 * N + 1)


def test_finished_cells_are_never_run_again(smoke: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in smoke.glob(f"cells/*/{RESULT}")}
    found = hs.reproduce(scale="smoke", out=smoke, jobs=1, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert {v.claim for v in found.verdicts} == {"C1", "C2", "C3", "C4"}
    assert "report.html" in str(found)


def test_one_process_finds_the_numbers_that_two_found(smoke: Path, tmp_path: Path) -> None:
    hs.reproduce(["F1"], scale="smoke", out=tmp_path, jobs=1, quiet=True)
    alone = sorted(tmp_path.glob(f"cells/*/{RESULT}"))
    assert len(alone) == 6
    for path in alone:
        assert numbers(path) == numbers(smoke / path.relative_to(tmp_path))


def test_a_killed_run_goes_on_to_the_same_numbers(smoke: Path, tmp_path: Path) -> None:
    work = Work.open(tmp_path, ("F1",), "glyphs", "", "smoke")
    process = subprocess.Popen([*JOIN, str(tmp_path)], stderr=subprocess.DEVNULL)
    middle = None
    while middle is None and process.poll() is None:  # in the middle of the second cell, after its checkpoint
        time.sleep(0.01)
        for metrics in tmp_path.glob("cells/*/metrics.jsonl"):
            begun = metrics.read_text().count('"loss"')
            if 15 < begun < 30 and len(list(tmp_path.glob(f"cells/*/{RESULT}"))) == 1:
                middle = metrics.parent
    process.kill()
    process.wait()
    assert middle is not None
    assert 0 < len(work.left()) < len(work.cells)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob(f"cells/*/{RESULT}")}
    hs.reproduce(["F1"], scale="smoke", out=tmp_path, jobs=1, quiet=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    for path in tmp_path.glob(f"cells/*/{RESULT}"):
        assert numbers(path) == numbers(smoke / path.relative_to(tmp_path))


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "claims" / "cell.lock"
    names = "import time\nfrom pathlib import Path\nfrom headstart.reproduction.cells import claimed\n"
    hold = f"{names}with claimed(Path({str(lock)!r})) as c:\n"
    process = subprocess.Popen([sys.executable, "-c", f"{hold}    print(c, flush=True); time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    with claimed(lock) as mine:
        assert not mine
    process.kill()
    process.wait()
    with claimed(lock, wait=5) as mine:
        assert mine


def test_two_runs_of_the_grid_are_compared(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = sorted((smoke / "cells").glob("head-n*-s42"))
    by_steps = {RunConfig.load(c / "config.json").learner.steps: c for c in cells if RunConfig.load(c / "config.json").learner.l2 == 0.1}
    one, two = by_steps[1], by_steps[5]
    page = tmp_path / "page.html"
    assert main(["compare", str(one), str(two), "--episodes", "30", "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "over 30 shared episodes" in out
    assert "steps: 1 | 5" in out
    assert page.read_text().count("<svg") == 4
    assert main(["compare", str(one)]) == 2
    assert "give two run folders" in capsys.readouterr().err
    assert main(["compare", str(one), str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err


def test_a_run_compared_with_itself_does_not_differ(smoke: Path) -> None:
    from headstart.experiments.comparison import side_by_side

    cell = next((smoke / "cells").glob("head-n5-*-s42"))
    found = side_by_side([cell, cell], episodes=20)
    assert found.comparisons[0].difference == 0
    assert found.differences == {}


# -- what is asked ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["F9"], "figure 'F9' is not known"),
        (["--data", "nonesuch"], "data='nonesuch' is not known"),
        (["--data", "fc100", "--data-path", "nowhere"], "there is nothing at"),
        (["--data", "sinusoid"], "has no classes"),
        (["--jobs", "0"], "jobs=0"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_holds_one_reproduction(tmp_path: Path) -> None:
    Work.open(tmp_path, ("F1",), "glyphs", "", "smoke")
    Work.open(tmp_path, ("F2",), "glyphs", "", "smoke")  # further figures are welcome
    with pytest.raises(ConfigError, match="holds a reproduction with scale='smoke', and not 'small'"):
        Work.open(tmp_path, ("F1",), "glyphs", "", "small")


@pytest.mark.parametrize("data", ["fc100", "cifar-fs", "mini-imagenet"])
def test_the_published_settings_are_in_the_configs(data: str) -> None:
    kept = RunConfig.load(Path(__file__).parents[1] / "configs" / f"published-{data}.json")
    assert kept == published(data)
    own = kept.train
    assert (own.ways, own.shots, own.queries, own.tasks, own.optimizer, kept.learner.filters) == (5, 5, 5, 32, "adam", 64)


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_has_its_own_name(scale: str) -> None:
    size = scale_of(scale)
    figures = figures_of((), base("fc100", "", size), size, 60)
    cells = cells_of(figures)
    assert len({c.name for c in cells}) == len(cells)
    assert len({tuple(sorted(c.config.flat().items(), key=str)).__repr__() + c.setting.outer for c in cells}) == len(cells)
    wanted = {f"{s.name()}-s{seed}" for f in figures for s in f.settings for seed in f.seeds}
    assert wanted == {c.name for c in cells}
    assert size.name != "paper" or all(f.seeds == (42, 52, 62, 72, 82) for f in figures)


# -- what decides ----------------------------------------------------------------------------------------------------------


def cell(setting: Setting, seed: int, losses: list[float], **more: Any) -> Result:
    looks = [{"step": len(losses), "seconds": 1.0, "objective": losses[-1], "test": 0.5, "gradient_w": 1.0, "gradient_phi": 1.0}]
    return Result(f"{setting.name()}-s{seed}", seed, setting.config.flat(), losses, [None] * len(losses), looks, 1.0, **more)


def falling(rate: float, steps: int = 400) -> list[float]:
    return [math.exp(-rate * i) for i in range(steps)]


def made(name: str, rates: dict[float, float], seconds: dict[float, float], group: str = "head", spread: float = 0.02) -> Evidence:
    """Loss curves that fall at known rates by N, a little other for every seed."""
    config = published("glyphs")
    settings = [Setting(f"N = {N:g}", group, N, replace(config, learner=replace(config.learner, steps=int(N)))) for N in rates]
    figure = Figure(name, "", tuple(settings), (1, 2, 3, 4))
    found = {
        s: [cell(s, k, falling(rates[s.x] * (1 + spread * ((k * 7 + i * 3) % 4 - 1.5)))) for k in figure.seeds]
        for i, s in enumerate(settings)
    }
    costs = {
        s.name(): {
            "seconds": seconds[s.x],
            "seconds_unrolled": seconds[s.x],
            "all_calls": 8 * (3 * s.x + 2),
            "multiply_adds": 1,
            "memory": 1.0,
        }
        for s in settings
    }
    return Evidence(figure, found, costs)


FLAT = dict.fromkeys((1, 3, 5, 7, 10, 20), 1.0)


def of(evidence: Evidence) -> list[str]:
    return [v.verdict for v in verdicts({evidence.figure.name: evidence})]


def test_faster_then_saturated_agrees() -> None:
    own = made("F1", {1: 0.01, 3: 0.03, 5: 0.05, 7: 0.06, 10: 0.0605, 20: 0.061}, FLAT)
    assert of(own)[0] == "agrees"


def test_faster_without_end_disagrees_with_saturation() -> None:
    assert of(made("F1", {1: 0.01, 3: 0.011, 5: 0.012, 7: 0.013, 10: 0.03, 20: 0.1}, FLAT))[0] == "disagrees"


def test_slower_disagrees_and_noise_is_undecided() -> None:
    assert of(made("F1", {1: 0.06, 3: 0.05, 5: 0.04, 7: 0.03, 10: 0.02, 20: 0.01}, FLAT))[0] == "disagrees"
    assert of(made("F1", dict.fromkeys(FLAT, 0.03), FLAT, spread=0.3))[0] == "undecided"


def test_running_time_has_a_best_n_in_between_or_not() -> None:
    rates = {1: 0.01, 3: 0.03, 5: 0.05, 7: 0.06, 10: 0.0605, 20: 0.061}
    dear = {N: 1 + N for N in rates}
    assert of(made("F1", rates, dear))[2:] == ["agrees", "agrees"]
    assert of(made("F1", {N: 0.01 * N for N in rates}, FLAT))[2:] == ["disagrees", "disagrees"]


def test_nonconvex_slower_with_n() -> None:
    assert of(made("F2", {1: 0.06, 3: 0.05, 5: 0.04, 7: 0.03, 10: 0.02, 20: 0.01}, FLAT)) == ["agrees"] * 3
    assert of(made("F2", {1: 0.01, 3: 0.02, 5: 0.03, 7: 0.04, 10: 0.05, 20: 0.06}, FLAT))[0] == "disagrees"


def test_anil_against_maml() -> None:
    config = published("glyphs")
    anil, maml = (
        Setting(f"{g}, N = 5", g, 5, replace(config, learner=replace(config.learner, adapt=a)))
        for g, a in (("ANIL", "head"), ("MAML", "all"))
    )
    figure = Figure("F3", "", (anil, maml), (1, 2, 3))
    found = {s: [cell(s, k, falling(0.03 * (1 + 0.01 * k))) for k in figure.seeds] for s in (anil, maml)}
    cost = lambda seconds: {"seconds": seconds, "all_calls": 1, "multiply_adds": int(100 * seconds), "memory": seconds}  # noqa: E731
    own = Evidence(figure, found, {anil.name(): cost(1.0), maml.name(): cost(3.0)})
    assert of(own) == ["agrees", "agrees"]
    assert "3.0× the seconds" in verdicts({"F3": own})[0].found
    assert of(replace(own, costs={anil.name(): cost(3.0), maml.name(): cost(1.0)})) == ["disagrees", "disagrees"]
    bad = replace(own, found={**found, maml: [cell(maml, k, falling(0.03, 5), diverged="at step 5") for k in figure.seeds]})
    assert "MAML diverged" in verdicts({"F3": bad})[1].found
    assert of(bad)[1] == "undecided"


def test_steps_to_a_loss_are_counted_from_the_first_step() -> None:
    own = made("F1", {1: 0.01, 3: 0.02}, {1: 1.0, 3: 2.0}, spread=0.0)
    reached = Reached.of(own.figure, own.found)
    assert reached is not None
    slow, fast = own.figure.settings
    # The slow one reaches its own lowest running mean in its last step.
    assert reached.steps[slow] == dict.fromkeys((1, 2, 3, 4), 400)
    curve, w = own.found[fast][0].losses, reached.width
    assert reached.steps[fast][1] == next(k for k in range(w, 401) if sum(curve[k - w : k]) / w <= reached.target)
    cost = reached.cost(own.price("seconds"))
    assert cost[fast][1] == 2 * reached.steps[fast][1]
    assert log_ratio(cost[slow], cost[fast]).half == pytest.approx(0, abs=1e-12)


def test_intervals_trends_and_running_means() -> None:
    assert Interval.of([1.0]).half == math.inf
    assert not Interval.of([1.0]).above_zero
    assert Trend.of([{1: 1.0}, {1: 2.0}, {1: 3.0}]).verdict == "no trend"
    values = [float(v) for v in (3, 1, 4, 1, 5, 9, 2, 6)]
    assert smooth(values, 3)[2:] == pytest.approx([sum(values[i : i + 3]) / 3 for i in range(6)])


def test_a_report_of_unfinished_work_says_so(tmp_path: Path) -> None:
    work = Work.open(tmp_path, ("F1", "F3", "classes"), "glyphs", "", "smoke")
    found = write_report(work)
    assert found.finished == 0
    assert "Only 0 of" in (tmp_path / "report.html").read_text()
    assert all(v.verdict == "undecided" for v in found.verdicts)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "threads are put back"
