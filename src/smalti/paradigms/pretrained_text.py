"""A text encoder from the user's disk, as it is: the frozen half of a model that reads texts.

Text encoders trained on far more text than there are captions are what large models listen to (Saharia et al. 2022,
Imagen, arXiv 2205.11487, section 2.1). It is loaded by Hugging Face `transformers`, which only this file imports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smalti.checkpoint import sha256
from smalti.errors import UserError

MOST = 1 << 20  # pieces; tokenizers without a limit of their own say a number far above any


def is_hugging_face(folder: str) -> bool:
    """Whether a folder holds a model, and it is none of ours."""
    try:
        return "weights_sha256" not in json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


class PretrainedText:
    """Pieces of text -> the last hidden states of the encoder in a folder.

    It is no `nn.Module`: its weights are neither trained, averaged nor saved, and copies of a model share it. Raises
    UserError where `transformers` is not installed, and where the folder holds no text encoder and its tokenizer.
    """

    def __init__(self, folder: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise UserError(
                "a text encoder from a folder needs the library transformers: pip install 'smalti[text]', or leave"
                " paradigm.text.folder out to train one"
            ) from error
        wanted = "paradigm.text.folder must be that of a Hugging Face text encoder (T5, BERT, CLIP) with its tokenizer"
        self.folder, config = folder, Path(folder) / "config.json"
        if not config.is_file():
            raise UserError(f"{config} is missing: {wanted}")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            whole: Any = AutoModel.from_pretrained(folder, local_files_only=True)
            # of models that also write, or see, the part that reads
            part = whole.get_encoder() if whole.config.is_encoder_decoder else getattr(whole, "text_model", whole)
            self.width = int(part.config.hidden_size)
            if not isinstance(part.get_input_embeddings(), nn.Embedding):
                raise ValueError("it reads no pieces of text")
        except Exception as error:  # the library raises whatever its parts raise
            told = " ".join(str(error).split())[:160]
            raise UserError(f"{folder} holds no text encoder that can be loaded ({told}): {wanted}") from error
        self._network: Any = part.float().eval().requires_grad_(False)
        self.sha256 = sha256(config)

    def __deepcopy__(self, memo: dict[int, Any]) -> PretrainedText:
        return self  # nothing changes it

    def cut(self, text: str, longest: int) -> list[int]:
        """The piece ids of a text, those that the encoder puts around it among them; at most `longest`."""
        most = min(longest, self._tokenizer.model_max_length, MOST)
        return self._tokenizer(text, truncation=True, max_length=most)["input_ids"]

    @torch.no_grad()
    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids int64 (B, S), those under mask (bool, same shape) -> fp32 (B, S, width), 0 elsewhere."""
        network = self._network.to(ids.device)
        states = network(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        # of a row without pieces an encoder may say anything
        return states.float().masked_fill(~mask.unsqueeze(-1), 0.0)
