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


def made(
    config: TransformerConfig = CONFIG, dtype: torch.dtype = torch.float64, conditioned: bool = False
) -> Transformer:
    """A transformer none of whose weights is zero or one, for an untrained one is the identity."""
    network = Transformer(config, conditioned).to(dtype)
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


# --- with a condition ------------------------------------------------------------------------------------------------


def naive_conditioned(network: Transformer, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
    """One row (T, width) at a time, each with its condition (width,) or (T, width), full attention, no rotation."""

    def norm(values, weight):
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    heads, width = network.config.heads, network.config.width
    made = F.silu(condition.float()) @ network.modulation.weight.float().T + network.modulation.bias.float()
    parts = made.split(width, -1)
    for block in network.blocks:
        own = [part + offset for part, offset in zip(parts, block.offsets, strict=False)]
        h = norm(x, block.attention_norm.weight) * (1 + own[1]) + own[0]
        q, k, v = (each.view(len(x), heads, -1) for each in (h @ block.qkv.weight.T).chunk(3, -1))
        q, k = norm(q, block.query_key_norm.weight[0, 0]), norm(k, block.query_key_norm.weight[1, 0])
        scores = torch.einsum("thd,shd->hts", q, k) / q.shape[-1] ** 0.5
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
        x = x + own[2] * (mixed @ block.out.weight.T)
        h = norm(x, block.mlp_norm.weight) * (1 + own[4]) + own[3]
        gate, up = (h @ block.gate_up.weight.T).chunk(2, -1)
        x = x + own[5] * ((F.silu(gate) * up) @ block.down.weight.T)
    return norm(x, network.norm.weight) * (1 + parts[7]) + parts[6]


@pytest.mark.parametrize("each_token", [False, True])
def test_a_condition_against_a_naive_loop(each_token, generator):
    network = made(dtype=torch.float32, conditioned=True)
    x = torch.randn(3, 5, 16, generator=generator)
    condition = torch.randn(3, *[5] * each_token, 16, generator=generator)
    nowhere = torch.zeros(5, 1)  # where nothing is turned
    with torch.no_grad():
        expected = torch.stack([naive_conditioned(network, *row) for row in zip(x, condition, strict=True)])
        out = network(x, nowhere, "full", condition=condition)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_a_condition_moves_its_own_row_alone(generator):
    network = made(dtype=torch.float32, conditioned=True)
    x, condition = torch.randn(3, 5, 16, generator=generator), torch.randn(3, 16, generator=generator)
    changed = condition.clone()
    changed[1] += 1
    with torch.no_grad():
        one, other = (network(x, places(5), "full", condition=each) for each in (condition, changed))
    moved = (one - other).abs().amax((1, 2)) > 1e-3
    assert moved.tolist() == [False, True, False]


def test_an_untrained_conditioned_one_adds_nothing_and_still_learns(generator):
    """adaLN-zero: the gates are zero, not what they let through."""
    torch.manual_seed(0)
    network, x = Transformer(CONFIG, conditioned=True), torch.randn(2, 4, 16, generator=generator)
    condition = torch.randn(2, 16, generator=generator)
    out = network(x, places(4), "full", condition=condition)
    torch.testing.assert_close(out, F.rms_norm(x, (16,), eps=1e-6))
    weight = torch.randn(out.shape, generator=generator)
    (out * weight).sum().backward()
    gates = network.modulation.weight.grad.view(8, 16, 16)[[2, 5]]
    assert (gates.abs().amax((1, 2)) > 0).all()
    assert all((block.offsets.grad[[2, 5]].abs().amax(1) > 0).all() for block in network.blocks)


def test_every_weight_of_a_conditioned_one_learns(generator):
    network = made(dtype=torch.float32, conditioned=True)
    x, condition = torch.randn(2, 4, 16, generator=generator), torch.randn(2, 16, generator=generator)
    out = network(x, places(4), "full", condition=condition)
    (out * torch.randn(out.shape, generator=generator)).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_a_condition_belongs_where_one_was_promised(generator):
    x, condition = torch.randn(2, 4, 16, generator=generator), torch.randn(2, 16, generator=generator)
    with pytest.raises(ValueError, match="conditioned"):
        Transformer(CONFIG)(x, places(4), condition=condition)
    with pytest.raises(ValueError, match="conditioned"):
        Transformer(CONFIG, conditioned=True)(x, places(4))


def test_conditions_near_each_other_stay_apart_under_autocast(generator):
    """The modulation is made in fp32: in bf16 these two conditions would be one."""
    network = made(dtype=torch.float32, conditioned=True)
    condition = torch.full((2, 16), 1.0)
    condition[1] += 1e-3
    seen = []
    network.modulation.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.randn(2, 4, 16, generator=generator), places(4), "full", condition=condition)
    assert seen[0].dtype == torch.float32
    assert (seen[0][0] - seen[0][1]).abs().max() > 1e-4
