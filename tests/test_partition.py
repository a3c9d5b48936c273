from __future__ import annotations

import pytest
from torch import nn

import headstart as hs
from headstart.errors import PartitionError
from zoo import Tied, frozen


def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("adapt", "expected"),
    [
        ("head", {"4.weight", "4.bias"}),
        ("last:1", {"4.weight", "4.bias"}),
        ("last:2", {"4.weight", "4.bias", "2.weight", "2.bias"}),
        ("last:3", {f"{i}.{p}" for i in (0, 1, 2, 4) for p in ("weight", "bias")}),
        ("body", {f"{i}.{p}" for i in (0, 1, 2) for p in ("weight", "bias")}),
        ("all", {f"{i}.{p}" for i in (0, 1, 2, 4) for p in ("weight", "bias")}),
        ("*.bias", {f"{i}.bias" for i in (0, 1, 2, 4)}),
        ("head, 0.*", {"4.weight", "4.bias", "0.weight", "0.bias"}),
        (["head", "2.bias"], {"4.weight", "4.bias", "2.bias"}),
    ],
)
def test_what_adapts(adapt: str, expected: set[str]) -> None:
    """A normalisation layer counts with the layer before it."""
    own = model()
    partition = hs.Partition(own, adapt)
    assert set(partition.adapted) == expected
    assert set(partition.shared) == {n for n, _ in own.named_parameters()} - expected
    w, phi = partition.split()
    assert w.keys() | phi.keys() == {n for n, _ in own.named_parameters()}


@pytest.mark.parametrize(
    ("adapt", "words"),
    [
        ("heads.*", "matches no parameter; the model has, for example"),
        ("4.wieght", r"4\.weight"),
        ("last:0", "1 … 3"),
        ("last:9", "1 … 3"),
        ("last:x", "1 … 3"),
        ("", "chooses nothing"),
        ([], "chooses nothing"),
    ],
)
def test_what_matches_nothing_is_refused(adapt: str, words: str) -> None:
    with pytest.raises(PartitionError, match=words):
        hs.Partition(model(), adapt)


def test_frozen_parameters_play_no_part() -> None:
    partition = hs.Partition(frozen(), "all")
    assert set(partition.frozen) == {"2.weight", "4.bias"}
    assert not set(partition.frozen) & {*partition.adapted, *partition.shared}
    with pytest.raises(PartitionError, match="only frozen parameters"):
        hs.Partition(frozen(), "2.weight")
    with pytest.raises(PartitionError, match="no parameter with requires_grad"):
        hs.Partition(model().requires_grad_(False))
    with pytest.raises(PartitionError, match="single layer"):
        hs.Partition(nn.Linear(2, 2), "body")


def test_tied_parameters_are_one() -> None:
    """A pattern over either name finds the parameter, under its first name."""
    assert hs.Partition(Tied(), "out.*").adapted == hs.Partition(Tied(), "embed.*").adapted == ("embed.weight",)


def test_the_table_names_every_parameter_and_its_role() -> None:
    text = str(hs.Partition(frozen(), "head"))
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert rows["4.weight"].endswith("adapted (w)")
    assert rows["0.weight"].endswith("shared (φ)")
    assert rows["2.weight"].endswith("frozen")
    assert text.splitlines()[-1] == "total: 12 adapted, 24 shared, 19 frozen"
