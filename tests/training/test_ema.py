from __future__ import annotations

import pytest
import torch
from torch import nn

from smalti.training.ema import WeightAverage


class Counting(nn.Module):
    """A parameter, a buffer that moves, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("book", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.dropout = nn.Dropout(0.5)

    def step(self, generator: torch.Generator) -> None:
        self.weight.data = torch.randn(3, generator=generator)
        self.book.copy_(torch.randn(2, generator=generator))
        self.steps += 1


@pytest.mark.parametrize("cap", [0.0, 0.5, 0.999])
def test_against_the_sum_written_out(cap, generator):
    module = Counting()
    average = WeightAverage(module, cap)
    weight = torch.zeros(3)
    for t in range(1, 30):
        module.step(generator)
        average.update(module)
        keep = min(cap, 1 - (1 + t) ** (-2 / 3))
        weight = keep * weight + (1 - keep) * module.weight.detach()
        torch.testing.assert_close(average.module.weight, weight)
        assert torch.equal(average.module.book, module.book)
        assert average.module.steps == t
    assert average.updates == 29


@pytest.mark.parametrize("cap", [0.0, 0.5, 0.999])
def test_the_start_keeps_its_share(cap, generator):
    module = Counting()
    module.step(generator)
    start = module.weight.detach().clone()
    plain, mixed = WeightAverage(module, cap), WeightAverage(module, cap, start_share=0.3)
    torch.testing.assert_close(mixed.module.weight, start)
    for _ in range(30):
        module.step(generator)
        plain.update(module)
        mixed.update(module)
        torch.testing.assert_close(mixed.module.weight, 0.3 * start + 0.7 * plain.module.weight)
        assert torch.equal(mixed.module.book, module.book)


def test_it_stands_apart_from_what_it_averages():
    module = Counting().train()
    average = WeightAverage(module, 0.9)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert module.training
    assert module.weight.requires_grad
    module.weight.data += 1
    assert (average.module.weight == 0).all()
