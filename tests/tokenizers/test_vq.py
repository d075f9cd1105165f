from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smalti.tokenizers.bottlenecks.vq import VQ, VQConfig, k_means, nearest_code


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(**settings) -> VQ:
    """A codebook of drawn codes, as if each had been chosen twice a step."""
    vq = VQ(VQConfig(**{"codes": 6, "dim": 3, **settings})).train()
    codes = drawn(vq.size, vq.in_width, seed=7)
    vq._place(torch.arange(vq.size), codes, torch.full((vq.size,), 2.0))
    return vq


def seen(vq: VQ, z: Tensor) -> dict[str, Tensor]:
    return {key: each.value for key, each in vq(z).statistics.items()}


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 6), st.integers(1, 60))
@settings(max_examples=50)
def test_nearest_code_is_the_naive_arg_min_in_chunks_of_any_size(n, codes, width, chunk):
    vectors, codebook = drawn(n, width, seed=n).double(), drawn(codes, width, seed=codes + 100).double()
    naive = torch.cdist(vectors, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_code(vectors, codebook, chunk), naive)


def test_nearest_code_never_holds_more_than_a_chunk(monkeypatch):
    sizes, addmm = [], torch.addmm

    def watched(*args, **kwargs):
        sizes.append((out := addmm(*args, **kwargs)).numel())
        return out

    monkeypatch.setattr(torch, "addmm", watched)
    nearest_code(drawn(100, 3), drawn(7, 3), chunk=50)
    assert max(sizes) <= 50


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
    vectors = drawn(60, 3).double()
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


def test_the_start_from_real_latents_holds_when_nothing_moves():
    """Sums and counts start together: where sums are centroids and counts are not 1, one step shrinks every code."""
    vq = VQ(VQConfig(codes=6, dim=3, revive_every=0)).train()
    z = drawn(1, 600, 3) + 5
    vq.initialise(z[0])
    before = vq.codebook.clone()
    vq.after_step(seen(vq, z))
    assert (vq.codebook - before).norm(dim=1).max() < 0.05
    assert (vq.codebook.norm(dim=1) > 5).all()


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


@pytest.mark.parametrize("learn", ["ema", "gradient"])
def test_dead_codes_are_revived_and_live(learn):
    """In systems where the running mean overwrites a revived code in the same step, dead codes stay dead."""
    vq = made(codes=8, learn=learn, revive_every=2, decay=0.9)
    with torch.no_grad():
        vq._place(torch.arange(4), torch.full((4, 3), 1e3), torch.full((4,), 1e-3))  # nothing will ever choose these
    near = lambda: (vq.codebook.detach()[:4].norm(dim=1) < 10).tolist()  # noqa: E731
    vq.after_step(seen(vq, drawn(16, 9, 3, seed=1)))
    assert near() == [False] * 4  # not yet its step
    vq.after_step(seen(vq, drawn(16, 9, 3, seed=2)))
    assert near() == [True] * 4
    placed = vq.codebook.detach()[:4].clone()
    vq.after_step(seen(vq, drawn(16, 9, 3, seed=3)))
    assert near() == [True] * 4
    assert (vq.codebook.detach()[:4] - placed).norm(dim=1).max() < 0.5  # the next mean moves them, and not far
    for step in range(4, 40):
        vq.after_step(seen(vq, drawn(16, 9, 3, seed=step)))
    assert len(vq(drawn(64, 9, 3, seed=99)).codes.unique()) == 8


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
    vq, z = made(), drawn(1, 50, 3)
    one = seen(vq, z)
    assert torch.equal(seen(vq, z)["candidates"], one["candidates"])
    vq.after_step(one)
    assert not torch.equal(seen(vq, z)["candidates"], one["candidates"])


def test_what_moves_by_statistics_travels_with_the_weights():
    assert {"codebook", "counts", "sums", "steps"} == set(made().state_dict())
