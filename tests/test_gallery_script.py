"""The script that compares the gallery: its configs, a cell, and the table of cells."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import fakes
from headstart.training.algorithms import ALGORITHMS, with_algorithm
from headstart.training.config import RunConfig
from headstart.training.run import learner_for

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def gallery() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gallery
    finally:
        sys.path.pop(0)
    return gallery


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_config_of_the_gallery_has_the_parts_of_the_algorithm(name: str) -> None:
    """The numbers of a config are its own; what adapts, and the kinds of the parts, are those of ``--algorithm``."""
    common = {"filters": 4, "lr": 0.05}
    config = RunConfig.from_flat({**common, **json.loads((ROOT / "configs" / "gallery" / f"{name}.json").read_text())})
    own = learner_for(config, fakes.source())
    other = learner_for(with_algorithm(RunConfig.from_flat(common), name, ()), fakes.source())
    assert own.partition.adapted == other.partition.adapted
    for part in ("inner", "hypergradient", "start"):
        assert type(getattr(own, part)) is type(getattr(other, part))
    for setting in ("first_order", "multi_step", "pretrain"):
        assert getattr(config.train, setting) == ALGORITHMS[name].get(setting, 0)


def test_there_is_one_config_and_one_section_for_each_algorithm(gallery: Any) -> None:
    assert set(gallery.algorithms()) == set(ALGORITHMS)
    page = (ROOT / "docs" / "gallery" / "README.md").read_text()
    assert [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")] == list(
        dict.fromkeys(line[3 : line.index("]")] for line in page.splitlines() if line.startswith("| [") and "](#" in line)
    )
    assert all(f"\n### {name}\n" in page for name in ALGORITHMS)
    assert all(mark in page for mark in gallery.MARKS)


def test_a_cell_is_run_once_and_the_table_has_its_row(
    gallery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"data": "fakes:source", "ways": 5, "shots": 1, "queries": 2, "model": "mlp", "hidden": [8]}
    monkeypatch.setattr(gallery, "SOURCES", {"fc100": settings})
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\nold\n".join(gallery.MARKS) + "\nafter\n")

    def call(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gallery.py", "--out", str(tmp_path / "out"), *more])
        gallery.main()
        return capsys.readouterr().out

    cells = [
        "--source",
        "fc100",
        "--seconds",
        "0.2",
        "--episodes",
        "4",
        "--validation-episodes",
        "4",
        "--settings",
        "tasks=2,sampling=independent",
    ]
    cells += ["--algorithms", "protonet", "soft_kmeans", "boil"]
    assert call(*cells, "--seeds", "0").count("steps") == 3
    config = RunConfig.load(tmp_path / "out" / "fc100" / "protonet" / "0" / "config.json")
    assert (config.train.tasks, config.learner.start) == (2, "prototypes")
    said = call(*cells, "--seeds", "0", "1")
    assert said.count("done before") == 3
    # One that was cut short after its training goes on, and ends with the same result.
    cell = tmp_path / "out" / "fc100" / "protonet" / "1" / "cell.json"
    before = json.loads(cell.read_text())
    cell.unlink()
    assert call(*cells, "--seeds", "1").count("done before") == 2
    assert json.loads(cell.read_text())["result"] == before["result"]
    refused = {"source": "fc100", "algorithm": "reptile", "seed": 0, "wanted_seconds": 0.2, "refused": "a reason"}
    (tmp_path / "out" / "fc100" / "reptile" / "0").mkdir(parents=True)
    (tmp_path / "out" / "fc100" / "reptile" / "0" / "cell.json").write_text(json.dumps(refused))
    shown = call("--table", "--page", str(page))
    mean = sum(json.loads((cell.parent.parent / s / "cell.json").read_text())["result"]["support"]["mean"] for s in "01") / 2
    assert f"| [protonet](#protonet) | {100 * mean:.2f} ± " in shown
    assert "| [soft_kmeans](#soft_kmeans) |" in shown
    assert shown.count("**transductive**") == 1
    assert "| [reptile](#reptile) | — | a reason |" in shown
    assert page.read_text().startswith(f"before\n{gallery.MARKS[0]}\n\n**FC100")
    assert page.read_text().endswith(f"{gallery.MARKS[1]}\nafter\n")
    assert "old" not in page.read_text()
