from __future__ import annotations

import copy
import warnings

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from smalti.layers.rope import rotate, rotations
from smalti.layers.transformer import Transformer, TransformerConfig

CONFIG = TransformerConfig(layers=2, width=16, heads=2, hidden=24, dropout=0.0)


def made(config: TransformerConfig = CONFIG, dtype: torch.dtype = torch.float64) -> Transformer:
    """A transformer none of whose weights is zero or one, for an untrained one is the identity."""
    network = Transformer(config).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval()


def places(length: int, axes: int = 1) -> torch.Tensor:
    return torch.stack([torch.arange(length) // (axis + 1) for axis in range(axes)], -1)


def naive(network: Transformer, x: torch.Tensor, positions: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """One row, one head, one query at a time."""

    def norm(values, weight):
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    heads, turn = network.config.heads, rotations(positions, network.config.width // network.config.heads)
    rows = []
    for row in x:
        for block in network.blocks:
            h = norm(row, block.attention_norm.weight)
            q, k, v = (part.view(len(row), heads, -1) for part in (h @ block.qkv.weight.T).chunk(3, -1))
            q = rotate(norm(q, block.query_key_norm.weight[0, 0]), *turn)
            k = rotate(norm(k, block.query_key_norm.weight[1, 0]), *turn)
            mixed = torch.zeros_like(v)
            for head in range(heads):
                for t in range(len(row)):
                    seen = allowed[t].nonzero().squeeze(1)
                    weights = (k[seen, head] @ q[t, head] / q.shape[-1] ** 0.5).softmax(0)
                    mixed[t, head] = weights @ v[seen, head]
            row = row + mixed.flatten(1) @ block.out.weight.T
            gate, up = (norm(row, block.mlp_norm.weight) @ block.gate_up.weight.T).chunk(2, -1)
            row = row + (F.silu(gate) * up) @ block.down.weight.T
        rows.append(norm(row, network.norm.weight))
    return torch.stack(rows)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("attend", ["causal", "full", "mask"])
def test_against_a_naive_loop(axes, attend, generator):
    network, x = made(), torch.randn(2, 6, 16, generator=generator, dtype=torch.float64)
    allowed = {
        "causal": torch.ones(6, 6).tril().bool(),
        "full": torch.ones(6, 6).bool(),
        "mask": (torch.rand(6, 6, generator=generator) < 0.5) | torch.eye(6).bool(),
    }[attend]
    out = network(x, places(6, axes), allowed if attend == "mask" else attend)
    torch.testing.assert_close(out, naive(network, x, places(6, axes), allowed))


def test_against_another_library(generator):
    """On one axis this is the architecture of Qwen3, so the same weights must give the same numbers."""
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        from transformers import Qwen3Config, Qwen3Model

        settings = Qwen3Config(
            vocab_size=3,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        )
        theirs = Qwen3Model(settings).double().eval()
    ours, weights = made(), theirs.state_dict()
    for i, block in enumerate(ours.blocks):
        parts = dict(zip("qkv", block.qkv.weight.chunk(3), strict=True))
        weights |= {f"layers.{i}.self_attn.{name}_proj.weight": part for name, part in parts.items()}
        gate, up = block.gate_up.weight.chunk(2)
        weights |= {
            f"layers.{i}.self_attn.o_proj.weight": block.out.weight,
            f"layers.{i}.self_attn.q_norm.weight": block.query_key_norm.weight[0, 0],
            f"layers.{i}.self_attn.k_norm.weight": block.query_key_norm.weight[1, 0],
            f"layers.{i}.input_layernorm.weight": block.attention_norm.weight,
            f"layers.{i}.post_attention_layernorm.weight": block.mlp_norm.weight,
            f"layers.{i}.mlp.gate_proj.weight": gate,
            f"layers.{i}.mlp.up_proj.weight": up,
            f"layers.{i}.mlp.down_proj.weight": block.down.weight,
        }
    theirs.load_state_dict(weights | {"norm.weight": ours.norm.weight})
    x = torch.randn(2, 7, 16, generator=generator, dtype=torch.float64)
    expected = theirs(inputs_embeds=x).last_hidden_state
    # their angles and norms are fp32 inside
    torch.testing.assert_close(ours(x, places(7)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attend", ["causal", "full"])
def test_causality_by_gradient(attend, generator):
    network, x = made(), torch.randn(1, 5, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    for t in range(5):
        (slope,) = torch.autograd.grad(network(x, places(5), attend)[0, t].sum(), x)
        reached = slope[0].abs().sum(-1) > 0
        assert reached.tolist() == [attend == "full" or s <= t for s in range(5)]


@pytest.mark.parametrize("prefill", range(1, 8))
def test_cached_decoding_equals_uncached_at_every_length(prefill, generator):
    network, x = made(), torch.randn(3, 7, 16, generator=generator, dtype=torch.float64)
    where, cache = places(7, 2), network.cache(3, 7)
    with torch.no_grad():
        parts = [network(x[:, :prefill], where[:prefill], cache=cache)]
        parts += [network(x[:, t : t + 1], where[t : t + 1], cache=cache) for t in range(prefill, 7)]
    assert cache.filled == 7
    for end in range(prefill, 8):
        torch.testing.assert_close(torch.cat(parts, 1)[:, :end], network(x[:, :end], where[:end]))


def test_a_cache_takes_several_tokens_at_a_time(generator):
    network, x = made(), torch.randn(2, 7, 16, generator=generator, dtype=torch.float64)
    cache = network.cache(2, 9)  # more room than needed must change nothing
    parts = [network(x[:, a:b], places(7)[a:b], cache=cache) for a, b in ((0, 2), (2, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), network(x, places(7)))


def test_padding_does_not_leak(generator):
    network, x = made(), torch.randn(2, 6, 16, generator=generator, dtype=torch.float64)
    mask = (torch.arange(6) < torch.tensor([6, 4])[:, None])[:, None, None]  # (B, 1, 1, S)
    changed = x.clone()
    changed[1, 4:] += 100
    one, other = network(x, places(6), mask), network(changed, places(6), mask)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1, :4], other[1, :4])


def test_positions_may_differ_by_row(generator):
    network, x = made(), torch.randn(2, 4, 16, generator=generator, dtype=torch.float64)
    where = torch.randint(0, 9, (2, 4, 2), generator=generator)
    together = network(x, where)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], network(x[row : row + 1], where[row]))


def test_an_untrained_one_adds_nothing_and_still_learns(generator):
    torch.manual_seed(0)
    network, x = Transformer(CONFIG), torch.randn(2, 4, 16, generator=generator)
    torch.testing.assert_close(network(x, places(4)), F.rms_norm(x, (16,), eps=1e-6))
    network(x, places(4)).square().sum().backward()
    assert all(block.out.weight.grad.abs().sum() > 0 for block in network.blocks)
    assert all(block.down.weight.grad.abs().sum() > 0 for block in network.blocks)


def test_low_precision_decoding_stays_near(generator):
    network, x = made(dtype=torch.float32), torch.randn(2, 6, 16, generator=generator)
    low = copy.deepcopy(network).bfloat16()
    cache = low.cache(2, 6)
    with torch.no_grad():
        parts = [low(x[:, t : t + 1].bfloat16(), places(6)[t : t + 1], cache=cache) for t in range(6)]
    torch.testing.assert_close(torch.cat(parts, 1).float(), network(x, places(6)), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (12, 4)])
def test_heads_that_do_not_divide_the_width_are_refused(width, heads):
    with pytest.raises(ValidationError, match="even whole number"):
        TransformerConfig(width=width, heads=heads)
