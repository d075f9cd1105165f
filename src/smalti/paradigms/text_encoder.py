"""What a network is told of texts: their pieces, for cross-attention, and one vector of each whole.

The encoder is a small transformer trained together with the network that listens to it, or a model from the user's disk
that stays as it is (`smalti.paradigms.pretrained_text`, `smalti.paradigms.interleaved_text`). The vector is the mean of
the pieces, projected; it joins the time in conditioning every layer (Esser et al. 2024, arXiv 2403.03206, section 4).
No text is an empty context and a vector that is learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from smalti.config import Config, checked
from smalti.data.batch import Batch
from smalti.data.order import uniform
from smalti.layers.norm import RMSNorm
from smalti.layers.sweep import Sweep, Told
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.interleaved_text import InterleavedText
from smalti.paradigms.pretrained_text import PretrainedText, is_hugging_face
from smalti.tokenizers.text import TextTokenizer

CARRIED = "text_encoder"  # in the model folder of what listens to it
CAPTION_STREAM = 150  # of random numbers: whose caption is hidden


class TextEncoderConfig(Config):
    """How texts are read. Its width is that of the network it tells.

    `folder` is a Hugging Face folder with a text encoder (T5, BERT, CLIP, …) on this machine's disk, or a model of text
    and pictures by smalti (`--paradigm.kind interleaved`): a run, its model, or the name of one that comes along. It is
    used as it is, and `layers`, `heads` and `pieces` then mean nothing.
    """

    layers: int = Field(2, ge=1, le=1000)
    heads: int = Field(4, ge=1)
    pieces: int = Field(1024, ge=256, le=1_000_000, description="most pieces of text in the vocabulary")
    longest: int = Field(64, ge=1, le=4096, description="pieces of a text that are read; what is longer is cut")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="share of examples that train without their caption")
    folder: str | None = Field(
        None, description="a text encoder to use instead of training one: Hugging Face's, or ours"
    )


@dataclass
class Context:
    """What a network is told of B texts.

    pieces: (B, S, width), of which those under `mask`, bool (B, S), count. pooled: (B, width), of each text as a whole.
    open: (width,), the same of no text. It lives as long as a sample takes, and what is made of it once stays with it.
    """

    pieces: Tensor
    mask: Tensor
    pooled: Tensor
    open: Tensor
    _swept: Told | None = None

    @cached_property
    def beside_open(self) -> Context:
        """The same texts, and behind them as many rows of none, as guidance asks for."""
        return Context(
            torch.cat([self.pieces, self.pieces]),
            torch.cat([self.mask, torch.zeros_like(self.mask)]),
            torch.cat([self.pooled, self.open.expand_as(self.pooled)]),
            self.open,
        )

    def told(self, sweep: Sweep) -> Told:
        """What it is to a sweep, which is always the same one."""
        if self._swept is None:
            self._swept = sweep.told(self.pieces, self.mask)
        return self._swept


class TextEncoder(nn.Module):
    """Texts -> `Context` for a network of this size; `pieces` is the size of the vocabulary, for one that is trained.

    Raises UserError on heads that do not divide the width, and as `PretrainedText` and `InterleavedText` do.
    """

    def __init__(self, config: TextEncoderConfig, network: TransformerConfig, pieces: int) -> None:
        super().__init__()
        width = network.width
        self.reader: TrainedReader | PretrainedReader
        if config.folder is not None:
            self.reader = PretrainedReader(config, width)
        else:
            self.reader = TrainedReader(config, network, pieces)
        self.pool = nn.Linear(width, width)
        self.open = nn.Parameter(torch.randn(width) * 0.02)

    def relies_on(self) -> dict[str, str]:
        """The SHA-256 of an encoder that is not trained here: of its config.json by its folder, or of our weights."""
        if isinstance(self.reader, TrainedReader):
            return {}
        pretrained = self.reader.pretrained
        name = "the text encoder" if isinstance(pretrained, InterleavedText) else pretrained.folder
        return {name: pretrained.sha256}

    def carries(self) -> dict[str, Path]:
        """The model folder of an encoder of ours. One of Hugging Face stays where it is."""
        if isinstance(self.reader, TrainedReader) or isinstance(self.reader.pretrained, PretrainedText):
            return {}
        return {CARRIED: self.reader.pretrained.found}

    def forward(self, texts: Sequence[str], cut: TextTokenizer | None) -> Context:
        """`cut` cuts the texts of an encoder that is trained. A text is read once, however often it is there."""
        each = dict.fromkeys(texts)
        place = {text: i for i, text in enumerate(each)}
        pieces, mask = self.reader(list(each), cut)
        index = torch.tensor([place[text] for text in texts], dtype=torch.int64, device=mask.device)
        counted = mask.sum(1, keepdim=True)
        mean = (pieces * mask.unsqueeze(-1)).sum(1) / counted.clamp_min(1)
        pooled = torch.where(counted > 0, self.pool(mean).float(), self.open)
        return Context(pieces[index], mask[index], pooled[index], self.open)


class TrainedReader(nn.Module):
    """The pieces of texts, each seeing all others of its text: -> (B, S, width), and which are there, bool (B, S)."""

    def __init__(self, config: TextEncoderConfig, network: TransformerConfig, pieces: int) -> None:
        super().__init__()
        sizes = {"layers": config.layers, "width": network.width, "heads": config.heads, "dropout": network.dropout}
        self.longest = config.longest
        self.token = nn.Embedding(pieces, network.width)
        self.network = Transformer(checked(TransformerConfig, sizes, "the text encoder"))
        nn.init.normal_(self.token.weight, std=0.02)

    def forward(self, texts: Sequence[str], cut: TextTokenizer | None) -> tuple[Tensor, Tensor]:
        assert cut is not None, "a model of text needs its tokenizer"
        ids, mask = padded([cut.encode(text, self.longest).ids for text in texts], self.token.weight.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[:, None]
        return self.network(self.token(ids), positions, mask[:, None, None]), mask


class PretrainedReader(nn.Module):
    """The same by an encoder from disk, which is no part of the weights here; what it says is projected."""

    def __init__(self, config: TextEncoderConfig, width: int) -> None:
        super().__init__()
        assert config.folder is not None
        theirs = is_hugging_face(config.folder)
        self.pretrained = PretrainedText(config.folder) if theirs else InterleavedText(config.folder)
        self.longest = config.longest
        self.norm = RMSNorm(self.pretrained.width)  # encoders differ in how loud they are, by a factor of a hundred
        self.project = nn.Linear(self.pretrained.width, width)

    def forward(self, texts: Sequence[str], cut: TextTokenizer | None) -> tuple[Tensor, Tensor]:
        device = self.project.weight.device
        # a caption that is empty is none, whatever an encoder puts around it
        ids, mask = padded([self.pretrained.cut(text, self.longest) if text else () for text in texts], device)
        return self.project(self.norm(self.pretrained.states(ids, mask))), mask


def padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged piece ids as int64 (B, S), S at least 1, and where they are: bool (B, S)."""
    rows = [torch.tensor(each, dtype=torch.int64) for each in ids]
    lengths = torch.tensor([len(each) for each in rows], dtype=torch.int64)
    # at least one place, so that all weights have a gradient also where no example of a process has a caption
    together = pad_sequence([*rows, torch.zeros(1, dtype=torch.int64)], batch_first=True)[:-1]
    return together.to(device), (torch.arange(together.shape[1]) < lengths[:, None]).to(device)


def shown_texts(batch: Batch, dropout: float) -> list[str]:
    """The text of each example, "" for none, a share `dropout` of them hidden, as each row's own number has it."""
    texts = batch.texts or [""] * len(batch.rows)
    hidden = uniform(batch.seed, batch.step, batch.rows, CAPTION_STREAM) < dropout
    return ["" if hide else text for text, hide in zip(texts, hidden.tolist(), strict=True)]
