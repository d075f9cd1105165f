"""Contrastive learning: pictures and texts in one space, where a picture and its own caption lie near each other.

`softmax`: of all the captions of a batch a picture finds its own, and a caption its picture (CLIP, Radford et al. 2021,
arXiv 2103.00020, figure 3). `sigmoid`: of every picture and caption it is told whether they are a pair (SigLIP, Zhai
et al. 2023, arXiv 2303.15343, section 3.2).

A caption that stands twice in a batch, or a picture, fits both examples, so neither is a negative of the other.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from smalti.config import Examples, Reads, SignalSpec
from smalti.data.batch import Batch
from smalti.device import full_precision
from smalti.errors import UserError
from smalti.layers.convnet import Encoder, total_stride
from smalti.layers.transformer import Transformer, TransformerConfig
from smalti.paradigms.base import Loss, Makes, Paradigm, ParadigmConfig
from smalti.term import Term

STARTS = {"softmax": (1 / 0.07, 0.0), "sigmoid": (10.0, -10.0)}  # the scale of cosines, and what is added to them
LARGEST = 100.0  # scale of the softmax; a larger one makes training unstable (CLIP, section 2.5)


class ContrastiveConfig(ParadigmConfig):
    """Both encoders end in vectors of `width`. Pictures: residual convolutions (`strides` from the signal inwards,
    `picture_width` channels at the grid), then the mean over the grid. Texts: the recipe's model over all pieces of a
    text, then their mean.
    """

    kind: Literal["contrastive"] = "contrastive"
    trains: ClassVar[str] = "transformer"
    makes: ClassVar[Makes] = "aligner"
    reads: ClassVar[Reads] = "signals"
    whole_batch: ClassVar[bool] = True
    loss: Literal["softmax", "sigmoid"] = "softmax"
    width: int = Field(256, ge=1, description="of the space that pictures and texts share")
    pieces: int = Field(1024, ge=256, le=1_000_000, description="most pieces of text that are told apart")
    longest: int = Field(64, ge=1, le=4096, description="pieces of a text that are read; what is longer is cut")
    picture_width: int = Field(256, ge=1, description="channels at the grid of a picture")
    strides: tuple[PositiveInt, ...] = Field((4, 2, 2), min_length=1)
    blocks: int = Field(2, ge=0, le=1000, description="residual blocks a level")

    @property
    def words(self) -> bool:
        return True

    def build(self, model: TransformerConfig, examples: Examples, steps: int) -> Contrastive:
        """Raises UserError where there is no text, and where the strides do not divide the signal."""
        if examples.text is None:
            raise UserError("aligning pictures and texts needs captions, and this data has none")
        stride, shape = total_stride(self.strides), examples.signal.shape
        if any(side % stride for side in shape):
            raise UserError(
                f"pictures of {'×'.join(map(str, shape))} do not divide by {stride}: choose other --paradigm.strides,"
                f" or --data.shape in multiples of {stride}"
            )
        return Contrastive(self, model, examples.signal, examples.text.pieces)


class Contrastive(Paradigm):
    """An encoder of pictures and one of texts, whose unit vectors are compared; `text` cuts texts into pieces."""

    def __init__(self, config: ContrastiveConfig, network: TransformerConfig, signal: SignalSpec, pieces: int) -> None:
        super().__init__()
        self.config = config
        shape = (config.picture_width, config.strides, config.blocks)
        self.encoder = Encoder(len(signal.shape), signal.channels, config.width, *shape)
        self.piece = nn.Embedding(pieces + 1, network.width)  # the last row ends a text: one of no pieces is read too
        self.network = Transformer(network)
        self.head = nn.Linear(network.width, config.width, bias=False)
        nn.init.normal_(self.piece.weight, std=0.02)
        scale, bias = STARTS[config.loss]
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(bias)) if config.loss == "sigmoid" else None

    def players(self) -> dict[str, nn.Module]:
        return {"network": self}

    def pictures(self, x: Tensor) -> Tensor:
        """Signals (B, C, *space) in [-1, 1] -> unit vectors (B, width), fp32."""
        return F.normalize(self.encoder(x).flatten(2).float().mean(2), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """B texts, 1 at least -> unit vectors (B, width), fp32, each by itself: the others change nothing.

        Raises UserError on text that is no proper Unicode.
        """
        assert self.text is not None, "a model of text needs its tokenizer"
        device, end = self.piece.weight.device, self.piece.num_embeddings - 1
        cut = [torch.tensor([*self.text.encode(text, self.config.longest).ids, end]) for text in texts]
        ids = pad_sequence(cut, batch_first=True, padding_value=end).to(device)  # (B, T)
        places = torch.arange(ids.shape[1], device=device)
        own = places < torch.tensor([len(each) for each in cut], device=device)[:, None]  # (B, T); the rest is padding
        hidden = self.network(self.piece(ids), places[:, None], own[:, None, None])
        with full_precision(device):
            mean = (hidden.float() * own.unsqueeze(-1)).sum(1) / own.sum(1, keepdim=True)
            return F.normalize(self.head(mean), dim=1)

    def logits(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """How well unit vectors (B, width) and (N, width) fit, as the loss takes it: (B, N), fp32."""
        with full_precision(pictures.device):
            fit = self.log_scale.exp() * pictures @ texts.T
            return fit if self.bias is None else fit + self.bias

    def loss(self, player: str, batch: Batch, step: int) -> Loss:
        """Of the examples that have a caption, compared with all others of the batch; no terms where none has."""
        told = [i for i, text in enumerate(batch.texts or ()) if text.strip()]
        if batch.texts is None or not told:
            return Loss([])
        texts, x = [batch.texts[i] for i in told], batch.x[told]
        logits = self.logits(self.pictures(x), self.texts(texts))
        twice = duplicates(texts, x, batch.indices[told]).to(logits.device)
        losses = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}[self.config.loss](logits, twice)
        among = logits.detach().masked_fill(twice, -torch.inf)
        own, terms = torch.arange(len(told), device=logits.device), [Term("loss", losses.sum(), len(told))]
        for name, ranked in (("text", among), ("picture", among.T)):
            terms.append(Term(f"accuracy_{name}", (ranked.argmax(1) == own).float().sum(), len(told), 0.0))
        return Loss(terms)

    def score(self, means: Mapping[str, float], loss: float) -> None:
        """The newest is kept: the loss hangs on the scale too, and may rise while the ranking still gets better."""

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        if self.config.loss == "softmax":
            self.log_scale.clamp_(max=math.log(LARGEST))
        return {"scale": float(self.log_scale.exp())}


def softmax_loss(logits: Tensor, twice: Tensor) -> Tensor:
    """The loss of each pair (B,), in nats: the mean of -log p(text | picture) and -log p(picture | text).

    logits (B, B): pictures by texts. Each p is a softmax over the pair itself and those others that are not its
    duplicate by `twice`, bool (B, B): CLIP, figure 3, with fewer negatives.
    """
    among = logits.masked_fill(twice, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    by_picture, by_text = (F.cross_entropy(each, own, reduction="none") for each in (among, among.T))
    return (by_picture + by_text) / 2


def sigmoid_loss(logits: Tensor, twice: Tensor) -> Tensor:
    """The loss of each picture (B,), in nats: the sum over texts of -log sigmoid(z logit).

    logits (B, B): pictures by texts; z is 1 for its own text, -1 for others. What is a duplicate by `twice`, bool
    (B, B), is left out: SigLIP, equation 1, with fewer negatives.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return -F.logsigmoid(torch.where(own, logits, -logits)).masked_fill(twice, 0.0).sum(1)


def duplicates(texts: Sequence[str], x: Tensor, indices: Tensor) -> Tensor:
    """bool (B, B): which others have the caption of this example, or its picture, so that both captions fit both.

    Captions are compared without regard to case; pictures by their values (B, C, *space), and by their places (B,) in
    the source, for one may come twice and be moved differently.
    """
    looks = (each.tobytes() for each in x.detach().cpu().numpy())
    same = _equal(text.casefold() for text in texts) | _equal(looks) | _equal(indices.tolist())
    return same & ~torch.eye(len(same), dtype=torch.bool)


def _equal(keys: Iterable[Hashable]) -> Tensor:
    """bool (B, B): which of B keys are equal."""
    numbers: dict[Hashable, int] = {}
    ids = torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])
    return ids[:, None] == ids
