"""Files of learners and adapted models: what is loaded is what was saved, and what cannot be is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import headstart as hs
from headstart import container
from headstart.errors import CheckpointError, ConfigError
from headstart.models.recipe import remember

CONV: dict[str, Any] = {"channels": 1, "ways": 3, "size": 16, "filters": 4}


class Own(nn.Module):
    """A network that is no one's but the user's."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))


def halved(outputs: Tensor, y: Tensor) -> Tensor:
    return 0.5 * nn.functional.cross_entropy(outputs, y, reduction="none")


LEARNERS = {
    "anil": lambda: hs.anil(hs.models.conv4(**CONV), steps=3, lr=0.3),
    "shared": lambda: hs.MetaLearner(
        hs.Partition(hs.models.conv4(**CONV), "head"), hs.GradientDescent(2, 0.3, l2=0.1), start=hs.SharedVector()
    ),
    "maml": lambda: hs.maml(hs.models.conv4(**CONV), steps=2, lr=0.05),
    "last two": lambda: hs.MetaLearner(hs.Partition(hs.models.conv4(**CONV), "last:2"), hs.GradientDescent(2, (0.1, 0.2)), hs.Recursive()),
    "metasgd": lambda: hs.metasgd(hs.models.conv4(**CONV), steps=2, lr=0.05),
    "mamlpp": lambda: hs.mamlpp(hs.models.conv4(**CONV), steps=2, lr=0.05),
    "protonet": lambda: hs.protonet(hs.models.conv4(**CONV)),
    "protomaml": lambda: hs.protomaml(hs.models.conv4(**CONV), steps=2, lr=0.05),
    "r2d2": lambda: hs.r2d2(hs.models.conv4(**CONV)),
    "resnet": lambda: hs.anil(hs.models.resnet12(1, 3, widths=(4, 4, 4, 4)), steps=1, lr=0.1),
    "rates by name": lambda: hs.anil(hs.models.conv4(**CONV), steps=2, lr={"head.weight": 0.2, "*": 0.1}),
}


def task() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randn(n, 1, 16, 16, generator=generator)  # noqa: E731
    return draw(6), torch.arange(6) % 3, draw(7)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_loaded_is_what_was_saved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    learner = LEARNERS[name]()
    with torch.no_grad():
        for p in learner.parameters().values():  # as if trained
            p.add_(0.05 * torch.randn_like(p))
        for key, value in learner.model.state_dict().items():
            if "running_var" in key:
                value.uniform_(0.5, 2)
    x, y, query = task()
    expected = learner.adapt(x, y)
    learner.save(tmp_path / "start.safetensors")
    expected.save(tmp_path / "task.safetensors")
    random = torch.random.get_rng_state()
    again = hs.load(tmp_path / "start.safetensors")
    assert torch.equal(torch.random.get_rng_state(), random), "loading draws nothing"
    assert type(again.inner) is type(learner.inner)
    assert again.hypergradient == learner.hypergradient
    assert torch.equal(again.adapt(x, y).predict_proba(query), expected.predict_proba(query))
    adapted = hs.load_adapted(tmp_path / "task.safetensors")
    # Convolutions may add in another order: a file does not keep the order of memory.
    torch.testing.assert_close(adapted.predict_proba(query), expected.predict_proba(query))
    assert adapted.w.keys() == expected.w.keys()
    if learner.step_weights is not None:
        assert again.step_weights is not None
        assert torch.equal(again.step_weights, learner.step_weights)


def test_a_loaded_learner_trains_on(tmp_path: Path) -> None:
    x, y, query = task()
    learner = LEARNERS["metasgd"]()
    learner.save(tmp_path / "a")
    again, tasks = hs.load(tmp_path / "a"), hs.TaskBatch(x[None], y[None], query[None, :6], y[None])
    for name, gradient in learner.meta_gradient(tasks)[0].items():
        torch.testing.assert_close(again.meta_gradient(tasks)[0][name], gradient)


def test_more_ways_than_outputs_and_fewer(tmp_path: Path) -> None:
    x, _, query = task()
    for labels in (torch.arange(6), torch.tensor([0, 2, 0, 2, 0, 2])):
        adapted = hs.protomaml(hs.models.conv4(**CONV), steps=2, lr=0.05).adapt(x, labels)
        adapted.save(tmp_path / "a")
        assert torch.equal(hs.load_adapted(tmp_path / "a").predict_proba(query), adapted.predict_proba(query))
    few = hs.anil(hs.models.conv4(**CONV), steps=2, lr=0.1).adapt(x, torch.tensor([0, 2, 0, 2, 0, 2]))
    few.save(tmp_path / "a")
    assert hs.load_adapted(tmp_path / "a").predict_proba(query)[:, 1].eq(0).all()


def test_real_targets_keep_their_unit(tmp_path: Path) -> None:
    learner = hs.anil(hs.models.mlp(3, 1), steps=2, lr=0.1, loss="squared_error", target_scale=hs.TargetScale((2e5,), (3e4,)))
    x, y = torch.randn(5, 3), 2e5 + 3e4 * torch.randn(5)
    learner.save(tmp_path / "a")
    adapted = learner.adapt(x, y)
    adapted.save(tmp_path / "b")
    assert torch.equal(hs.load(tmp_path / "a").adapt(x, y).predict(x), adapted.predict(x))
    assert torch.equal(hs.load_adapted(tmp_path / "b").predict(x), adapted.predict(x))


def test_a_network_of_ones_own_is_named_and_trusted(tmp_path: Path) -> None:
    learner = hs.anil(Own(12), steps=2, lr=0.1)
    with pytest.raises(ConfigError, match="give model='module:name'"):
        learner.save(tmp_path / "a")
    with pytest.raises(ConfigError, match="makes another network"):
        learner.save(tmp_path / "a", model="torch.nn:Linear", arguments={"in_features": 4, "out_features": 2})
    name = f"{__name__}:Own"
    learner.save(tmp_path / "a", model=name, arguments={"width": 12})
    with pytest.raises(CheckpointError, match=r"load with trust=\["):
        hs.load(tmp_path / "a")
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    expected = learner.adapt(x, y)
    for again in (hs.load(tmp_path / "a", trust=[name]), hs.load(tmp_path / "a", model=Own(12))):
        assert torch.equal(again.adapt(x, y).predict_proba(x), expected.predict_proba(x))
    with pytest.raises(CheckpointError, match="another network"):
        hs.load(tmp_path / "a", model=Own(9))
    expected.save(tmp_path / "b", model=name, arguments={"width": 12})
    assert torch.equal(hs.load_adapted(tmp_path / "b", trust=[name]).predict_proba(x), expected.predict_proba(x))


def test_what_torch_prints_of_a_module_is_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation prints ``bias=True`` since torch 2.13; a file is read by whatever version."""
    hs.protonet(hs.models.conv4(**CONV)).save(tmp_path / "a")
    monkeypatch.setattr(nn.BatchNorm2d, "extra_repr", lambda self: "of an older version")
    assert hs.load(tmp_path / "a").inner.steps == 0


def test_who_may_read_files_may_read_these_too(tmp_path: Path) -> None:
    """Weights as well as texts, as the system gives new files to others; a second name is no copy."""
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    hs.protonet(hs.models.mlp(4, 2)).save(tmp_path / "a")
    container.write_json(tmp_path / "b", {})
    container.copy_of(tmp_path / "a", tmp_path / "c")
    assert [(tmp_path / name).stat().st_mode for name in "abc"] == [usual] * 3
    assert (tmp_path / "a").stat().st_ino == (tmp_path / "c").stat().st_ino


def test_what_was_loaded_can_be_kept_again(tmp_path: Path) -> None:
    name = f"{__name__}:Own"
    hs.anil(Own(12), steps=2, lr=0.1).save(tmp_path / "a", model=name, arguments={"width": 12})
    hs.load(tmp_path / "a", trust=[name]).save(tmp_path / "b")
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    first, second = (hs.load(tmp_path / file, trust=[name]).adapt(x, y).predict_proba(x) for file in "ab")
    assert torch.equal(first, second)


def test_a_network_on_the_features_of_another_is_kept(tmp_path: Path) -> None:
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 2
    mean, std = torch.linspace(-1, 1, 6).tolist(), torch.linspace(1, 2, 6).tolist()
    body = hs.models.conv4(size=16, filters=6).eval()
    model = hs.models.on_features(body, "head", hs.models.projection(6, 2), mean, std).train()
    body.head = nn.Identity()
    expected = (body(x) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(model.features(x), expected)
    learner = hs.anil(model, steps=2, lr=0.1)
    assert learner.partition.adapted == ("top.1.weight", "top.1.bias")
    assert learner.partition.shared == ("top.0.weight", "top.0.bias")
    assert not model.body.training
    learner.save(tmp_path / "a")
    assert torch.equal(hs.load(tmp_path / "a").adapt(x, y).predict_proba(x), learner.adapt(x, y).predict_proba(x))
    with pytest.raises(ConfigError, match="has no layer 'neck'"):
        hs.models.on_features(body, "neck", hs.models.projection(6, 2), mean, std)
    with pytest.raises(ConfigError, match="6 means and 1 standard"):
        hs.models.on_features(body, "head", hs.models.projection(6, 2), mean, [1.0])


def test_a_network_inside_another_must_be_trusted_too(tmp_path: Path) -> None:
    own = Own(12)
    remember(own, name := f"{__name__}:Own", {"width": 12})
    hs.anil(hs.models.on_features(own, "head", hs.models.projection(12, 2), [0.0] * 12, [1.0] * 12)).save(tmp_path / "a")
    with pytest.raises(CheckpointError, match=f"made by {name}"):
        hs.load(tmp_path / "a")
    assert hs.load(tmp_path / "a", trust=[name]).partition.adapted == ("top.1.weight", "top.1.bias")


def test_a_network_that_was_changed_is_not_saved_as_what_it_was(tmp_path: Path) -> None:
    model = hs.models.conv4(**CONV)
    model.body.append(nn.Tanh())  # type: ignore[union-attr,operator]
    with pytest.raises(ConfigError, match="changed after it was built"):
        hs.anil(model).save(tmp_path / "a")


def test_a_loss_of_ones_own_is_given_again(tmp_path: Path) -> None:
    learner = hs.anil(hs.models.conv4(**CONV), steps=2, lr=0.3, loss=halved)
    learner.save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="give it again as loss="):
        hs.load(tmp_path / "a")
    x, y, query = task()
    assert torch.equal(hs.load(tmp_path / "a", loss=halved).adapt(x, y).logits(query), learner.adapt(x, y).logits(query))


def test_a_file_cannot_name_what_is_to_be_imported(tmp_path: Path) -> None:
    file = tmp_path / "a"
    LEARNERS["anil"]().save(file)
    tensors, whole = load_file(file), header(file)
    for part, value in (
        ("model", {"name": "os:system", "arguments": {"command": "true"}, "shape": []}),
        ("inner", {"name": "os:abort", "options": {}}),
    ):
        container.write(file, "learner", {**whole["header"], part: value}, tensors)
        with pytest.raises(CheckpointError, match="importing runs code"):
            hs.load(file)


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["headstart"])
    return found


def test_damaged_later_and_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a"
    LEARNERS["anil"]().save(file)
    content, whole, tensors = file.read_bytes(), header(file), load_file(file)
    with pytest.raises(CheckpointError, match="holds a learner, and not"):
        hs.load_adapted(file)
    with pytest.raises(CheckpointError, match="no file"):
        hs.load(tmp_path / "b")
    for bad in (content[: len(content) // 2], b"", b"hello", content[:8] + b"x" * 40 + content[48:]):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match="damaged"):
            hs.load(file)
    flipped = bytearray(content)
    flipped[-5] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="does not hold what was written"):
        hs.load(file)
    save_file(tensors, file, metadata={"headstart": json.dumps({**whole, "format": 99})})
    with pytest.raises(CheckpointError, match="later headstart"):
        hs.load(file)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="damaged, or no file"):
        hs.load(file)
