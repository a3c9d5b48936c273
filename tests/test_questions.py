"""The page of questions: the tests that it names are there and are collected; and those of its kinds that have no other place."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import headstart as hs
from headstart.cli import main
from pages import PAGES, ROOT

NAMED = sorted({name for page in PAGES for name in re.findall(r"`(tests/test_\w+\.py::test_\w+)", page.read_text())})


class Collected:
    """What pytest finds."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.names |= {item.nodeid.partition("[")[0] for item in items}


def test_the_tests_that_documents_name_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """By pytest itself, with the settings of the suite but for its choice of quick ones."""
    assert len(NAMED) > 40
    monkeypatch.chdir(ROOT)
    found, said = Collected(), io.StringIO()
    with contextlib.redirect_stdout(said):
        files = sorted({name.partition("::")[0] for name in NAMED})
        code = pytest.main(["--collect-only", "-m", "", "-p", "no:cacheprovider", *files], plugins=[found])
    assert code == 0, said.getvalue()
    assert not [name for name in NAMED if name not in found.names]


def test_every_question_names_a_test() -> None:
    text = (ROOT / "docs" / "questions.md").read_text()
    questions = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(questions) > 25
    for question in questions:
        assert re.search(r"^- `tests/test_\w+\.py::test_\w+`$", question, re.MULTILINE), question.partition("\n")[0]


def test_tasks_are_a_sequence() -> None:
    x, y = torch.randn(4, 6, 3), torch.randint(3, (4, 6))
    tasks = hs.TaskBatch(x, y, x, y)
    assert [task.support_y.tolist() for task in tasks] == y[:, None].tolist()
    assert len(tasks) == 4
    assert tasks[-1].support_y.tolist() == y[3:].tolist()
    for place in (4, -5):
        with pytest.raises(IndexError):
            tasks[place]


def test_oblong_pictures_go_into_the_default_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectrograms are not square."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("spectra.npz", x=rng.normal(size=(60, 1, 32, 48)).astype(np.float32), y=np.arange(15).repeat(4))
    sizes = "--ways 2 --shots 1 --queries 2 --tasks 2 --iterations 2 --validation-episodes 4 --test-episodes 4 --filters 4 --lr 0.1"
    assert main(["train", "--data", "spectra.npz", *sizes.split(), "--start", "model", "--out", "run"]) == 0
    learner = hs.TrainedStart.load("run").learner
    assert learner.adapt(torch.randn(2, 1, 32, 48), torch.tensor([0, 1])).predict(torch.randn(3, 1, 32, 48)).shape == (3,)


@pytest.mark.parametrize("adapt", ["head", "last:2", "all"])
def test_the_unit_of_targets_plays_no_part(adapt: str) -> None:
    """Trained on a·y + b, a learner predicts a times what it predicts when it is trained on y, plus b."""
    rng = np.random.default_rng(0)
    x, slopes = rng.normal(size=(240, 3)).astype(np.float32), rng.normal(size=(12, 3)).repeat(20, 0)
    y = (x * slopes).sum(1).astype(np.float32)

    def predicted(targets: Any) -> torch.Tensor:
        names = [f"t{i}" for i in range(12)]
        table = hs.data.TableTasks(x, targets, [20] * 12, names, ["train"] * 8 + ["validation"] * 2 + ["test"] * 2, "regression")
        torch.manual_seed(0)
        learner = hs.anil(hs.models.mlp(features=3, ways=1, hidden=(8, 8)), steps=2, lr=0.1, adapt=adapt, loss="squared_error")
        hs.train(learner, table, hs.TrainConfig(shots=8, queries=8, tasks=4, iterations=15, validation_episodes=2), quiet=True)
        return learner.adapt(x[200:208], targets[200:208]).predict(x[208:220])

    plain, dollars = predicted(y), predicted(4e4 * y + 1e6)
    torch.testing.assert_close((dollars - 1e6) / 4e4, plain, rtol=1e-3, atol=5e-3)
    assert float(plain.std()) > 0.02, "it tells inputs apart"
