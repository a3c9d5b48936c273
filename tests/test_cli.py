"""The command line, called as a user would, on a data source made for the test."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fakes import source
from headstart import data
from headstart.cli import main

SMALL = ["--iterations", "3", "--tasks", "4", "--queries", "2", "--filters", "4", "--validate-every", "2", "--validation-episodes", "10"]


REAL_LOAD = data.load


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pictures made on the spot instead of glyphs, and an empty folder to work in."""
    monkeypatch.setattr(data, "load", lambda name, *a, **k: source() if name == "glyphs" else REAL_LOAD(name, *a, **k))
    monkeypatch.chdir(tmp_path)


def test_train_and_evaluate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "run", "--test-episodes", "0"]) == 0
    out = capsys.readouterr().out
    assert "finished after 3 steps" in out
    assert "headstart evaluate run" in out
    assert {p.name for p in Path("run").iterdir()} >= {"config.json", "metrics.jsonl", "last.safetensors", "last.json", "report.html"}
    assert main(["evaluate", "run", "--episodes", "30", "--shots", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d % accuracy after 5 inner steps \(\d+\.\d % before, chance 20.0 %; calibration", out)
    found = json.loads(Path("run/evaluation-2shots.json").read_text())
    assert found["protocol"]["shots"] == 2
    assert len(found["scores"]) == 30
    page = Path("run/report-2shots.html").read_text()
    assert page.count("<svg") == 3
    assert f"{100 * found['mean']:.1f}" in page
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page), "the page must stand alone"


def test_a_config_file_sets_defaults_that_options_override() -> None:
    assert main(["train", *SMALL, "--out", "one", "--lr", "0.25"]) == 0
    assert main(["train", "--config", "one/config.json", "--out", "two", "--iterations", "2"]) == 0
    config = json.loads(Path("two/config.json").read_text())
    assert (config["lr"], config["iterations"], config["filters"]) == (0.25, 2, 4)


def test_resume_and_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "run"]) == 0
    before = {file: file.read_bytes() for file in Path("run").iterdir()}
    capsys.readouterr()
    for more in ([], ["--plan", "1m"]):
        assert main(["train", *SMALL, "--out", "run", *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith("headstart: 'run' holds a run already"), "before anything is measured"
    assert {file: file.read_bytes() for file in Path("run").iterdir()} == before, "what was refused has changed nothing"
    assert main(["train", "--config", "run/config.json", "--out", "run", "--iterations", "5", "--resume"]) == 0
    assert "finished after 5 steps" in capsys.readouterr().out
    assert main(["train", *SMALL, "--out", "run", "--overwrite"]) == 0
    assert "finished after 3 steps" in capsys.readouterr().out
    assert main(["train", *SMALL]) == main(["train", *SMALL]) == 0
    assert {p.name for p in Path("runs").iterdir()} == {"glyphs-head-5way-1shot", "glyphs-head-5way-1shot-2"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --steps -1", "steps=-1"),
        ("train --lr 0", "lr=0"),
        ("train --ways 50", "ways=50, but train has 12 classes"),
        ("train --adapt heads", "adapt='heads' matches no parameter"),
        ("train --config missing.json", "cannot read the config 'missing.json'"),
        ("train --resume --out none", "no checkpoint"),
        ("evaluate nowhere", "'nowhere' is no run folder"),
    ],
)
def test_errors_name_the_cause(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["--help"], ["train", "--help"], ["evaluate", "--help"]):
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in [
        "data",
        "ways",
        "shots",
        "queries",
        "adapt",
        "steps",
        "lr",
        "l2",
        "outer-lr",
        "tasks",
        "iterations",
        "seed",
        "out",
        "resume",
        "config",
        "episodes",
    ]:
        assert f"--{option}" in out


def test_a_run_goes_on_with_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "run", "--lr", "0.25", "--seed", "7"]) == 0
    before = Path("run/config.json").read_text()
    assert main(["train", "--resume", "--out", "run", "--filters", "8"]) == 2
    assert "made with filters=4, and not 8" in capsys.readouterr().err
    assert Path("run/config.json").read_text() == before
    assert main(["train", "--resume", "--out", "run", "--iterations", "4"]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["lr"], config["seed"], config["iterations"]) == (0.25, 7, 4)
    assert main(["evaluate", "run", "--shots", "0"]) == 2
    assert "shots=0" in capsys.readouterr().err


def test_data_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.cli import data as cli

    monkeypatch.setattr(cli, "load", lambda *_, **__: source())
    assert main(["data", "list"]) == 0
    assert "fc100" in capsys.readouterr().out
    assert main(["data", "info", "cifar-fs"]) == 0
    assert "md5 eb9058c3a382ffc7106e4002c42a8d85" in capsys.readouterr().out
    assert main(["data", "check", "fake"]) == 0
    assert "12 classes" in capsys.readouterr().out
    assert main(["data", "info", "nope"]) == 2
    assert main(["data", "fetch", "glyphs"]) == 2
    assert "nothing to fetch" in capsys.readouterr().err


def test_one_command_trains_and_evaluates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SMALL, "--out", "run", "--test-episodes", "20"]) == 0
    out = capsys.readouterr().out
    assert "finished after 3 steps" in out
    assert "20 episodes of 6 test classes" in out
    assert json.loads(Path("run/evaluation.json").read_text())["protocol"]["episodes"] == 20
    own = Path("run/evaluation.json").read_bytes()
    assert main(["evaluate", "run", "--episodes", "10", "--steps", "2", "--batch-norm", "episode"]) == 0
    assert json.loads(Path("run/evaluation-2steps-episode.json").read_text())["protocol"]["episodes"] == 10
    assert Path("run/evaluation.json").read_bytes() == own, "another protocol does not take the place of the run's own"
    assert main(["train", *SMALL, "--out", "run", "--test-episodes", "0", "--overwrite"]) == 0
    assert not list(Path("run").glob("evaluation*.json"))
    assert main(["train", *SMALL, "--out", "other", "--test-episodes", "1"]) == 2
    assert not Path("other").exists()


VECTORS = ["--iterations", "3", "--tasks", "4", "--shots", "4", "--queries", "4", "--validate-every", "2", "--hidden", "8"]


def test_sine_waves(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*VECTORS, "--validation-episodes", "10", "--test-episodes", "20", "--adapt", "all", "--lr", "0.01"]
    assert main(["train", "--data", "sinusoid", *arguments, "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"squared error after 5 inner steps \([\d.]+ before; root mean squared error [\d.]+; R² -?\d", out)
    assert "4 support and 15 query examples, 20 episodes of sine waves" in out
    page = Path("run/report.html").read_text()
    assert page.count("<svg") == 3
    assert "4 support points" in page


def test_a_table_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"t{t},{x},{(x * 7 + t) % 5},{'yes' if (x + t) % 3 else 'no'}" for t in range(20) for x in range(12)]
    Path("mine.csv").write_text("assay,a,b,active\n" + "\n".join(rows))
    options = ["--data", "table:mine.csv", "--data-options", "task=assay,target=active", "--validation-episodes", "10"]
    assert main(["train", *options, *VECTORS, "--test-episodes", "20", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"% accuracy after 5 inner steps \([\d.]+ % before; balanced accuracy [\d.]+ ± [\d.]+; AUPRC [\d.]+ ± [\d.]+; ΔAUPRC -?\d", out
    )
    assert "20 episodes of 4 test tasks" in out
    assert main(["evaluate", "run", "--shots", "6", "--episodes", "8"]) == 0
    assert main(["data", "check", "table:mine.csv", "--data-options", "task=assay,target=active"]) == 0
    assert "classification over 2 classes, 2 features, 240 rows" in capsys.readouterr().out
    for wrong, words in (
        (["--data-options", "tsk=assay"], "no option 'tsk'"),
        (["--data-options", "assay"], "is not NAME=VALUE"),
        (["--data-options", "task=assay,target=active", "--model", "conv4"], "takes pictures"),
        (["--data-options", "task=assay,target=active", "--sampling", "dense"], "sampling='independent'"),
    ):
        assert main(["train", "--data", "table:mine.csv", *VECTORS, *wrong]) == 2
        assert words in capsys.readouterr().err
