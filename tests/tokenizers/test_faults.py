"""Eight faults that tokenizers of other systems have had, each put back here, and seen.

Every check below passes, and fails as soon as its fault is planted: it cannot pass by chance or out of blindness.

| fault | where it was | what it does |
|---|---|---|
| the commitment's weight on the codebook's term | taming's `legacy` default | the encoder is held four times too hard |
| revived codes overwritten by the running mean | EnCodec | dead codes stay dead |
| sums and counts that start apart | k-means: sums are centroids, counts sizes | codes shrink after a step |
| losses taken after the straight-through | hand-written VQs | they are zero, and pull nowhere |
| residual stages without commitment | its straight-through output is taken off | later stages lose the encoder |
| the gradient multiplied by the stages | their straight-through outputs are summed | the encoder's step is too long |
| statistics of one rank alone | EMA codebooks under DDP | every rank has a codebook of its own |
| a start from data in evaluation | start on the first forward | what is looked at changes the model |
| the start forgotten on resume | a flag outside the buffers | the codebook starts anew |
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tests.training.small_run import CPU, small_run, with_batches
from tests.training.test_resume import stopping_at
from torch import Tensor

from smalti.data.batch import Batch
from smalti.term import Term
from smalti.tokenizers.bottlenecks import Quantized
from smalti.tokenizers.bottlenecks.rvq import RVQ, RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQ, VQConfig, straight_through
from smalti.training.loop import _Fit, fit
from smalti.training.ranks import Ranks


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step(vq: VQ, z: Tensor) -> None:
    vq.after_step({name: each.value for name, each in vq(z).statistics.items()})


def slopes(bottleneck: VQ | RVQ, z: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the bottleneck's terms to the encoder's output, and that of `vectors` with ones upstream."""
    z = z.clone().requires_grad_()
    quantized = bottleneck(z)
    terms = sum(term.coefficient * term.sum / term.weight for term in quantized.terms)
    held = torch.autograd.grad(terms, z, retain_graph=True, allow_unused=True)[0] if isinstance(terms, Tensor) else None
    through, *_ = torch.autograd.grad(quantized.vectors.sum(), z)
    return torch.zeros_like(z) if held is None else held, through


# --- the commitment's weight -----------------------------------------------------------------------------------------


def check_weights(_: Path) -> None:
    vq, z = VQ(VQConfig(codes=6, dim=3, learn="gradient", commitment=0.25)), drawn(2, 4, 3).requires_grad_()
    quantized = vq(z)
    loss = sum(term.coefficient * term.sum / term.weight for term in quantized.terms)
    to_encoder, to_codebook = torch.autograd.grad(loss, [z, vq.codebook])
    error = z.detach() - vq.lookup(quantized.codes).detach()
    expected = torch.zeros(6, 3).index_add_(0, quantized.codes.flatten(), -2 * error.flatten(0, 1) / z.numel())
    torch.testing.assert_close(to_encoder, 0.25 * 2 * error / z.numel())
    torch.testing.assert_close(to_codebook, expected)


def plant_weights(patch: pytest.MonkeyPatch) -> None:
    quantize = VQ.quantize

    def legacy(self, z):
        quantized, codes, (commitment, codebook), statistics = quantize(self, z)
        swapped = [
            Term(commitment.name, commitment.sum, commitment.weight, codebook.coefficient),
            Term(codebook.name, codebook.sum, codebook.weight, commitment.coefficient),
        ]
        return quantized, codes, swapped, statistics

    patch.setattr(VQ, "quantize", legacy)


# --- revival ---------------------------------------------------------------------------------------------------------


def dead_and_alive() -> VQ:
    """Eight codes, of which the first four are where no latent is, and were long unused."""
    vq = VQ(VQConfig(codes=8, dim=3, revive_every=2, decay=0.9)).train()
    far = torch.tensor([1e6] * 4 + [0.0] * 4)[:, None]
    vq.codebook.copy_(drawn(8, 3) + far)
    vq.counts.copy_(torch.tensor([1e-3] * 4 + [2.0] * 4))
    vq.sums.copy_(vq.codebook * vq.counts[:, None])
    return vq


def check_revival(_: Path) -> None:
    vq = dead_and_alive()
    for seed in range(3):  # revived in the second step, and a third that could take them back
        step(vq, drawn(16, 9, 3, seed=seed))
    assert (vq.codebook.norm(dim=1) < 10).all()
    assert len(vq(drawn(64, 9, 3, seed=99)).codes.unique()) == 8


def plant_overwritten_revival(patch: pytest.MonkeyPatch) -> None:
    def place(self, which, vectors, counts):
        self.codebook[which] = vectors  # and the running sums know nothing of it

    patch.setattr(VQ, "_place", place)


# --- the start -------------------------------------------------------------------------------------------------------


def check_start(_: Path) -> None:
    vq, z = VQ(VQConfig(codes=6, dim=3, revive_every=0)).train(), drawn(1, 600, 3) + 5
    vq.initialise(z[0])
    before = vq.codebook.clone()
    step(vq, z)
    assert (vq.codebook - before).norm(dim=1).max() < 0.05


def plant_start_apart(patch: pytest.MonkeyPatch) -> None:
    place = VQ._place

    def apart(self, which, vectors, counts):
        place(self, which, vectors, counts)
        self.sums[which] = vectors

    patch.setattr(VQ, "_place", apart)


# --- losses ----------------------------------------------------------------------------------------------------------


def check_losses(_: Path) -> None:
    vq, z = VQ(VQConfig(codes=6, dim=3)), drawn(2, 4, 3)
    quantized = vq(z)
    error = z - vq.lookup(quantized.codes)
    torch.testing.assert_close(quantized.terms[0].sum, error.square().sum())
    torch.testing.assert_close(slopes(vq, z)[0], 0.25 * 2 * error / z.numel())


def plant_losses_afterwards(patch: pytest.MonkeyPatch) -> None:
    quantize = VQ.quantize

    def late(self, z):
        quantized, codes, (commitment, *_), statistics = quantize(self, z)
        error = (straight_through(z, quantized) - quantized).square().sum()
        return quantized, codes, [Term("commitment", error, commitment.weight, commitment.coefficient)], statistics

    patch.setattr(VQ, "quantize", late)


# --- residual stages -------------------------------------------------------------------------------------------------


def residual() -> RVQ:
    rvq = RVQ(RVQConfig(codes=5, dim=3, stages=3, commitment=0.25)).train()
    rvq.initialise(drawn(100, 3))
    return rvq


def check_stage_commitment(_: Path) -> None:
    rvq, z = residual(), drawn(2, 4, 3, seed=1)
    expected, rest = torch.zeros_like(z), z
    for stage in rvq.stages:
        rest = rest - stage.codebook[torch.cdist(rest, stage.codebook[None]).argmin(-1)]
        expected += 0.25 * 2 * rest / z.numel()
    torch.testing.assert_close(slopes(rvq, z)[0], expected)


def check_stages_upstream(_: Path) -> None:
    assert torch.equal(slopes(residual(), drawn(2, 4, 3, seed=1))[1], torch.ones(2, 4, 3))


def summed(self: RVQ, z: Tensor, detached: bool) -> Quantized:
    """A residual quantizer as it is often written: a straight-through at every stage."""
    rest, total, terms = z, torch.zeros_like(z), []
    for stage in self.stages:
        quantized, _, found, _ = stage.quantize(rest)
        quantized = straight_through(rest, quantized)
        rest = rest - (quantized.detach() if detached else quantized)
        total = total + quantized
        terms += found
    return Quantized(total, None, terms)


def plant_straight_through_residual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RVQ, "forward", lambda self, z: summed(self, z, detached=False))


def plant_summed_straight_through(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RVQ, "forward", lambda self, z: summed(self, z, detached=True))


# --- ranks -----------------------------------------------------------------------------------------------------------


class Mirror(Ranks):
    """One of two ranks whose other half sees the very same examples."""

    def sum(self, value: Tensor) -> Tensor:
        return 2 * value

    def gather(self, value: Tensor) -> Tensor:
        return torch.cat([value, value])

    def copy_from_first(self, module: torch.nn.Module) -> None:
        pass


def twice(batch: Batch) -> Batch:
    half = torch.arange(len(batch.rows) // 2).repeat(2)
    return Batch(batch.step, batch.rows[half], batch.indices[half], batch.x[half], seed=batch.seed)


def check_ranks(folder: Path) -> None:
    """Two ranks with the same half batch are one process with that half twice."""
    one, run = small_run(folder / "one", "tokenizer", steps=6)
    fit(one, with_batches(run, twice), CPU)
    ranks = Mirror(0, 2)
    both, run = small_run(folder / "both", "tokenizer", ranks, steps=6)
    fit(both, run, CPU, ranks)
    ours, theirs = both.state_dict(), one.state_dict()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def plant_lone_statistics(patch: pytest.MonkeyPatch) -> None:
    merged = _Fit._merged

    def alone(self, parts):
        ranks, self.ranks = self.ranks, Ranks()
        value = merged(self, parts)
        self.ranks = ranks
        return value

    patch.setattr(_Fit, "_merged", alone)


# --- what starts from data -------------------------------------------------------------------------------------------


def check_evaluation(_: Path) -> None:
    vq = VQ(VQConfig(codes=6, dim=3)).eval()
    before = {name: value.clone() for name, value in vq.state_dict().items()}
    vq(drawn(2, 40, 3))
    assert all(torch.equal(value, before[name]) for name, value in vq.state_dict().items())


def plant_start_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    forward = VQ.forward

    def starting(self, z, moment=None):
        if not getattr(self, "started", False):
            self.initialise(z.flatten(0, 1))
            self.started = True
        return forward(self, z, moment)

    patch.setattr(VQ, "forward", starting)


def check_resume(folder: Path) -> None:
    whole, run = small_run(folder / "whole", "tokenizer", steps=12)
    fit(whole, run, CPU)
    cut, run = small_run(folder / "cut", "tokenizer", steps=12)
    assert fit(cut, with_batches(run, stopping_at(9)), CPU).step == 10
    cut, run = small_run(folder / "cut", "tokenizer", steps=12)
    assert fit(cut, run, CPU).finished
    codebook = cut.tokenizer.bottleneck.codebook
    assert torch.equal(codebook, whole.tokenizer.bottleneck.codebook)


def plant_forgotten_start(patch: pytest.MonkeyPatch) -> None:
    train = _Fit._train
    patch.setattr(_Fit, "_train", lambda self, resumed: train(self, False))


# ---------------------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    check: Callable[[Path], None]
    plant: Callable[[pytest.MonkeyPatch], None]


FAULTS = {
    "the commitment's weight on the codebook's term": Fault(check_weights, plant_weights),
    "revived codes overwritten by the running mean": Fault(check_revival, plant_overwritten_revival),
    "sums and counts that start apart": Fault(check_start, plant_start_apart),
    "losses taken after the straight-through": Fault(check_losses, plant_losses_afterwards),
    "residual stages without commitment": Fault(check_stage_commitment, plant_straight_through_residual),
    "the gradient multiplied by the stages": Fault(check_stages_upstream, plant_summed_straight_through),
    "statistics of one rank alone": Fault(check_ranks, plant_lone_statistics),
    "a start from data in evaluation": Fault(check_evaluation, plant_start_in_evaluation),
    "the start forgotten on resume": Fault(check_resume, plant_forgotten_start),
}
faults = pytest.mark.parametrize("fault", FAULTS)


@faults
def test_it_is_not_here(fault, tmp_path):
    FAULTS[fault].check(tmp_path)


@faults
def test_put_back_it_is_seen(fault, tmp_path, monkeypatch):
    FAULTS[fault].plant(monkeypatch)
    with pytest.raises(AssertionError):
        FAULTS[fault].check(tmp_path)


def test_the_faults_are_those_of_the_table():
    rows = [line.split("|")[1].strip() for line in (__doc__ or "").splitlines() if line.startswith("|")]
    assert rows[2:] == list(FAULTS)
