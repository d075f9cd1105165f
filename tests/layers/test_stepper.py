from __future__ import annotations

import pytest
import torch

from smalti.layers.stepper import Folded, Stepper
from smalti.layers.transformer import Transformer, TransformerConfig

LLAMA = {"query_key_norm": False, "rope": "interleaved", "rope_base": 10_000.0}


def made(**sizes) -> Transformer:
    network = Transformer(TransformerConfig(**{"layers": 3, "width": 24, "heads": 2, "dropout": 0.0, **sizes})).eval()
    generator = torch.Generator().manual_seed(2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim != 2), std=0.4, generator=generator)
    return network


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [{}, {"heads": 1}, {"heads": 4, "width": 32, "hidden": 20}, LLAMA])
def test_a_token_at_a_time_is_the_whole_at_once(axes, sizes, generator):
    network = made(**sizes)
    positions = torch.randint(0, 9, (7, axes), generator=generator)
    x = torch.randn(3, 7, network.config.width, generator=generator)
    with torch.no_grad():
        whole = network(x, positions)
        stepper = Stepper(Folded(network, positions, torch.float32), 3)
        steps = [stepper.step(x[:, t].clone()) for t in range(7)]
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-4)


def test_each_row_may_go_through_the_positions_in_an_order_of_its_own(generator):
    network, positions = made(), torch.randint(0, 9, (7, 2), generator=generator)
    orders = torch.stack([torch.randperm(7, generator=generator) for _ in range(3)])
    x = torch.randn(3, 7, network.config.width, generator=generator)
    with torch.no_grad():
        whole = network(x, positions[orders])
        stepper = Stepper(Folded(network, positions, torch.float32), 3)
        steps = [stepper.step(x[:, t].clone(), orders[:, t]) for t in range(7)]
        torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-4, atol=1e-4)
        stepper.restart()
        alike = [stepper.step(x[:, t].clone(), int(orders[0, t])) for t in range(7)]
        torch.testing.assert_close(torch.stack(alike, 1), network(x, positions[orders[0]]), rtol=1e-4, atol=1e-4)


def test_in_bf16_it_is_nearly_the_same(generator):
    network, x = made(), torch.randn(2, 7, 24, generator=generator)
    positions = torch.arange(7)[:, None]
    with torch.no_grad():
        whole = network(x, positions)
        stepper = Stepper(Folded(network, positions, torch.bfloat16), 2)
        steps = torch.stack([stepper.step(x[:, t].bfloat16()) for t in range(7)], 1)
    assert steps.dtype == torch.bfloat16
    assert (steps.float() - whole).norm() < 0.05 * whole.norm()


def test_two_steppers_share_weights_and_nothing_else(generator):
    network, x = made(), torch.randn(2, 24, generator=generator)
    with torch.no_grad():
        folded = Folded(network, torch.arange(4)[:, None], torch.float32)
        first, second = Stepper(folded, 2), Stepper(folded, 2)
        once = first.step(x.clone())
        first.step(torch.ones(2, 24))
        torch.testing.assert_close(second.step(x.clone()), once)
