"""Networks that others trained, from folders: pictures and texts through them, frozen or not, on the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import headstart as hs
from headstart.cli import main
from headstart.data.sources.embedding import embedder, words
from headstart.errors import ConfigError
from headstart.models.pretrained import pretrained, taken_by, text_encoder
from headstart.training import run as runs
from headstart.training.config import RunConfig
from headstart.using import TrainedStart

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="needs pip install 'headstart[models]'")
PIL = pytest.importorskip("PIL.Image")
SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
QUICK = ["--iterations", "3", "--test-episodes", "10", "--validation-episodes", "4", "--out", "run"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def vit() -> str:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    Path("vit/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": 16, "width": 16}})
    )
    return "vit"


@pytest.fixture
def bert() -> str:
    torch.manual_seed(0)
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    Path("bert").mkdir()
    Path("vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer("vocab.txt").save_pretrained("bert")
    transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=len(vocabulary), max_position_embeddings=64)).save_pretrained("bert")
    return "bert"


def pictures(classes: int = 12, each: int = 4, size: int = 20) -> str:
    rng = np.random.default_rng(0)
    for c in range(classes):
        Path(f"own/{c}").mkdir(parents=True)
        for i in range(each):
            noise = rng.integers(0, 60, (size, size + 6, 3)) + rng.integers(0, 190, 3) * 0 + np.array([15 * c, 120, 180 - 15 * c])
            PIL.fromarray(noise.clip(0, 255).astype(np.uint8)).save(f"own/{c}/{i}.png")
    return "own"


def sentences(path: str = "intents.csv", header: str = "text,label") -> str:
    topics = ["alarm", "bank", "cinema", "doctor", "energy", "flight", "garden", "hotel", "insurance", "jacket"]
    rows = [
        f'"please, {word} my {topic} {topic} number {i}",{topic}'
        for topic in topics
        for i, word in enumerate(["find", "show", "get", "open"])
    ]
    Path(path).write_text("\n".join([header, *rows]))
    return path


def test_pictures_reach_the_body_on_its_own_scale(vit: str) -> None:
    assert taken_by(vit) == {"size": 16, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    model = pretrained(vit, (3, 16, 16), 5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1)).eval()
    pixels = torch.rand(4, 3, 16, 16)
    given = (pixels - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    body = transformers.ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    own = (pixels - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    expected = body(pixel_values=own).last_hidden_state[:, 0]
    torch.testing.assert_close(model.features(given), expected, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
    assert model(given).shape == (4, 5)
    grey = pretrained(vit, (1, 28, 28), 5)
    assert grey(torch.zeros(2, 1, 28, 28)).shape == (2, 5), "grey and of another size"


def test_convolutional_networks_are_averaged_over_places() -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained("resnet")
    model = pretrained("resnet", (3, 32, 32), 5).eval()
    body = transformers.ResNetModel.from_pretrained("resnet").eval()
    x = torch.rand(2, 3, 224, 224)
    own = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(model.features(x), body(own).pooler_output.flatten(1), rtol=1e-4, atol=1e-5)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "says"), [("transformers:", "name the network"), ("transformers:nowhere/else", "cannot be loaded.*network")]
)
def test_what_cannot_be_loaded_says_what_to_do(name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", "glyphs", "--model", name, *QUICK]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_pretrained_network_learns_on_own_pictures(vit: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = pictures()
    with caplog.at_level("INFO"):
        assert main(["train", "--data", folder, "--model", f"transformers:{vit}", *QUICK]) == 0
    assert "16×16" in caplog.text, "pictures have the size that the network takes"
    lora = ["--model-options", "lora=2", "--adapt", "*lora_*", "--overwrite"]
    assert main(["train", "--data", folder, "--model", f"transformers:{vit}", *lora, *QUICK]) == 0
    config, learner, _ = runs.open_run("run")
    assert learner.partition.adapted
    assert all("lora_" in name for name in learner.partition.adapted)
    assert not any("base_layer" in name for name in learner.parameters()), "the body below the factors is frozen"
    assert config.learner.lr != "auto"


def test_a_frozen_body_runs_once_and_gives_what_it_gave(vit: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures()
    command = ["train", "--data", folder, "--model", f"transformers:{vit}", "--freeze", "body", *QUICK]
    assert main(command) == 0
    config, learner, source = runs.open_run("run")
    raw = runs.load(RunConfig.from_flat({**config.flat(), "freeze": ""}))
    torch.manual_seed(config.train.seed)
    model = pretrained(vit, raw.train.shape, 5, raw.train.mean, raw.train.std).eval()
    with torch.no_grad():
        train, test = (model.features(split.batch(torch.arange(len(split)))) for split in (raw.train, raw.test))  # type: ignore[operator]
    expected = (test - train.mean(0)) / train.std(0, unbiased=False)
    torch.testing.assert_close(source.test.batch(torch.arange(len(source.test))), expected, rtol=1e-3, atol=1e-3)
    assert all(p.shape[-1] in (8, p.shape[0]) for p in learner.parameters().values()), "a projection and a head on eight features"
    assert main(["train", "--data", "sinusoid", "--freeze", "body", "--overwrite", *QUICK]) == 2
    assert "no classes" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="computed once"):
        RunConfig.from_flat({"freeze": "body", "augment": "flip"})


def test_any_network_can_be_frozen() -> None:
    assert main(["train", "--data", "glyphs", "--filters", "4", "--freeze", "body", *QUICK]) == 0


@pytest.mark.parametrize("options", [["--algorithm", "r2d2"], ["--adapt", "0.*", "--solver", "lslr", "--steps", "2", "--lr", "0.01"]])
def test_a_run_of_a_frozen_body_is_used_on_pictures(vit: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = pictures()
    command = [
        "train",
        "--data",
        own,
        "--model",
        f"transformers:{vit}",
        "--freeze",
        "body",
        "--ways",
        "3",
        "--shots",
        "2",
        "--queries",
        "2",
    ]
    assert main([*command, *options, *QUICK]) == 0
    config, learner, kept = runs.open_run("run")
    start = TrainedStart.of_run("run")
    assert start.preprocessing.kind == "pictures"
    raw, test = runs.on_examples(config, learner, kept)[1].test, kept.test
    y, rows = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 4, 5])
    there = start.learner.adapt(start.preprocessing.ready(raw.stored(rows)), y)
    here = learner.adapt(test.batch(rows), y)
    every = torch.arange(len(test))
    torch.testing.assert_close(there.predict_proba(raw.batch(every)), here.predict_proba(test.batch(every)), rtol=1e-4, atol=1e-5)
    shutil.copytree("own", "mine", ignore=lambda folder, names: names[3:] if folder == "own" else [])
    shutil.rmtree(own)  # what was trained on is not needed any more
    assert main(["adapt", "run", "--support", "mine", "-o", "parts.safetensors"]) == 0
    capsys.readouterr()
    assert main(["predict", "parts.safetensors", "mine", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
    again = TrainedStart.of_run("run")
    torch.testing.assert_close(again.learner.adapt(start.preprocessing.ready(raw.stored(rows)), y).w, there.w)


def test_texts_on_the_command_line(bert: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", sentences(), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "nearest class mean" in out
    Path("mine.py").write_text("def letters(texts):\n    return [[float(t.count(c)) for c in 'abcdefgh'] for t in texts]\n")
    for embed in (f"transformers:{bert}", "mine:letters"):
        assert main(["train", "--data", "intents.csv", "--embed", embed, "--overwrite", *QUICK]) == 0
    other = sentences("other.csv", "Sentence,Intent")
    options = ["--data-options", "text=Sentence,label=Intent"]
    assert main(["train", "--data", f"texts:{other}", *options, "--overwrite", *QUICK]) == 0
    assert main(["train", "--data", f"texts:{other}", "--overwrite", *QUICK]) == 2
    assert "text=…,label=…" in capsys.readouterr().err


def test_a_network_whose_weights_are_missing_is_refused(vit: str, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file("vit/model.safetensors")
    pretrained(vit, (3, 16, 16), 5)
    assert "UNEXPECTED" not in caplog.text, "the head of another task is left out in silence"
    save_file({k: v for k, v in weights.items() if "layernorm_before" not in k}, "vit/model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 2 of its weights, such as .*layernorm_before\.bias, which would be random"):
        pretrained(vit, (3, 16, 16), 5)


def test_texts_are_means_over_their_tokens(bert: str) -> None:
    encode = text_encoder(bert)
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(bert), transformers.AutoModel.from_pretrained(bert).eval()
    texts = ["abc", "a much longer text", "x"]
    for text, vector in zip(texts, encode(texts), strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, alone, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        embedder("transformers:nowhere/else")
    with pytest.raises(ConfigError, match="embedding 'nothing' is not known"):
        embedder("nothing")


def test_words_have_length_one_and_do_not_depend_on_other_texts() -> None:
    texts = ["Wake me at six", "wake me, at SIX!", "", "straße"]
    found = words(texts)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(words(texts[3:])[0], found[3])


def test_a_projection_begins_as_the_identity() -> None:
    x = torch.randn(5, 7)
    model = hs.models.projection(7, 3)
    torch.testing.assert_close(model(x), model[1](x))
    with pytest.raises(ConfigError, match="at least 1"):
        hs.models.projection(0)
