"""Writing a sequence of text and pictures, one token after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.data.packing import whole
from smalti.device import decoding_dtype
from smalti.layers.stepper import Folded, Stepper
from smalti.tokenizers.grammar import Walk

if TYPE_CHECKING:
    from smalti.paradigms.interleaved import Interleaved


class Pen:
    """Reads and writes `rows` sequences of one length, one token after the other."""

    def __init__(self, model: Interleaved, rows: int, length: int) -> None:
        device = model.head.weight.device
        self.model, self.dtype = model, decoding_dtype(device, rows)
        self.walk = Walk(model.grammar_on(device), rows, length + 2)  # what is begun may end
        positions = torch.zeros(1, model.grammar.axes, device=device)
        folded = model.folded.of([model.network], lambda: Folded(model.network, positions, self.dtype), self.dtype)
        self.stepper = Stepper(folded, rows, length)

    def read(self, tokens: Tensor) -> Tensor:
        """Go on by a token of each row (n,) -> what the network says next (n, width)."""
        positions = self.walk.positions()
        self.walk.take(tokens)
        x = self.model.token(tokens) + self.model.next(self.walk.state)
        return self.stepper.step(x.to(self.dtype), positions=positions)

    def read_all(self, tokens: Tensor, wholes: Tensor) -> None:
        """Begin with several tokens of each row (n, t), of parts that are read in order or as wholes (n, t).

        There may be none: a text can begin with nothing before it.
        """
        if not tokens.shape[1]:
            return
        positions, states = [], []
        for each in tokens.unbind(1):
            positions.append(self.walk.positions())
            self.walk.take(each)
            states.append(self.walk.state)
        x = self.model.token(tokens) + self.model.next(torch.stack(states, 1))
        network, length = self.model.network, tokens.shape[1]
        before = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        cache = network.cache(len(tokens), length)
        network(x, torch.stack(positions, 1), (before | whole(wholes)).unsqueeze(1), cache)
        self.stepper.follow(cache)

    def logits(self, hidden: Tensor, ids: range | Tensor) -> Tensor:
        """What the network says (n, width) -> logits fp32 of these ids (n, ids)."""
        weight = self.model.head.weight
        weight = weight[ids.start : ids.stop] if isinstance(ids, range) else weight[ids]
        return F.linear(hidden, weight.to(self.dtype)).float()
