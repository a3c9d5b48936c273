"""The parts of a learner by name, in a config and on the command line; and one's own as module:name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import headstart as hs
from headstart import data
from headstart.cli import main
from headstart.errors import ConfigError
from headstart.inner.start import ModelStart
from headstart.training import choices
from headstart.training.config import LearnerConfig, RunConfig
from headstart.training.run import learner_for
from headstart.training.step_sizes import lr_text, parse_lr

WAVES = ["--data", "sinusoid", "--shots", "4", "--queries", "4", "--tasks", "4", "--iterations", "3", "--validate-every", "2"]
WAVES += ["--validation-episodes", "10", "--test-episodes", "0", "--adapt", "all", "--lr", "0.01", "--hidden", "8"]


# -- toys of a user's own ----------------------------------------------------------------------------------------------


class Wide(nn.Sequential):
    """A model that takes what it needs to know of an example, and an option."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int = 3) -> None:
        super().__init__(nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, outputs))


def cubed(outputs: Tensor, targets: Tensor, by: float = 1.0) -> Tensor:
    return by * (outputs - targets.reshape(outputs.shape)).abs().pow(3).sum(-1)


class Halved(hs.GradientDescent):
    """Gradient descent whose step size halves in every step."""

    def rate(self, m: int, name: str, theta: Any) -> float:
        return float(self.lr) * 0.5**m


OWN = {
    "model": "test_choices:Wide",
    "model_options": "width=6",
    "solver": "test_choices:Halved",
    "solver_options": "momentum=0.5",
    "start": "headstart.inner.start:ModelStart",
    "hypergradient": "headstart:Recursive",
    "loss": "test_choices:cubed",
    "loss_options": "by=0.5",
    "optimizer": "torch.optim:Adamax",
    "schedule": "torch.optim.lr_scheduler:StepLR",
    "schedule_options": "step_size=2",
}


def test_every_part_may_be_ones_own() -> None:
    learned = {k: v for k, v in OWN.items() if k not in ("optimizer", "schedule", "schedule_options")}
    config = RunConfig(data="sinusoid", learner=LearnerConfig(adapt="all", steps=2, lr=0.01, **learned))  # type: ignore[arg-type]
    learner = learner_for(config, data.load("sinusoid"))
    assert isinstance(learner.model, Wide)
    assert learner.model[0].out_features == 6
    assert learner.inner == Halved(2, 0.01, momentum=0.5)
    assert isinstance(learner.hypergradient, hs.Recursive)
    assert isinstance(learner.start, ModelStart)
    # The same numbers as the same parts put together by hand.
    torch.manual_seed(0)
    own = hs.MetaLearner(
        hs.Partition(Wide((1,), 1, 6), "all"), Halved(2, 0.01, momentum=0.5), hs.Recursive(), loss=lambda o, y: cubed(o, y, 0.5)
    )
    tasks = data.Sinusoid(4, 4, 3).batch(0)
    found, wanted = learner.meta_gradient(tasks)[0], own.meta_gradient(tasks)[0]
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_the_command_line_takes_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    options = [part for name, value in OWN.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert main(["train", *WAVES, *options, "--out", "run"]) == 0
    assert "finished after 3 steps" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text()).items() >= OWN.items()
    assert main(["evaluate", "run", "--episodes", "5"]) == 0
    assert main(["train", "--resume", "--out", "run", "--iterations", "4", "--test-episodes", "0"]) == 0
    captured = capsys.readouterr()
    assert "finished after 4 steps" in captured.out
    assert "planned for 3 steps and goes on from step 3 to 4" in captured.err


def test_a_file_beside_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_own_net.py").write_text("from torch import nn\ndef net(outputs, deep=1):\n    return nn.Sequential(nn.Linear(1, outputs))\n")
    assert main(["train", *WAVES, "--model", "my_own_net:net", "--out", "run"]) == 0


@pytest.mark.parametrize("registry", [choices.SOLVERS, choices.HYPERGRADIENTS, choices.STARTS, choices.MODELS])
def test_every_name_there_is_can_be_chosen(registry: Any) -> None:
    kind = {"inner solver": "solver"}.get(registry.what, registry.what)
    for name in registry:
        name = f"{name}:folder" if name == "transformers" else name  # which is looked into when the model is built
        config = LearnerConfig(**{kind: name})
        assert getattr(config, kind) == name


@pytest.mark.parametrize(
    "options", [["--solver", "metasgd"], ["--solver", "lslr"], ["--hypergradient", "first-order"], ["--optimizer", "sgd"]]
)
def test_the_parts_of_the_library_on_the_command_line(options: list[str], tmp_path: Path) -> None:
    assert main(["train", *WAVES, *options, "--outer-lr-w", "0.01", "--outer-lr-phi", "0.001", "--out", str(tmp_path / "run")]) == 0
    tensors = json.loads((tmp_path / "run" / "last.json").read_text())
    assert tensors["iteration"] == 3


def test_help_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    for words in ("--solver: descent", "--optimizer: adamw, adam, sgd", "--schedule: constant, cosine", "--hypergradient: auto, unrolled"):
        assert words in out


# -- step sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (0.4, 0.4),
        ("0.4", 0.4),
        ("1e-2", 0.01),
        ("0.4,0.2,0.1", (0.4, 0.2, 0.1)),
        ("[0.4, 0.2]", (0.4, 0.2)),
        ("head.*=0.1,*=0.01", {"head.*": 0.1, "*": 0.01}),
        ("*.[0-9].bias=1,*=0.5", {"*.[0-9].bias": 1.0, "*": 0.5}),
        ("head.*=[0.4, 0.2],*=0.01", {"head.*": (0.4, 0.2), "*": 0.01}),
    ],
)
def test_step_sizes_as_text(text: float | str, meant: Any) -> None:
    assert parse_lr(text) == meant
    assert parse_lr(lr_text(meant)) == meant


@pytest.mark.parametrize(
    "text", ["", "fast", "0.4,fast", "head=fast", "0", "-1", "0.4,0", "nan", "*=inf", "*=[0.1,0]", "*=[]", 0.0, True, "*=true"]
)
def test_step_sizes_that_cannot_work(text: Any) -> None:
    with pytest.raises(ConfigError, match="lr="):
        parse_lr(text)


def test_a_config_file_holds_step_sizes_in_any_form() -> None:
    class Any_(hs.GradientDescent):
        """Takes them all."""

        def __post_init__(self) -> None:
            pass

    choices.SOLVERS.register("any")(Any_)
    try:
        for lr, meant in ((0.1, 0.1), (1, 1.0), ([0.4, 0.2], (0.4, 0.2)), ({"*": 0.5}, {"*": 0.5}), ("0.4,0.2", (0.4, 0.2))):
            config = RunConfig.from_flat({"lr": lr, "solver": "any"}).learner
            assert config.inner_solver().lr == meant
            assert eval(repr(config)) == config
    finally:
        del choices.SOLVERS._factories["any"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "decsent"}, "inner solver 'decsent' is not known; did you mean 'descent'"),
        ({"solver_options": "momentum"}, "solver_options='momentum': 'momentum' is not NAME=VALUE"),
        ({"solver_options": "speed=1"}, "inner solver 'descent' has no option 'speed'"),
        ({"solver_options": "momentum=x"}, r"GradientDescent\(momentum='x'\) cannot be made"),
        ({"solver": "test_choices:Nothing"}, "'test_choices:Nothing' cannot be loaded"),
        ({"start": "middle"}, "start 'middle' is not known"),
        ({"hypergradient": "exact"}, "hypergradient 'exact' is not known"),
        ({"hypergradient_options": "iterations=2"}, "hypergradient 'auto' is not known"),
        ({"loss": "hinge"}, "loss 'hinge' is not known"),
        ({"model": "vgg"}, "model 'vgg' is not known"),
        ({"model_options": "dropout"}, "model_options='dropout'"),
        ({"lr": "quick"}, "lr='quick': 'quick' is not a number"),
    ],
)
def test_names_and_options_that_are_not_known(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LearnerConfig(**options)


def test_models_that_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="gave a tuple; it must give"):
        choices.model("builtins:tuple", "", (3,), 2)
    with pytest.raises(ConfigError, match=r"model 'conv4' has no option 'depth'; it has shape, outputs, filters"):
        choices.model("conv4", "depth=3", (1, 28, 28), 5)
    with pytest.raises(ConfigError, match="model='conv4' takes pictures"):
        choices.model("conv4", "", (3,), 5)
    narrow = choices.model("resnet12", "widths=[4,4,8,8],dropout=0.1", (1, 16, 16), 5)
    assert narrow(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--solver", "adam", "--solver-options", "eps=1e-4"], "Adam(steps=5, lr=0.01"),
        (["--solver-options", "clip=0.5,momentum=0.5"], "momentum=0.5, prox=0.0, clip=0.5"),
        (["--lr", "0.03,0.02,0.01", "--steps", "3"], "lr=(0.03, 0.02, 0.01)"),
        (["--lr", "2.*=0.01,*=0.001"], "lr={'2.*': 0.01, '*': 0.001}"),
    ],
)
def test_inner_solvers_on_the_command_line(options: list[str], expected: str, tmp_path: Path) -> None:
    """Adam, clipping, and step sizes by step and by pattern; the evaluation says what was run."""
    given = [*WAVES, "--test-episodes", "4", "--out", str(tmp_path)]
    assert main(["train", *given, *options]) == 0
    assert expected in json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["inner"]
