"""Temperatures and thresholds: known answers, and figures that stand for what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import headstart as hs
from fakes import source
from headstart.errors import ConfigError
from headstart.evaluation.calibration import Calibration, Confidences, confidences


def answers(sharp: float, n: int = 40_000, ways: int = 4) -> Confidences:
    """Examples whose classes are drawn from the softmax of their logits, which are then made sharper."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, ways, generator=generator, dtype=torch.double)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    return Confidences(sharp * logits, labels, 0.3 * sharp * logits[:5000])


@pytest.mark.parametrize("sharp", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_the_temperature_undoes_what_was_sharpened(sharp: float) -> None:
    found = answers(sharp)
    assert found.temperature() == pytest.approx(sharp, rel=0.03)
    assert found.error(found.temperature()) < 0.01
    if sharp != 1.0:
        assert found.error() > 0.05


def test_the_temperature_is_where_the_derivative_vanishes() -> None:
    found = answers(3.0, 500)
    inverse = torch.tensor(1 / found.temperature(), dtype=torch.double, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(inverse * found.logits, found.labels, label_smoothing=1 / (len(found.labels) + 2))
    assert float(torch.autograd.grad(loss, inverse)[0].abs()) < 1e-9


def test_the_threshold_accepts_the_share_that_was_asked_for() -> None:
    found = answers(1.0)
    share = found.confidence(1.0, unknown=True)
    threshold = float(share.quantile(0.9))
    calibration = Calibration(1.0, threshold, "confidence", 0.1, None, None, 0.0, 0.0, 4, 1).measured(found)
    assert calibration.false_accepts == pytest.approx(0.1, abs=1e-3)
    assert calibration.accepted == pytest.approx(float((found.confidence(1.0) >= threshold).double().mean()))
    pairs = found.confidence(1.0)[:2000, None] > share[None, :2000]
    few = Confidences(found.logits[:2000], found.labels[:2000], found.unknown[:2000])
    assert few.auroc() == pytest.approx(float(pairs.double().mean()), abs=1e-9)
    assert Confidences(found.logits, found.labels, found.logits).auroc() == pytest.approx(0.5)


def test_a_learner_is_calibrated_on_its_validation_classes() -> None:
    torch.manual_seed(0)
    learner = hs.protonet(hs.models.conv4(1, 3, 16, filters=8))
    data = source()
    found = hs.calibrate(learner, data.validation, ways=3, shots=2, queries=3, episodes=60)
    assert found.error < found.error_before
    assert found.false_accepts <= 0.06
    assert found.auroc is not None
    assert found.auroc > 0.5
    assert "AUROC" in str(found)
    again = found.measured(confidences(learner, data.validation, ways=3, shots=2, queries=3, episodes=60))
    assert again == found, "the same episodes give the same figures"
    whole = hs.calibrate(learner, data.validation, ways=len(data.validation.classes), queries=3, episodes=20)
    assert whole.threshold is not None, "one class is kept for what is in no task"


def test_where_every_answer_is_right_nothing_is_certain() -> None:
    labels = torch.arange(300) % 3
    found = Confidences(torch.nn.functional.one_hot(labels, 3).double(), labels, torch.zeros(0, 3))
    assert float(found.confidence(found.temperature()).max()) == pytest.approx(1 - 2 / 3 / 302, abs=1e-6)


def test_classes_without_support_examples_are_left_out_of_the_support_set() -> None:
    """Asked about classes that a nearest-mean classifier sees far away from all, it is unsure; about its own, sure."""
    torch.manual_seed(0)
    means = torch.randn(8, 12) * 6
    x = (means.repeat_interleave(20, 0) + 0.1 * torch.randn(160, 12)).contiguous()
    split = hs.data.Split(x, [str(c) for c in range(8)], [20] * 8)
    learner = hs.protonet(hs.models.projection(12, 4))
    found = confidences(learner, split, ways=4, shots=1, queries=2, episodes=30)
    assert len(found.logits) == len(found.unknown) == 30 * 4 * 2
    assert bool((found.logits.argmax(-1) == found.labels).all())
    assert found.near is not None
    distance = 2**0.5 * 0.1 * 12**0.5  # of two examples of a class: noise of 0.1 in each of twelve features
    assert float(-found.near[0].mean()) == pytest.approx(distance, rel=0.1)
    assert found.auroc() == 1.0, "other classes are far from all"
    assert found.confidence(50.0, unknown=True).mean() > 0.5, "though probabilities hardly show it"


def test_where_no_linear_head_adapts_confidence_has_to_do() -> None:
    learner = hs.maml(hs.models.conv4(1, 3, 16, filters=4), steps=1, lr=0.01)
    found = hs.calibrate(learner, source().validation, ways=3, queries=2, episodes=6)
    assert (found.by, found.threshold is None) == ("confidence", False)
    assert learner.model.training, "its mode is put back"


def test_what_cannot_be_calibrated() -> None:
    waves = hs.data.load("sinusoid")
    learner = hs.anil(hs.models.mlp(1, 1), loss="squared_error", lr=0.1)
    with pytest.raises(ConfigError, match="real targets"):
        hs.calibrate(learner, waves.validation)
    with pytest.raises(ConfigError, match="false_accepts=2"):
        hs.calibrate(learner, waves.validation, false_accepts=2)


def test_a_table_of_answers_has_a_temperature_and_no_threshold() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3)).astype(np.float32)
    table = hs.data.TableTasks(x, (x[:, 0] > 0).astype(np.int64), [30] * 4, list("abcd"), ["validation"] * 4, "classification", [0, 1])
    found = hs.calibrate(hs.anil(hs.models.mlp(3, 2), lr=0.1), table.validation, ways=2, shots=6, queries=4, episodes=8)
    assert found.threshold is None
    assert found.temperature > 0
