from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from smalti.recipe import TrainingConfig
from smalti.training.optim import Optimizer, rate_share


def network() -> nn.Sequential:
    """Layers wide enough for Muon, and all that is not for it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 36), nn.LayerNorm(36), nn.Linear(36, 3))


def with_gradients(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return module


def test_up_in_a_line_and_down_half_a_cosine():
    config = TrainingConfig(steps=110, warmup=10, lr_end=0.1)
    shares = [rate_share(step, config) for step in range(111)]
    assert shares[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    for step in range(10, 111):
        assert shares[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2)
    assert shares[60] == pytest.approx(0.55)  # half way down
    assert shares[110] == pytest.approx(0.1)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 100), (5, 5), (5, 100), (5, 0)])
def test_any_number_of_steps(steps, warmup):
    shares = [rate_share(step, TrainingConfig(steps=steps, warmup=warmup)) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == pytest.approx(1)


def test_adamw_is_torchs_own_with_its_two_groups():
    config = TrainingConfig(lr=0.01, weight_decay=0.5, betas=(0.8, 0.9))
    ours, theirs = network(), network()
    optimizer = Optimizer(ours, config)
    heavy = [p for p in theirs.parameters() if p.ndim > 1]
    light = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": heavy, "weight_decay": 0.5}, {"params": light, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    for step in range(4):
        with_gradients(ours, step)
        optimizer.step(0.1 * (step + 1))
        for group in reference.param_groups:
            group["lr"] = 0.001 * (step + 1)
        with_gradients(theirs, step)
        reference.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_only_matrices_and_kernels_decay():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(2), nn.Linear(2, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    Optimizer(module, TrainingConfig(lr=0.1, weight_decay=0.5)).step(1.0)
    for parameter in module.parameters():
        expected = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected))


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    config = TrainingConfig(lr=0.01, muon_lr=0.02, weight_decay=0.1)
    ours, theirs = network(), network()
    optimizer = Optimizer(ours, config)
    hidden = theirs[1].weight
    muon = torch.optim.Muon([hidden], lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in theirs.parameters() if p is not hidden]
    adamw = Optimizer(nn.ParameterList(rest), TrainingConfig(lr=0.01, weight_decay=0.1))
    for step in range(3):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        optimizer.step(1.0)
        muon.step()
        adamw.step(1.0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_muon_moves_a_kernel_where_the_network_keeps_it():
    conv = nn.Conv2d(32, 32, 3, bias=False)
    matrix = nn.Parameter(conv.weight.detach().flatten(1).clone())
    optimizer = Optimizer(conv, TrainingConfig(muon_lr=0.02, weight_decay=0.0))
    with_gradients(conv, 0)
    matrix.grad = conv.weight.grad.flatten(1).clone()
    optimizer.step(1.0)
    torch.optim.Muon([matrix], lr=0.02, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(conv.weight.flatten(1), matrix)


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_saved_and_loaded(muon_lr):
    config = TrainingConfig(muon_lr=muon_lr)
    one, other = network(), network()
    first, second = Optimizer(one, config), Optimizer(other, config)
    for step in range(3):
        with_gradients(one, step)
        first.step(1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.load_state_dict(one.state_dict())  # in place, so that the optimizer still holds what the network uses
    for module, optimizer in ((one, first), (other, second)):
        with_gradients(module, 9)
        optimizer.step(0.5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_what_is_frozen_is_left_out():
    module = network()
    module[1].weight.requires_grad_(False)
    before = module[1].weight.clone()
    optimizer = Optimizer(module, TrainingConfig(muon_lr=0.02))
    with_gradients(module, 0)
    optimizer.step(1.0)
    assert torch.equal(module[1].weight, before)
