from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from smalti.tokenizers.bottlenecks import vq as vq_module
from smalti.tokenizers.bottlenecks.vq import VQ, VQConfig, k_means, nearest_code, rotated


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def made(**settings) -> VQ:
    """A codebook of drawn codes, as if each had been chosen twice a step."""
    torch.manual_seed(0)  # of the map that some ways of learning have
    vq = VQ(VQConfig(**{"codes": 6, "dim": 3, **settings})).train()
    codes = drawn(vq.size, vq.in_width, seed=7)
    vq._place(torch.arange(vq.size), codes, torch.full((vq.size,), 2.0))
    return vq


def seen(vq: VQ, z: Tensor) -> dict[str, Tensor]:
    return {key: each.value for key, each in vq(z).statistics.items()}


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), st.integers(1, 60), st.integers(1, 20))
@settings(max_examples=100)
def test_nearest_code_is_the_naive_arg_min_in_chunks_and_tiles_of_any_size(n, codes, width, chunk, tile):
    """On whole numbers, which fp32 computes exactly: where many codes are equally near, too."""
    vectors, codebook = drawn(n, width, seed=n).mul(2).round(), drawn(codes, width, seed=codes + 100).mul(2).round()
    distances = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vq_module, "TILE", tile)
        assert torch.equal(nearest_code(vectors, codebook, chunk), distances.argmin(1))


@pytest.mark.parametrize("tile", [1, 2, 3, 512])
def test_of_equally_near_codes_the_first_is_chosen(tile, monkeypatch):
    monkeypatch.setattr(vq_module, "TILE", tile)
    codebook = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    vectors = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]])
    for chunk in (1, 5, 7, 1000):
        assert nearest_code(vectors, codebook, chunk).tolist() == [0, 1, 0, 3, 0]


@pytest.mark.parametrize("away", [0.0, 10.0, 1000.0])
def test_in_fp32_no_other_code_is_nearer_than_rounding(away):
    vectors, codebook = drawn(500, 8) + away, drawn(300, 8, seed=1) + away
    distances = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    chosen = distances.gather(1, nearest_code(vectors, codebook)[:, None]).squeeze(1)
    norms = codebook.double().square().sum(1).amax()
    assert (chosen - distances.amin(1)).max() <= 8 * torch.finfo(torch.float32).eps * norms


def test_nearest_code_of_nothing():
    assert nearest_code(torch.empty(0, 3), drawn(7, 3)).shape == (0,)


def test_a_step_with_many_codes_stays_small():
    """4,096 vectors by 8,192 codes are 128 MiB of distances; as one-hot rows as much again.

    Measured by torch's profiler, which records every allocation on the processor while it happens.
    """
    vq = VQ(VQConfig(codes=8192, dim=64, revive_every=1)).train()
    z = drawn(16, 256, 64).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as watched:
        quantized = vq(z)
        (quantized.vectors.sum() + quantized.terms[0].sum).backward()
        vq.after_step({key: each.value for key, each in quantized.statistics.items()})
    assert watched.profiler is not None
    moves = [(e.start_ns(), e.nbytes()) for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([size for _, size in sorted(moves)]).cumsum(0)
    assert 8 << 20 < held.max() < 32 << 20, f"{held.max() / 2**20:.1f} MiB"


@pytest.mark.parametrize("tile", [1, 3, 512])
def test_nearest_code_never_holds_more_than_a_chunk(tile, monkeypatch):
    monkeypatch.setattr(vq_module, "TILE", tile)
    sizes, product = [], vq_module.full_product

    def watched(*args):
        sizes.append((out := product(*args)).numel())
        return out

    monkeypatch.setattr(vq_module, "full_product", watched)
    nearest_code(drawn(100, 3), drawn(7, 3), chunk=50)
    assert max(sizes) <= 50
    assert sum(sizes) == 700


def test_k_means_finds_clusters_that_are_there():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * drawn(4, 50, 2)).flatten(0, 1)
    best = torch.inf
    for seed in range(5):
        centroids, counts = k_means(vectors, 4, seed=seed)
        assert counts.sum() == 200
        best = min(best, *((centroids[list(order)] - centres).norm() for order in permutations(range(4))))
    assert best < 0.1


def test_k_means_is_lloyds_algorithm():
    vectors = drawn(60, 3)
    ours, counts = k_means(vectors, 5, rounds=4, seed=2)
    centroids = vectors[torch.randperm(60, generator=torch.Generator().manual_seed(2))[:5]].clone()
    for _ in range(4):
        chosen = torch.cdist(vectors, centroids).argmin(1)
        for k in range(5):
            if (chosen == k).any():
                centroids[k] = vectors[chosen == k].mean(0)
    torch.testing.assert_close(ours, centroids)
    assert torch.equal(counts.long(), torch.bincount(chosen, minlength=5))


def test_k_means_of_fewer_vectors_than_centroids_leaves_no_two_equal():
    centroids, counts = k_means(drawn(3, 2), 8)
    assert len(centroids.unique(dim=0)) == 8
    assert counts.sum() == 3


def test_k_means_of_a_single_number():
    centroids, counts = k_means(torch.tensor([[2.0]]), 3)
    torch.testing.assert_close(centroids, torch.full((3, 1), 2.0), atol=1e-3, rtol=0)
    assert counts.sum() == 1


def test_spherical_k_means_is_lloyds_algorithm_on_directions():
    vectors = F.normalize(drawn(60, 3), dim=1)
    ours, counts = k_means(vectors, 5, rounds=4, seed=2, spherical=True)
    centroids = vectors[torch.randperm(60, generator=torch.Generator().manual_seed(2))[:5]].clone()
    for _ in range(4):
        chosen = (vectors @ centroids.t()).argmax(1)
        for k in range(5):
            if (chosen == k).any():
                mean = vectors[chosen == k].mean(0)
                centroids[k] = mean / mean.norm()
    torch.testing.assert_close(ours, centroids)
    assert torch.equal(counts.long(), torch.bincount(chosen, minlength=5))


def test_the_start_from_real_latents_holds_when_nothing_moves():
    """Sums and counts start together: where sums are centroids and counts are not 1, one step shrinks every code."""
    vq = VQ(VQConfig(codes=6, dim=3, revive_every=0)).train()
    z = drawn(1, 600, 3) + 5
    vq.initialise(z[0])
    before = vq.codebook.clone()
    vq.after_step(seen(vq, z))
    assert (vq.codebook - before).norm(dim=1).max() < 0.05
    assert (vq.codebook.norm(dim=1) > 5).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_codebook_as_it_is_built_holds_when_nothing_moves(metric):
    """Sums and counts start together there too: an empty count, and the first step would throw every code far out."""
    vq = VQ(VQConfig(codes=6, dim=3, metric=metric, revive_every=0)).train()
    before = vq.table().clone()
    vq.after_step(seen(vq, before[None]))
    torch.testing.assert_close(vq.table(), before)


def test_the_running_means_are_those_written_by_hand():
    vq, decay = made(revive_every=0, decay=0.9), 0.9
    book = vq.codebook.double().clone()
    counts, sums = torch.full((6,), 2.0, dtype=torch.float64), book * 2
    for step in range(8):
        z = drawn(4, 5, 3, seed=step)
        vq.after_step(seen(vq, z))
        chosen = torch.cdist(z.double().flatten(0, 1), book).argmin(1)
        for k in range(6):
            mine = z.double().flatten(0, 1)[chosen == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(mine)
            sums[k] = decay * sums[k] + (1 - decay) * mine.sum(0)
        book = sums / counts[:, None]
        torch.testing.assert_close(vq.codebook.double(), book, atol=1e-4, rtol=1e-4)


def test_a_code_nobody_chooses_stays_where_it_is():
    vq = made(revive_every=0, decay=0.9)
    before = vq.codebook.clone()
    nothing = {"counts": torch.zeros(6), "sums": torch.zeros(6, 3), "candidates": torch.zeros(8, 3)}
    for _ in range(1500):
        vq.after_step(nothing)
    torch.testing.assert_close(vq.codebook, before)


def slopes(vq: VQ, z: Tensor, term: str) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of one loss term to the encoder's output and to the codebook."""
    z = z.clone().requires_grad_()
    loss = next(each for each in vq(z).terms if each.name == term)
    inputs = [z, vq.codebook] if vq.codebook.requires_grad else [z]
    found = torch.autograd.grad(loss.sum / loss.weight, inputs, allow_unused=True)
    return found[0], found[1] if len(found) > 1 else None


@pytest.mark.parametrize("learn", ["ema", "gradient"])
def test_the_commitment_moves_the_encoder_alone(learn):
    vq, z = made(learn=learn), drawn(2, 4, 3)
    to_encoder, to_codebook = slopes(vq, z, "commitment")
    codes = vq(z).codes
    torch.testing.assert_close(to_encoder, 2 * (z - vq.lookup(codes)) / z.numel())
    assert to_codebook is None


def test_the_codebook_term_moves_the_codebook_alone():
    vq, z = made(learn="gradient"), drawn(2, 4, 3)
    to_encoder, to_codebook = slopes(vq, z, "codebook")
    assert to_encoder is None
    chosen, expected = vq(z).codes.flatten(), torch.zeros(6, 3)
    for vector, code in zip(z.flatten(0, 1), chosen, strict=True):
        expected[code] += 2 * (vq.codebook[code].detach() - vector) / z.numel()
    torch.testing.assert_close(to_codebook, expected)


@pytest.mark.parametrize("learn", ["ema", "gradient"])
def test_the_gradient_passes_straight_through(learn):
    vq, z = made(learn=learn), drawn(2, 4, 3).requires_grad_()
    upstream, quantized = drawn(2, 4, 3, seed=9), vq(z)
    assert torch.equal(torch.autograd.grad(quantized.vectors, z, upstream)[0], upstream)
    torch.testing.assert_close(quantized.vectors, vq.lookup(quantized.codes))


@pytest.mark.parametrize("learn", ["ema", "gradient"])
def test_losses_are_taken_before_the_straight_through(learn):
    """Afterwards the difference would be zero. The weights are the paper's: 0.25 on the encoder, 1 on the codebook."""
    vq, z = made(learn=learn), drawn(2, 4, 3)
    quantized = vq(z)
    error = (z - vq.lookup(quantized.codes)).square().sum()
    coefficients = {term.name: term.coefficient for term in quantized.terms}
    assert coefficients == {"commitment": 0.25} | ({"codebook": 1.0} if learn == "gradient" else {})
    for term in quantized.terms:
        torch.testing.assert_close(term.sum, error)
        assert term.sum > 0
        assert term.weight == z.numel()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("learn", ["ema", "gradient", "simvq"])
def test_dead_codes_are_revived_and_live(learn, metric):
    """In systems where the running mean overwrites a revived code in the same step, dead codes stay dead."""
    vq = made(codes=8, learn=learn, metric=metric, revive_every=2, decay=0.9)
    latents = lambda seed: drawn(16, 9, 3, seed=seed) + torch.tensor([5.0, 0, 0])  # noqa: E731
    with torch.no_grad():  # four that nothing will ever choose
        vq._place(torch.arange(8), vq.latent(latents(0)[0, :8]), torch.full((8,), 2.0))
        vq._place(torch.arange(4), vq.latent(torch.tensor([[-1e3, 0, 0]]).expand(4, 3)), torch.full((4,), 1e-3))
    near = lambda: (vq.table()[:4, 0] > 0).tolist()  # noqa: E731
    vq.after_step(seen(vq, latents(1)))
    assert near() == [False] * 4  # not yet its step
    vq.after_step(seen(vq, latents(2)))
    assert near() == [True] * 4
    placed = vq.table().detach()[:4].clone()
    vq.after_step(seen(vq, latents(3)))
    assert near() == [True] * 4
    assert (vq.table().detach()[:4] - placed).norm(dim=1).max() < 0.5  # the next mean moves them, and not far
    for step in range(4, 40):
        vq.after_step(seen(vq, latents(step)))
    assert len(vq(latents(99).repeat(4, 1, 1)).codes.unique()) == 8


def test_revived_codes_are_real_latents_at_the_uniform_rate():
    vq = made(codes=4, revive_every=1, decay=0.5)
    vq._place(torch.tensor([3]), torch.full((1, 3), 1e3), torch.tensor([0.0]))
    z = drawn(6, 9, 3)
    vq.after_step(seen(vq, z))
    assert (vq.codebook[3] == z.flatten(0, 1)).all(1).any()
    torch.testing.assert_close(vq.counts[3], vq.counts[:3].sum() / 4)
    torch.testing.assert_close(vq.sums[3], vq.codebook[3] * vq.counts[3])


def test_more_dead_codes_than_candidates():
    vq = made(codes=64, revive_every=1, decay=0.5, revive_below=0.5)
    vq._place(torch.arange(60), torch.full((60, 3), 1e3), torch.zeros(60))
    figures = vq.after_step(seen(vq, drawn(2, 3, 3)))
    assert (vq.codebook.norm(dim=1) < 10).sum() == 4 + 6
    assert figures["codes_dead"] == 60


def test_revival_does_not_depend_on_how_the_batch_was_split():
    z = drawn(8, 20, 3)
    results = []
    for parts in (1, 2, 4):
        vq = made(codes=8, revive_every=1)
        vq._place(torch.arange(4), torch.full((4, 3), 1e3), torch.full((4,), 1e-3))
        found = [vq(part).statistics for part in z.chunk(parts)]
        merged = {
            key: torch.cat([each[key].value for each in found])
            if found[0][key].merge == "gather"
            else torch.stack([each[key].value for each in found]).sum(0)
            for key in found[0]
        }
        vq.after_step(merged)
        results.append(vq.codebook.clone())
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_different_steps_offer_different_latents():
    vq, z = made(revive_every=1), drawn(1, 50, 3)
    one = seen(vq, z)
    assert torch.equal(seen(vq, z)["candidates"], one["candidates"])
    vq.after_step(one)
    assert not torch.equal(seen(vq, z)["candidates"], one["candidates"])


def test_latents_are_offered_for_revival_only_when_codes_are_looked_after():
    vq = made(revive_every=3)
    offered = []
    for step in range(6):
        statistics = seen(vq, drawn(2, 4, 3, seed=step))
        offered.append("candidates" in statistics)
        vq.after_step(statistics)
    assert offered == [False, False, True] * 2


@pytest.mark.parametrize(
    ("learn", "state"),
    [
        ("ema", {"codebook", "counts", "sums", "steps"}),
        ("gradient", {"codebook", "counts", "steps"}),
        ("simvq", {"codebook", "counts", "steps", "map.weight", "map.bias"}),
    ],
)
def test_what_moves_by_statistics_travels_with_the_weights(learn, state):
    assert set(made(learn=learn).state_dict()) == state


# --- directions ------------------------------------------------------------------------------------------------------


def direction(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("learn", ["ema", "gradient", "simvq"])
def test_by_cosine_codes_have_length_1_and_the_smallest_angle_is_chosen(learn):
    vq = made(metric="cosine", learn=learn, revive_every=1)
    for step in range(3):
        z = 4 * drawn(5, 7, 3, seed=step)
        quantized = vq(z)
        angles = direction(z.double()) @ direction(vq.table().double()).t()
        assert torch.equal(quantized.codes.squeeze(-1), angles.argmax(-1))
        torch.testing.assert_close(quantized.vectors.norm(dim=-1), torch.ones(5, 7))
        torch.testing.assert_close(vq.table().norm(dim=1), torch.ones(6))
        assert torch.equal(vq(100 * z).codes, quantized.codes)
        vq.after_step({key: each.value for key, each in quantized.statistics.items()})


def test_by_cosine_the_running_means_are_those_of_directions():
    vq, decay = made(metric="cosine", revive_every=0, decay=0.9), 0.9
    book = direction(vq.codebook.double())
    vq._place(torch.arange(6), book.float(), torch.full((6,), 2.0))
    sums = book * 2
    for step in range(8):
        z = 3 * drawn(4, 5, 3, seed=step)
        vq.after_step(seen(vq, z))
        units = direction(z.double()).flatten(0, 1)
        chosen = (units @ book.t()).argmax(1)
        for k in range(6):
            sums[k] = decay * sums[k] + (1 - decay) * units[chosen == k].sum(0)
        book = direction(sums)
        torch.testing.assert_close(vq.table().double(), book, atol=1e-4, rtol=1e-4)


def test_by_cosine_gradients_reach_the_encoder_across_its_direction_alone():
    """The Jacobian of z / |z| is (1 - u uᵀ) / |z|."""
    vq, z = made(metric="cosine"), drawn(2, 4, 3).requires_grad_()
    quantized, upstream = vq(z), drawn(2, 4, 3, seed=9)
    unit, length = direction(z.detach()), z.detach().norm(dim=-1, keepdim=True)
    across = lambda slope: (slope - unit * (unit * slope).sum(-1, keepdim=True)) / length  # noqa: E731
    through, *_ = torch.autograd.grad(quantized.vectors, z, upstream, retain_graph=True)
    torch.testing.assert_close(through, across(upstream))
    term = quantized.terms[0]
    held, *_ = torch.autograd.grad(term.sum / term.weight, z)
    torch.testing.assert_close(held, across(2 * (unit - vq.lookup(quantized.codes)) / z.numel()))


def test_by_cosine_the_start_is_of_length_1_and_holds():
    vq = VQ(VQConfig(codes=6, dim=3, metric="cosine", revive_every=0)).train()
    z = 9 * drawn(1, 600, 3)
    vq.initialise(z[0])
    before = vq.table().clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(before, k_means(direction(z[0]), 6, spherical=True)[0])
    vq.after_step(seen(vq, z))
    assert (vq.table() - before).norm(dim=1).max() < 0.05


# --- a frozen codebook seen through a map ----------------------------------------------------------------------------


def test_a_frozen_codebook_gets_no_gradient_and_the_map_all_of_it():
    vq, z = made(learn="simvq"), drawn(2, 4, 3)
    assert {name for name, _ in vq.named_parameters()} == {"map.weight", "map.bias"}
    quantized = vq(z)
    terms = {term.name: term for term in quantized.terms}
    (terms["codebook"].sum / terms["codebook"].weight).backward()
    weight, bias = torch.zeros(3, 3), torch.zeros(3)
    for vector, code in zip(z.flatten(0, 1), quantized.codes.flatten(), strict=True):
        error = 2 * (vq.table()[code].detach() - vector) / z.numel()
        weight, bias = weight + torch.outer(error, vq.codebook[code]), bias + error
    torch.testing.assert_close(vq.map.weight.grad, weight)
    torch.testing.assert_close(vq.map.bias.grad, bias)


def test_one_chosen_code_moves_all_codes():
    vq = made(learn="simvq", revive_every=0)
    z = vq.table().detach()[:1, None] + 0.01
    assert vq(z).codes.tolist() == [[[0]]]
    before = vq.table().detach()
    next(term for term in vq(z).terms if term.name == "codebook").sum.backward()
    with torch.no_grad():
        for parameter in vq.parameters():
            parameter -= 0.1 * parameter.grad
    frozen = vq.codebook.clone()
    vq.after_step(seen(vq, z))
    assert torch.equal(vq.codebook, frozen)
    assert ((vq.table() - before).norm(dim=1) > 1e-4).all()


def test_the_map_starts_with_the_mean_and_covariance_of_the_latents():
    vq = VQ(VQConfig(codes=20_000, dim=3, learn="simvq"))
    latents = drawn(500, 3) @ torch.tensor([[2.0, 0, 0], [1, 0.5, 0], [0, 1, 0.1]]) + torch.tensor([3.0, -1, 0])
    vq.initialise(latents)
    torch.testing.assert_close(vq.map.bias, latents.mean(0))
    covariance = vq.map.weight @ vq.map.weight.t() / 3  # that of W c, when that of c is 1 / dim
    torch.testing.assert_close(covariance, latents.t().cov(correction=0), atol=1e-4, rtol=1e-4)
    codes = vq.table().detach()
    torch.testing.assert_close(codes.mean(0), latents.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(codes.t().cov(), latents.t().cov(), atol=0.2, rtol=0)


def test_the_start_of_the_map_from_latents_in_a_plane():
    vq = VQ(VQConfig(codes=64, dim=3, learn="simvq", revive_every=1, revive_below=0.9)).train()
    latents = drawn(500, 3) * torch.tensor([1.0, 1.0, 0.0])
    vq.initialise(latents)
    vq.after_step(seen(vq, latents.view(20, 25, 3)))  # with revival, though the map can hardly be turned back
    assert vq.table().isfinite().all()
    assert vq.table()[:, 2].abs().max() < 0.01


def test_a_revived_code_is_put_where_the_map_takes_it_to_the_latent():
    vq = made(codes=4, learn="simvq", revive_every=1)
    vq.counts[3] = 0
    z = drawn(6, 9, 3)
    kept = vq.codebook[:3].clone()
    vq.after_step(seen(vq, z))
    assert ((vq.table()[3] - z.flatten(0, 1)).norm(dim=1) < 1e-5).any()
    assert torch.equal(vq.codebook[:3], kept)


# --- the rotation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 8])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rotated_the_value_is_the_code(metric, width):
    vq = made(dim=width, estimator="rotation", metric=metric)
    quantized = vq(3 * drawn(2, 9, width))
    torch.testing.assert_close(quantized.vectors, vq.lookup(quantized.codes))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_rotated_the_value_is_the_code_from_every_direction(width):
    """Also from its own, from the opposite one, and from none."""
    code = drawn(1, width)
    z = torch.cat([code, 2 * code, -code, -0.5 * code, torch.zeros(1, width), 1e-12 * code])
    torch.testing.assert_close(rotated(z, code.expand_as(z)), code.expand_as(z))


@pytest.mark.parametrize("width", [2, 3, 8])
def test_rotated_the_gradient_is_turned_back_and_scaled(width):
    """Fifty et al. 2024, equation 4: q = λ R z with R = 1 - 2 r rᵀ + 2 q̂ ẑᵀ and r = (ẑ + q̂) / |ẑ + q̂|."""
    z, code = drawn(width), drawn(width, seed=1)
    start, end = direction(z), direction(code)
    between = direction(start + end)
    turn = torch.eye(width) - 2 * torch.outer(between, between) + 2 * torch.outer(end, start)
    torch.testing.assert_close(turn @ turn.t(), torch.eye(width))  # a rotation, and the one that is meant
    torch.testing.assert_close(torch.linalg.det(turn), torch.tensor(1.0))
    torch.testing.assert_close(turn @ start, end)
    upstream = drawn(width, seed=2)
    found, *_ = torch.autograd.grad(rotated(z.requires_grad_(), code), z, upstream)
    torch.testing.assert_close(found, code.norm() / z.detach().norm() * turn.t() @ upstream)


def test_rotated_the_angle_between_gradient_and_latent_is_that_between_upstream_and_code():
    vq, z = made(estimator="rotation"), drawn(2, 4, 3).requires_grad_()
    quantized, upstream = vq(z), drawn(2, 4, 3, seed=9)
    found, *_ = torch.autograd.grad(quantized.vectors, z, upstream)
    ours = F.cosine_similarity(found, z.detach(), dim=-1)
    torch.testing.assert_close(ours, F.cosine_similarity(upstream, vq.lookup(quantized.codes), dim=-1))
