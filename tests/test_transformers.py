"""Models of `transformers`, adapters of `peft`: every part of them adapts, exactly."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import nn

import headstart as hs
from truth import Truth, distance

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs pip install 'headstart[models]'")
peft = pytest.importorskip("peft", reason="needs pip install 'headstart[models]'")

T, S, Q = 2, 3, 2
SIZES: dict[str, Any] = {"hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 4, "num_labels": 3}


def vit() -> nn.Module:
    config = transformers.ViTConfig(**SIZES, image_size=8, patch_size=4, num_channels=1)
    return transformers.ViTForImageClassification(config)  # type: ignore[no-any-return]


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=9, max_position_embeddings=6))  # type: ignore[no-any-return]


def images(n: int) -> torch.Tensor:
    return torch.randn(T, n, 1, 8, 8)


def sentences(n: int) -> dict[str, torch.Tensor]:
    length = torch.randint(2, 6, (T, n, 1))
    return {"input_ids": torch.randint(9, (T, n, 5)), "attention_mask": (torch.arange(5) < length).long()}


def with_lora(model: nn.Module) -> nn.Module:
    names = {n.rsplit(".", 1)[-1] for n, _ in model.named_modules()}
    target = ["q_proj", "v_proj"] if "q_proj" in names else ["query", "value"]
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=target, r=2, modules_to_save=["classifier"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    return model


def setting(name: str, adapt: str) -> tuple[nn.Module, hs.TaskBatch]:
    torch.manual_seed(0)
    make, x = {"vit": (vit, images), "bert": (bert, sentences)}[name]
    model = make()
    model = (with_lora(model) if "lora" in adapt else model).double().eval()
    y = lambda n: torch.randint(3, (T, n))  # noqa: E731
    return model, hs.TaskBatch(x(S), y(S), x(Q), y(Q))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "last:2", "*bias", "*lora_*"])
@pytest.mark.parametrize("name", ["vit", "bert"])
def test_every_part_adapts_exactly(name: str, adapt: str) -> None:
    model, tasks = setting(name, adapt)
    partition = hs.Partition(model, adapt)
    expected = Truth(model, partition.adapted, tasks, "cross_entropy", 0.1).proposition_1(2, 0.3)
    modes: list[dict[str, Any]] = [
        {"hypergradient": None},
        {"hypergradient": hs.Unrolled(), "vectorise": False},
        {"hypergradient": hs.Recursive("double-backward"), "vectorise": False},
        {"hypergradient": hs.Recursive("forward-over-reverse"), "vectorise": False},
    ]
    if name == "vit":
        modes.append({"hypergradient": hs.Recursive(), "vectorise": True, "chunk_tasks": 2})
    for mode in modes:
        learner = hs.MetaLearner(partition, hs.GradientDescent(2, 0.3, 0.1), **mode)
        grads, _ = learner.meta_gradient(tasks)
        assert distance(grads, expected) < 1e-10, mode
    explanation = learner.explain(tasks)
    assert explanation.head == (adapt == "head")
    if adapt == "*lora_*":
        assert all("lora_" in n for n in partition.adapted)
        assert all("classifier" in n for n in partition.shared), "the base is frozen"
        assert explanation.frozen > 0
        assert any("embeddings" in n for n in explanation.replayed)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("adapt", ["head", "*lora_*"])
def test_adapted_models_are_ordinary_models(adapt: str) -> None:
    model, tasks = setting("bert", adapt)
    learner = hs.anil(model, 3, 0.3, adapt=adapt)
    x, y = ({k: v[0] for k, v in tasks.support_x.items()}, tasks.support_y[0])
    adapted = learner.adapt(x, y)
    torch.testing.assert_close(adapted.to_module()(**x).logits, adapted.logits(x))


@pytest.mark.slow
def test_a_vit_with_lora_meta_trains_on_real_images() -> None:
    """Handwritten characters: the query loss after adapting the LoRA factors falls."""
    from real import real

    torch.manual_seed(0)
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    config = transformers.ViTConfig(
        image_size=28,
        patch_size=7,
        num_channels=1,
        num_labels=5,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    lora = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = peft.get_peft_model(transformers.ViTForImageClassification(config), lora).train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    learner = hs.MetaLearner(hs.Partition(model, "*lora_*"), hs.GradientDescent(3, 0.5))
    episodes = hs.data.Episodes(real("omniglot").train, ways=5, shots=5, queries=5, tasks=4)
    optimizer = torch.optim.AdamW(list(learner.parameters().values()), lr=1e-3)
    losses = []
    for step in range(80):
        grads, stats = learner.meta_gradient(episodes.batch(step))
        for name, parameter in learner.parameters().items():
            parameter.grad = grads[name]
        optimizer.step()
        losses.append(stats.loss)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
