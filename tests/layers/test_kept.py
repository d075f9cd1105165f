from __future__ import annotations

import copy

import torch
from torch import nn

from smalti.layers.kept import Kept
from smalti.training.ema import WeightAverage


def test_what_was_made_is_kept_until_weights_or_settings_change():
    kept, network, other, made = Kept[int](), nn.Linear(2, 2), nn.Linear(2, 2), []

    def ask(*also: str) -> int:
        return kept.of([network, other], lambda: made.append(1) or len(made), *also)

    assert [ask("a"), ask("a"), ask("b"), ask("b")] == [1, 1, 2, 2]
    with torch.no_grad():
        other.bias.add_(1)
    assert [ask("b"), ask("b")] == [3, 3]
    torch.optim.SGD(network.parameters(), lr=1).step()  # without gradients nothing is written
    assert ask("b") == 3
    network(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(network.parameters(), lr=1).step()
    assert ask("b") == 4
    network.weight = nn.Parameter(torch.zeros(2, 2))
    assert ask("b") == 5
    assert copy.deepcopy(kept).of([network, other], lambda: 0, "b") == 0


def test_averaged_weights_are_noticed():
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    kept, made = Kept[int](), []
    for number in (1, 2):
        average.update(nn.Linear(2, 2))
        for _ in range(2):
            assert kept.of([average.module], lambda: made.append(1) or len(made)) == number


def test_weights_made_in_inference_mode_are_kept_too():
    with torch.inference_mode():
        network = nn.Linear(2, 2)
    kept, made = Kept[int](), []
    for _ in range(2):
        assert kept.of([network], lambda: made.append(1) or len(made)) == 1
