"""Keeping all codes in use by a loss: the mean distribution over codes pulled towards the uniform one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from smalti.tokenizers.bottlenecks.base import Statistic

FLOOR = 0.01  # of the uniform rate: a code nobody chooses pulls no harder than one chosen so rarely


class Spread(nn.Module):
    """The entropy of the mean assignment (Yu et al. 2023, arXiv 2310.05737, equation 6), as a sum over rows.

    That entropy needs the whole batch at once. Its gradient does not: it is the gradient of the sum over rows of
    p log m, where p is a row's soft assignment and m the mean assignment, taken as a constant. Here m is a running mean
    of the codes really chosen, moved once a step by merged statistics. So micro-batches and ranks add up exactly, small
    batches are not fooled by their own chance, and soft assignments cannot look evenly spread while the codes are not.

    A code may be made of independent `parts`, the first one slowest: their joint distribution is the product of theirs,
    and only the products of two halves are ever formed.
    """

    mean: Tensor

    def __init__(self, parts: Sequence[int], decay: float = 0.95) -> None:
        super().__init__()
        self.parts, self.decay = tuple(parts), decay
        self.split = max(1, len(self.parts) // 2)
        self.shape = (math.prod(self.parts[: self.split]), math.prod(self.parts[self.split :]))
        self.register_buffer("mean", torch.full(self.shape, 1 / math.prod(self.parts)))

    def loss(self, *parts: Tensor) -> Tensor:
        """The sum over rows of p log(m K), for the parts' distributions (n, size): 0 when m is uniform."""
        first, second = self._halves(parts)
        log_mean = (self.mean * self.mean.numel()).clamp_min(FLOOR).log()
        return (first @ log_mean * second).sum()

    def statistics(self, codes: Tensor) -> dict[str, Statistic]:
        """How often each code was chosen."""
        return {"chosen": Statistic(torch.bincount(codes.flatten(), minlength=self.mean.numel()).to(self.mean))}

    @torch.no_grad()
    def after_step(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        chosen = statistics["chosen"].view_as(self.mean)
        self.mean.lerp_(chosen / chosen.sum(), 1 - self.decay)
        entropy = -(self.mean * self.mean.clamp_min(1e-20).log()).sum()
        return {"spread_perplexity": float(entropy.exp())}

    def _halves(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rest = parts[self.split :]
        return _joint(parts[: self.split]), _joint(rest) if rest else torch.ones_like(parts[0][:, :1])


def _joint(parts: Sequence[Tensor]) -> Tensor:
    """The joint distribution (n, product of sizes) of independent ones (n, size), the last part fastest."""
    joint = parts[0]
    for part in parts[1:]:
        joint = (joint[:, :, None] * part[:, None, :]).flatten(1)
    return joint
