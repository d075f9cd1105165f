from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from smalti.layers.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(layers=2, width=16, heads=2, hidden=24, dropout=0.0)
PLACES = torch.arange(5)[:, None]


def made(conditioned: bool = False, context_width: int | None = 6) -> Transformer:
    """A transformer none of whose weights is zero or one, for an untrained one is the identity."""
    network = Transformer(CONFIG, conditioned, context_width).double()
    if conditioned:
        network.modulation.float()  # it always works in fp32
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


def drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def naive(cross, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One row, one token, one head at a time."""

    def norm(values, weight):
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    out = torch.zeros_like(x)
    for b, t in torch.cartesian_prod(torch.arange(len(x)), torch.arange(x.shape[1])).tolist():
        seen = context[b, mask[b]]
        heads = []
        query = cross.query.weight @ norm(x[b, t], cross.norm.weight)
        keys, values = (seen @ cross.key_value.weight.T).chunk(2, -1)
        for head in range(cross.heads):
            part = slice(8 * head, 8 * head + 8)
            q, k = norm(query[part], cross.query_norm.weight), norm(keys[:, part], cross.key_norm.weight)
            heads.append((k @ q / 8**0.5).softmax(0) @ values[:, part])  # of nothing, the sum is zero
        out[b, t] = cross.out.weight @ torch.cat(heads)
    return out


def test_against_a_naive_loop(generator):
    cross = made().blocks[0].cross
    x, context = drawn(generator, 3, 5, 16), drawn(generator, 3, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    out = cross(x, context, mask[:, None, None], x.dtype)
    torch.testing.assert_close(out, naive(cross, x, context, mask))
    assert (out[2] == 0).all()
    torch.testing.assert_close(cross(x, context, None, x.dtype), naive(cross, x, context, mask | True))


def test_its_gradient_is_that_of_differences(generator):
    cross = made().blocks[0].cross
    x, context = drawn(generator, 2, 3, 16).requires_grad_(), drawn(generator, 2, 4, 6).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]]).bool()[:, None, None]
    assert torch.autograd.gradcheck(lambda x, context: cross(x, context, mask, x.dtype), (x, context))


def test_it_stands_between_attention_and_mlp_and_is_not_modulated(generator):
    """With the halves of a block that are modulated shut by their gates, what is left is x plus what was read."""
    network = made(conditioned=True)
    x, context, condition = drawn(generator, 2, 5, 16), drawn(generator, 2, 4, 6), drawn(generator, 2, 16)
    with torch.no_grad():
        network.modulation.weight.zero_()
        network.modulation.bias.zero_()
        for block in network.blocks:
            block.offsets[[2, 5]] = 0
    expected = x
    for block in network.blocks:
        expected = expected + block.cross(expected, context, None, x.dtype)
    out = network(x, PLACES, "full", condition=condition, context=context)
    torch.testing.assert_close(out, F.rms_norm(expected, (16,), network.norm.weight, 1e-6))


@pytest.mark.parametrize("conditioned", [False, True])
def test_what_is_masked_might_as_well_not_be_there(conditioned, generator):
    network, x, context = made(conditioned), drawn(generator, 2, 5, 16), drawn(generator, 2, 7, 6)
    condition = drawn(generator, 2, 16) if conditioned else None
    mask = torch.arange(7).expand(2, 7) < 4
    padded = network(x, PLACES, "full", condition=condition, context=context, context_mask=mask)
    shorter = network(x, PLACES, "full", condition=condition, context=context[:, :4])
    torch.testing.assert_close(padded, shorter)
    nothing = network(x, PLACES, "full", condition=condition, context=context, context_mask=mask & False)
    other = network(x, PLACES, "full", condition=condition, context=-context, context_mask=mask & False)
    assert torch.equal(nothing, other)


def test_an_untrained_one_changes_nothing_and_still_learns(generator):
    torch.manual_seed(0)
    network, x, context = Transformer(CONFIG, context_width=6), torch.randn(2, 5, 16), torch.randn(2, 3, 6)
    torch.manual_seed(0)
    plain = Transformer(CONFIG)
    out = network(x, PLACES, "full", context=context)
    assert torch.equal(out, plain(x, PLACES, "full"))
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    assert all(block.cross.out.weight.grad.abs().sum() > 0 for block in network.blocks)


def test_every_weight_learns(generator):
    network, x, context = made(), drawn(generator, 2, 5, 16), drawn(generator, 2, 3, 6)
    (network(x, PLACES, "full", context=context) * drawn(generator, 2, 5, 16)).sum().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_one_without_a_context_is_what_it_was():
    """Neither its weights' names nor the random numbers it takes may change, for models were saved."""
    torch.manual_seed(0)
    network = Transformer(CONFIG, conditioned=True)
    after = torch.rand(1)
    torch.manual_seed(0)
    Transformer(CONFIG, conditioned=True, context_width=None)
    assert torch.equal(torch.rand(1), after)
    assert not any("cross" in name for name in network.state_dict())


def test_a_context_belongs_where_one_was_promised(generator):
    x, context = drawn(generator, 2, 5, 16), drawn(generator, 2, 3, 6)
    with pytest.raises(ValueError, match="context_width"):
        made(context_width=None)(x, PLACES, context=context)
    with pytest.raises(ValueError, match="context_width"):
        made()(x, PLACES)
