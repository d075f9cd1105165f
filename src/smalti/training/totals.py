"""Loss terms added up over micro-batches and ranks, and divided once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from smalti.term import Term
from smalti.training.ranks import Ranks


class Totals:
    """Sums and weights by the name of the term."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.coefficients: dict[str, float] = {}
        self.shares: dict[str, float] = {}

    def add(self, terms: Iterable[Term]) -> Tensor:
        """Count one micro-batch; gives back what to differentiate: its gradient, added over micro-batches and ranks and
        divided by `counted`, is the gradient of the whole loss.

        Terms may count different things (pixels, vectors), but in the same proportion in every micro-batch; where they
        do not, sums could not be divided afterwards, and a ValueError says so. The first must have a coefficient; those
        that have none are only reported, and count what they like.
        """
        objective: Tensor | float = 0.0
        unit: float | None = None
        for term in terms:
            unit = term.weight if unit is None else unit
            if term.coefficient:
                self._check_proportion(term, unit)
            self.sums[term.name] = self.sums.get(term.name, 0.0) + term.sum.detach().double()
            self.weights[term.name] = self.weights.get(term.name, 0.0) + term.weight
            self.coefficients[term.name] = term.coefficient
            if term.coefficient:
                objective = objective + term.sum * (term.coefficient * unit / term.weight)
        assert isinstance(objective, Tensor), "a loss needs a term with a coefficient"
        return objective

    def _check_proportion(self, term: Term, unit: float) -> None:
        share = self.shares.setdefault(term.name, term.weight / unit)
        if not math.isclose(term.weight / unit, share, rel_tol=1e-6):
            raise ValueError(f"term {term.name!r} counts in another proportion than in the micro-batch before")

    def over(self, ranks: Ranks) -> Totals:
        """The same over all ranks, in one message."""
        if ranks.count > 1:
            names = list(self.sums)
            device = self.sums[names[0]].device
            weights = torch.tensor([self.weights[name] for name in names], dtype=torch.float64, device=device)
            summed = ranks.sum(torch.cat([torch.stack([self.sums[name] for name in names]), weights]))
            for i, name in enumerate(names):
                self.sums[name], self.weights[name] = summed[i], float(summed[len(names) + i])
        return self

    @property
    def counted(self) -> float:
        """How many the first term counted, in all."""
        return next(iter(self.weights.values()))

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.weights[name] for name, total in self.sums.items() if self.weights[name]}

    def loss(self) -> float:
        """The whole loss: every mean times its coefficient."""
        means = self.means()
        return sum(means[name] * coefficient for name, coefficient in self.coefficients.items() if coefficient)
