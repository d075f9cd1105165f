from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.image.fid import _compute_fid

from smalti.errors import UserError
from smalti.evaluation import distance
from smalti.evaluation.distance import frechet, frechet_of_gaussians, nearest, precision_recall_density_coverage


@pytest.fixture(params=[1 << 22, 50])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in one go, and in many small pieces."""
    monkeypatch.setattr(distance, "AT_ONCE", request.param)


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    m1, m2, s1, s2 = torch.rand(4, 6).double()
    expected = ((m1 - m2) ** 2 + (s1 - s2) ** 2).sum().item()
    assert frechet_of_gaussians(m1, (s1**2).diag(), m2, (s2**2).diag()) == pytest.approx(expected)


def test_frechet_of_turned_gaussians_is_that_of_the_upright_ones() -> None:
    turn, _ = torch.linalg.qr(torch.randn(5, 5).double())
    s1, s2 = torch.rand(2, 5).double()
    zero = torch.zeros(5)
    found = frechet_of_gaussians(zero, turn @ (s1**2).diag() @ turn.T, zero, turn @ (s2**2).diag() @ turn.T)
    assert found == pytest.approx(((s1 - s2) ** 2).sum().item())


def test_frechet_is_torchmetrics_s() -> None:
    a, b = torch.randn(300, 12) @ torch.randn(12, 12), torch.randn(200, 12) @ torch.randn(12, 12) + 0.5
    expected = _compute_fid(a.mean(0).double(), a.T.cov().double(), b.mean(0).double(), b.T.cov().double())
    assert frechet(a, b) == pytest.approx(expected.item(), rel=1e-4)


@given(st.integers(2, 30), st.integers(1, 12), st.floats(-50, 50), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_frechet_of_a_set_and_its_shifted_copy(rows: int, width: int, shift: float, seed: int) -> None:
    """Also with fewer rows than features, where covariances are singular."""
    a = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()
    assert frechet(a, a + shift) == pytest.approx(width * shift**2, rel=1e-6, abs=1e-5)
    assert frechet(a, a.flip(0)) == pytest.approx(0, abs=1e-5)


def test_frechet_is_the_same_both_ways() -> None:
    a, b = torch.randn(40, 6), 2 * torch.randn(30, 6) + 1
    assert frechet(a, b) == pytest.approx(frechet(b, a))


def naive_neighbourhoods(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    def reach(points: Tensor) -> list[float]:
        found = []
        for i, p in enumerate(points):
            others = sorted(math.dist(p.tolist(), q.tolist()) for j, q in enumerate(points) if j != i)
            found.append(others[k - 1])
        return found

    d = [[math.dist(r.tolist(), f.tolist()) for f in fake] for r in real]
    n, m, real_reach, fake_reach = len(real), len(fake), reach(real), reach(fake)
    return {
        "precision": sum(any(d[i][j] < real_reach[i] for i in range(n)) for j in range(m)) / m,
        "recall": sum(any(d[i][j] < fake_reach[j] for j in range(m)) for i in range(n)) / n,
        "density": sum(d[i][j] < real_reach[i] for i in range(n) for j in range(m)) / (k * m),
        "coverage": sum(min(d[i]) < real_reach[i] for i in range(n)) / n,
    }


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.usefixtures("pieces")
def test_neighbourhoods_are_those_of_a_naive_loop(k: int) -> None:
    real, fake = torch.randn(31, 3).double(), 0.7 * torch.randn(24, 3).double() + 0.6
    assert precision_recall_density_coverage(real, fake, k) == pytest.approx(naive_neighbourhoods(real, fake, k))


def test_neighbourhoods_tell_a_lost_mode_from_a_stray() -> None:
    left, right = torch.randn(200, 2), torch.randn(200, 2) + 100
    lost = precision_recall_density_coverage(torch.cat([left, right]), torch.randn(200, 2))
    stray = precision_recall_density_coverage(left, torch.cat([torch.randn(200, 2), torch.randn(200, 2) - 100]))
    assert lost["precision"] > 0.9
    assert max(lost["recall"], lost["coverage"]) < 0.6
    assert stray["recall"] > 0.9
    assert max(stray["precision"], stray["density"]) < 0.7


@given(st.integers(1, 25), st.integers(1, 25), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_nearest_is_that_of_a_sort(queries: int, base: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, b = torch.randn(queries, 2, 3, generator=generator), torch.randn(max(base, k), 2, 3, generator=generator)
    expected = torch.cdist(q.flatten(1).double(), b.flatten(1).double()).sort(dim=1, stable=True)
    distances, indices = nearest(q, b, k)
    assert torch.equal(indices, expected.indices[:, :k])
    torch.testing.assert_close(distances, expected.values[:, :k].float())


@pytest.mark.usefixtures("pieces")
def test_an_exact_copy_far_from_the_origin_is_found_at_distance_zero() -> None:
    base = torch.randint(0, 256, (400, 1, 9, 9), dtype=torch.uint8)
    queries = base[[7, 399, 0]].clone()
    queries[2, 0, 0, 0] ^= 1
    distances, indices = nearest(queries, base)
    assert indices.flatten().tolist() == [7, 399, 0]
    assert distances.flatten().tolist() == [0, 0, 1]
    shifted, where = nearest(queries.double() + 1e5, base.double() + 1e5)
    assert shifted[:2].flatten().tolist() == [0, 0]
    assert where.flatten().tolist() == [7, 399, 0]


def test_no_queries_have_no_neighbours() -> None:
    distances, indices = nearest(torch.zeros(0, 4), torch.zeros(3, 4))
    assert distances.shape == indices.shape == (0, 1)


def test_too_few_and_unlike_sets_are_errors() -> None:
    few, many = torch.zeros(5, 3), torch.zeros(9, 3)
    with pytest.raises(UserError, match="at least 6"):
        precision_recall_density_coverage(many, few, k=5)
    with pytest.raises(UserError, match="at least 2"):
        frechet(many, few[:1])
    with pytest.raises(UserError, match="among 5"):
        nearest(many, few, k=6)
    with pytest.raises(ValueError, match="one width"):
        frechet(many, torch.zeros(9, 4))
