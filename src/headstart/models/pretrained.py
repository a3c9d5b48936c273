"""Networks that others trained, of the library ``transformers``: a body for pictures under a new linear head, and an encoder of texts."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.errors import ConfigError

USUAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": 224}  # of ImageNet, where a model does not say
ATTENTION = ("q_proj", "v_proj", "query", "value")
BATCH = 64


class Pretrained(nn.Module):
    """Pictures, on whatever scale, through a pretrained body and a linear head.

    Args:
        body: takes ``pixel_values``, as the networks of ``transformers`` do.
        outputs: of the head.
        taken: ``size``, ``mean`` and ``std`` of the pictures that the body was trained on; grey ones are taken as colour.
        mean, std: of each channel, that the examples are standardised with.
    """

    def __init__(self, body: nn.Module, outputs: int, taken: dict[str, Any], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body, self.size = body, int(taken["size"])
        rows = {"mean": mean, "std": std, "own_mean": taken["mean"], "own_std": taken["std"]}
        for name, values in rows.items():
            self.register_buffer(f"_{name}", torch.tensor([float(v) for v in values]).view(1, -1, 1, 1), persistent=False)
        self._first_token = any(name.endswith("cls_token") for name, _ in body.named_parameters())
        with torch.no_grad():
            width = self.features(torch.zeros(2, 3, self.size, self.size)).shape[1]
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        """(n, D) what the body makes of (n, channels, height, width) examples: its first token, or the mean over tokens or places."""
        pixels = x * self.get_buffer("_std") + self.get_buffer("_mean")
        if pixels.shape[1] == 1:
            pixels = pixels.expand(-1, 3, -1, -1)
        if pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        found = self.body(pixel_values=(pixels - self.get_buffer("_own_mean")) / self.get_buffer("_own_std")).last_hidden_state
        if found.dim() == 4:
            return found.mean((2, 3))
        return found[:, 0] if self._first_token else found.mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, outputs)."""
        return self.head(self.features(x))


def pretrained(
    name: str, shape: tuple[int, ...], outputs: int, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), lora: int = 0
) -> nn.Module:
    """A network for pictures that ``transformers`` can load, with a new linear head.

    Args:
        name: a folder that ``save_pretrained`` wrote, or a name of the hub.
        shape: of an example: (channels, height, width).
        outputs: of the head.
        mean, std: of each channel, that the examples are standardised with.
        lora: above 0: the body is frozen, and has LoRA factors of this rank on its attention, ``*lora_*``.

    Raises:
        ConfigError: the examples are no pictures, or the network cannot be loaded or does not take pictures.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ConfigError(f"model=transformers:{name} takes pictures of 1 or 3 channels, but these examples are {shape}")
    body = _network(name)
    if isinstance(getattr(body, "pooler", None), nn.Module) and any(True for _ in body.pooler.parameters()):  # type: ignore[union-attr]
        body.pooler = None  # its weights are those of another task, or random
    body = _with_lora(body, lora) if lora else body
    try:
        return Pretrained(body, outputs, taken_by(name), mean, std)
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model=transformers:{name} does not take pictures alone ({error}); write a function that returns your module, and give it as"
            " --model module:name"
        ) from error


def taken_by(name: str) -> dict[str, Any]:
    """``size``, ``mean`` and ``std`` of the pictures that a pretrained network takes, as its folder says, or those of ImageNet."""
    try:
        hub = importlib.import_module("transformers.utils")
        file = hub.cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        said = json.loads(Path(file).read_text()) if file else {}
    except (ImportError, OSError, ValueError):
        said = {}
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    own = getattr(_config(name), "image_size", None)
    found = own if isinstance(own, int) else size if isinstance(size, int) else USUAL["size"]
    return {"size": found, "mean": said.get("image_mean", USUAL["mean"]), "std": said.get("image_std", USUAL["std"])}


def text_encoder(name: str) -> Callable[[list[str]], Tensor]:
    """A function from texts to vectors: the mean of the last hidden states of a language model over the tokens of a text.

    Args:
        name: a folder that ``save_pretrained`` wrote, of the model and its tokenizer, or a name of the hub.

    Raises:
        ConfigError: it cannot be loaded.
    """
    model, tokenizer = _network(name).eval(), _loaded(name, "AutoTokenizer")

    def encode(texts: list[str]) -> Tensor:
        found = []
        for start in range(0, len(texts), BATCH):
            tokens = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**tokens).last_hidden_state
            there = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            found.append((hidden * there).sum(1) / there.sum(1).clamp_min(1))
        return torch.cat(found)

    return encode


def _network(name: str) -> Any:
    """The network itself, whose every weight was in the files; a pooler's may be missing, as it plays no part."""
    found, info = _loaded(name, "AutoModel", output_loading_info=True)
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"transformers:{name} lacks {len(missing)} of its weights, such as {missing[0]}, which would be random; give a folder that"
            " holds them all"
        )
    return found


def _loaded(name: str, kind: str, **options: Any) -> Any:
    try:
        library = importlib.import_module("transformers")
        logging, factory = library.utils.logging, getattr(library, kind)
        before = logging.get_verbosity()
        logging.set_verbosity_error()  # its report of a head that is left out, at each start; what would matter is checked here
        try:
            return factory.from_pretrained(name, **options)
        finally:
            logging.set_verbosity(before)
    except ImportError as error:
        raise ConfigError(f"transformers:{name} needs pip install 'headstart[models]' ({error})") from error
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"transformers:{name} cannot be loaded ({reason}); give a folder that save_pretrained wrote, or a name of the hub where there"
            " is a network"
        ) from error


def _config(name: str) -> Any:
    return _loaded(name, "AutoConfig")


def _with_lora(body: nn.Module, rank: int) -> nn.Module:
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(f"lora={rank} needs pip install 'headstart[models]' ({error})") from error
    names = {name.rpartition(".")[2] for name, _ in body.named_modules()}
    target = [name for name in ATTENTION if name in names]
    if not target:
        raise ConfigError(f"lora={rank}: the network has none of {', '.join(ATTENTION)}, so no attention to put factors on; leave lora out")
    return peft.get_peft_model(body, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=target))  # type: ignore[no-any-return]
