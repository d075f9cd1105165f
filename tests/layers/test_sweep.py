from __future__ import annotations

import copy
import pickle

import pytest
import torch

from smalti.layers import sweep as sweep_module
from smalti.layers.sweep import Sweep, Sweeps
from smalti.layers.transformer import Transformer, TransformerConfig


def made(**sizes) -> Transformer:
    network = Transformer(TransformerConfig(**{"layers": 3, "width": 24, "heads": 2, "dropout": 0.0, **sizes}), True)
    generator = torch.Generator().manual_seed(2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.4, generator=generator)
    return network.eval()


def swept(sweep: Sweep, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    return sweep(x, sweep.modulated(condition))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"heads": 1},
        {"heads": 4, "width": 32, "hidden": 20},
        {"layers": 1},
        {"query_key_norm": False, "rope": "interleaved", "rope_base": 10_000.0},
    ],
)
def test_a_sweep_is_the_transformer(axes, sizes, generator):
    network = made(**sizes)
    positions = torch.randint(0, 9, (7, axes), generator=generator)
    x, condition = (torch.randn(3, *size, network.config.width, generator=generator) for size in ((7,), ()))
    with torch.no_grad():
        whole = network(x, positions, "full", condition=condition)
        got = swept(Sweep(network, positions, torch.float32), x, condition)
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


def test_in_bf16_it_is_nearly_the_same(generator):
    network, x, condition = made(), torch.randn(2, 7, 24, generator=generator), torch.randn(2, 24, generator=generator)
    positions = torch.arange(7)[:, None]
    with torch.no_grad():
        whole = network(x, positions, "full", condition=condition)
        got = swept(Sweep(network, positions, torch.bfloat16), x, condition)
    assert got.dtype == torch.float32  # the last norm is not rounded
    assert (got.float() - whole).norm() < 0.05 * whole.norm()


def test_many_rows_are_read_in_parts(generator, monkeypatch):
    network, positions = made(), torch.arange(7)[:, None]
    x, condition = (torch.randn(5, *size, 24, generator=generator) for size in ((7,), ()))
    with torch.no_grad():
        sweep = Sweep(network, positions, torch.float32)
        whole = swept(sweep, x, condition)
        monkeypatch.setattr(sweep_module, "AT_ONCE", 15)  # two rows
        torch.testing.assert_close(swept(sweep, x, condition), whole)


def test_a_head_follows(generator):
    network, positions, x = made(), torch.arange(7)[:, None], torch.randn(2, 7, 24, generator=generator)
    head, condition = torch.nn.Linear(24, 5, bias=False), torch.randn(2, 24, generator=generator)
    with torch.no_grad():
        got = swept(Sweep(network, positions, torch.float32, head), x, condition)
        torch.testing.assert_close(got, head(network(x, positions, "full", condition=condition)), rtol=1e-4, atol=1e-4)
        sweeps = Sweeps()
        first = sweeps.of(network, positions, head)
        assert sweeps.of(network, positions, head) is first
        head.weight.add_(1)
        assert sweeps.of(network, positions, head) is not first


def test_another_condition_is_another_answer(generator):
    network, positions, x = made(), torch.arange(7)[:, None], torch.randn(2, 7, 24, generator=generator)
    conditions = torch.randn(2, 2, 24, generator=generator)
    sweep = Sweep(network, positions, torch.float32)
    with torch.no_grad():
        for condition in (conditions[0], conditions[1], conditions[0], conditions[0][:1]):
            rows = len(condition)
            torch.testing.assert_close(
                swept(sweep, x[:rows], condition),
                network(x[:rows], positions, "full", condition=condition),
                rtol=1e-4,
                atol=1e-4,
            )


def test_it_is_kept_until_the_weights_change():
    network, positions, sweeps = made(), torch.arange(7)[:, None], Sweeps()
    first = sweeps.of(network, positions)
    assert sweeps.of(network, positions) is first
    with torch.no_grad():
        network.blocks[1].down.weight.add_(1)
    second = sweeps.of(network, positions)
    assert second is not first
    assert sweeps.of(network, positions) is second
    network.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)
    assert sweeps.of(network, positions) is not second
    # copies of a model do without what is not theirs
    for other in (copy.deepcopy(sweeps), pickle.loads(pickle.dumps(sweeps))):
        assert other.of(made(), positions) is not None


def test_attention_over_many_tokens_is_left_to_the_network(monkeypatch):
    monkeypatch.setattr(sweep_module, "WRITTEN_OUT", 49)
    assert Sweeps().of(made(), torch.arange(7)[:, None]) is not None
    assert Sweeps().of(made(), torch.arange(8)[:, None]) is None


def test_only_a_conditioned_transformer_is_swept():
    with pytest.raises(ValueError, match="conditioned=True"):
        Sweep(Transformer(TransformerConfig(layers=1, width=8, heads=1)), torch.arange(3)[:, None], torch.float32)


# --- with a context


def in_context(layers: int = 3) -> Transformer:
    network = Transformer(TransformerConfig(layers=layers, width=24, heads=2, dropout=0.0), True, context_width=10)
    generator = torch.Generator().manual_seed(2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.ndim == 1), std=0.4, generator=generator)
    return network.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_once", [4096, 15])  # all rows, or two
def test_a_sweep_with_a_context_is_the_transformer(dtype, at_once, generator, monkeypatch):
    monkeypatch.setattr(sweep_module, "AT_ONCE", at_once)
    network, positions = in_context(), torch.arange(7)[:, None]
    x, condition, context = (torch.randn(4, *size, generator=generator) for size in ((7, 24), (24,), (5, 10)))
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    with torch.no_grad():
        whole = network(x, positions, "full", condition=condition, context=context, context_mask=mask)
        sweep = Sweep(network, positions, dtype)
        got = sweep(x, sweep.modulated(condition), sweep.told(context, mask))
        if dtype == torch.float32:
            torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)
        assert (got - whole).norm() < 0.05 * whole.norm()


def test_a_sweep_is_told_a_context_where_one_was_promised(generator):
    positions, x, condition = torch.arange(7)[:, None], torch.randn(2, 7, 24), torch.randn(2, 24)
    context, mask = torch.randn(2, 5, 10), torch.ones(2, 5, dtype=torch.bool)
    with_one, without = (Sweep(each, positions, torch.float32) for each in (in_context(1), made(layers=1)))
    with pytest.raises(ValueError, match="context_width"):
        swept(with_one, x, condition)
    with pytest.raises(ValueError, match="context_width"):
        without.told(context, mask)
    with pytest.raises(ValueError, match="context_width"):
        without(x, without.modulated(condition), with_one.told(context, mask))
