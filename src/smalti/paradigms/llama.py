"""A model of text from the user's disk whose vocabulary is to be grown by codes: a Llama-shaped folder.

Such folders are what Hugging Face `transformers` writes: config.json, tokenizer.json and safetensors. Llama (Touvron et
al. 2023, arXiv 2302.13971) is our Transformer with other settings, so its weights are taken as they are; keys and
values that several heads share are written out for each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from smalti.config import checked
from smalti.errors import UserError
from smalti.layers.transformer import TransformerConfig
from smalti.tokenizers.text import TextTokenizer

_INDEX = "model.safetensors.index.json"  # where the weights lie in several files


@dataclass(frozen=True)
class Llama:
    """`tied`: whether pieces are said by the weights that they are read by. `begin` and `end` are the pieces that stand
    around a text, where the folder names them."""

    folder: Path
    config: TransformerConfig
    text: TextTokenizer
    tied: bool
    begin: int | None
    end: int | None

    def weights(self) -> dict[str, Tensor]:
        """fp32: those of a Transformer of this config by their names, and `token` and `head`, (pieces, width).

        Raises UserError where a file is missing or damaged, or a weight has another shape than the config says.
        """
        found = _read_weights(self.folder)
        width, head = self.config.width, self.config.width // self.config.heads
        weights = {"norm.weight": found["model.norm.weight"]}
        weights["token"] = found["model.embed_tokens.weight"]
        weights["head"] = weights["token"] if self.tied else found["lm_head.weight"]
        if min(len(weights["token"]), len(weights["head"])) < self.text.size:
            raise UserError(f"{self.folder} knows {len(weights['token'])} pieces, and its tokenizer {self.text.size}")
        for name in ("token", "head"):  # rows behind the last piece only fill up
            weights[name] = weights[name][: self.text.size]
        for i in range(self.config.layers):
            theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
            q, k, v = (found[f"{theirs}self_attn.{each}_proj.weight"] for each in "qkv")
            k, v = (_for_each_head(each, head, width) for each in (k, v))
            weights[f"{ours}qkv.weight"] = torch.cat([q, k, v])
            weights[f"{ours}out.weight"] = found[f"{theirs}self_attn.o_proj.weight"]
            gate_up = [found[f"{theirs}mlp.{each}_proj.weight"] for each in ("gate", "up")]
            weights[f"{ours}gate_up.weight"] = torch.cat(gate_up)
            weights[f"{ours}down.weight"] = found[f"{theirs}mlp.down_proj.weight"]
            weights[f"{ours}attention_norm.weight"] = found[f"{theirs}input_layernorm.weight"]
            weights[f"{ours}mlp_norm.weight"] = found[f"{theirs}post_attention_layernorm.weight"]
        return weights


def holds_text_model(folder: Path) -> bool:
    """Whether a folder's config.json is one of `transformers`, of any kind of model."""
    try:
        return "model_type" in _read_config(folder)
    except UserError:
        return False


def read_llama(folder: Path, dropout: float = 0.0) -> Llama:
    """What is in a Llama-shaped folder. Raises UserError where it is of another shape, and on an unfit tokenizer."""
    found = _read_config(folder)
    wrong = _unlike_llama(found)
    if wrong:
        raise UserError(f"{folder} has {wrong}, which a Llama has not: only such models can be grown")
    try:
        text = TextTokenizer.load(folder)
    except UserError as error:
        raise UserError(f"its text tokenizer must be byte-level and give back any text: {error}") from error
    settings = {
        "layers": found.get("num_hidden_layers"),
        "width": found.get("hidden_size"),
        "heads": found.get("num_attention_heads"),
        "hidden": found.get("intermediate_size"),
        "dropout": dropout,
        "query_key_norm": False,
        "rope": "interleaved",
        "rope_base": _rope(found).get("rope_theta", found.get("rope_theta", 10_000.0)),
        "eps": found.get("rms_norm_eps", 1e-6),
    }
    config = checked(TransformerConfig, settings, str(folder / "config.json"))
    begin, end = (_first(found.get(f"{each}_token_id"), text.size) for each in ("bos", "eos"))
    return Llama(folder, config, text, bool(found.get("tie_word_embeddings")), begin, end)


def _unlike_llama(found: Mapping[str, Any]) -> str | None:
    """What a config has that a Llama has not."""
    if found.get("model_type") != "llama":
        return f"model_type {found.get('model_type')}"
    if any(found.get(bias) for bias in ("attention_bias", "mlp_bias")):
        return "biases"
    if found.get("hidden_act", "silu") != "silu":
        return f"hidden_act {found['hidden_act']}"
    width, heads, head = (found.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    if head and isinstance(heads, int) and head * heads != width:  # what is no number is told with its field
        return f"{heads} heads of width {head}, whose sum is not the width {width}"
    kind = _rope(found).get("rope_type", _rope(found).get("type", "default"))
    return None if kind == "default" else f"rotary positions of type {kind}"


def _rope(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found.get("rope_parameters") or found.get("rope_scaling") or {}


def _first(ids: object, pieces: int) -> int | None:
    """A piece's id, or the first of several; None where there is none."""
    one = ids[0] if isinstance(ids, list) and ids else ids
    return one if isinstance(one, int) and 0 <= one < pieces else None


def _for_each_head(weight: Tensor, head: int, width: int) -> Tensor:
    """Keys or values (shared * head, in) that neighbouring heads share, written out: (width, in)."""
    each = weight.unflatten(0, (-1, head))
    return each.repeat_interleave(width // head // len(each), 0).flatten(0, 1)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is no config: it holds {type(found).__name__}")
    return found


class _Found(dict[str, Tensor]):
    """Weights by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, name: str) -> Tensor:
        raise UserError(f"{self.folder} is not whole: it has no weight {name}")


def _read_weights(folder: Path) -> _Found:
    index, weights = folder / _INDEX, _Found(folder)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else []
        for name in names or ["model.safetensors"]:
            with safe_open(folder / name, "pt") as file:
                weights.update({each: file.get_tensor(each).float() for each in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"the weights of {folder} cannot be read: {error}") from error
    return weights
