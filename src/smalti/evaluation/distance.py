"""How far two sets of signals are apart, measured on their features or pixels, with flat memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from smalti.errors import UserError

AT_ONCE = 1 << 22  # distances held in memory at a time
SPARE = 8  # neighbours looked at beyond k, for the products' rounding to be harmless


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (Heusel et al. 2017), as the usual squared one.

    a (N, F), b (M, F), any float; computed in float64 with unbiased covariances. It depends on the feature network
    and grows as sets get smaller: only figures with the same network and the same N and M compare. Raises UserError
    for fewer than two rows, ValueError for different F.
    """
    _check(a, b, least=2)
    a, b = a.double(), b.double()
    return frechet_of_gaussians(a.mean(0), _covariance(a), b.mean(0), _covariance(b))


def frechet_of_gaussians(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), for means (F,) and covariances (F, F), in float64.

    tr (C_a C_b)^½ is the sum of the square roots of the eigenvalues of S C_b S, S the symmetric root of C_a: a
    symmetric problem, steady where covariances are singular, as they are with fewer examples than features.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = root @ cov_b @ root
    shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return max(0.0, distance.item())


def precision_recall_density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> dict[str, float]:
    """Two sets of features compared by their neighbourhoods: real (N, F), fake (M, F).

    The neighbourhood of a point is the open ball that reaches to its k-th nearest neighbour within its own set.
    precision: share of fakes inside any real neighbourhood; recall: share of reals inside any fake one
    (Kynkäänniemi et al. 2019). density: real neighbourhoods around a fake, divided by k (may exceed 1); coverage:
    share of reals with a fake inside their neighbourhood (Naeem et al. 2020). Raises UserError unless both sets
    have more than k rows.
    """
    _check(real, fake, least=k + 1)
    real, fake = real.double(), fake.double()
    real_reach, fake_reach = _reach(real, k), _reach(fake, k)
    in_any_real = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    around = recalled = covered = 0
    for rows, distances in _distances(real, fake):
        inside = distances < real_reach[rows, None]  # (rows, M)
        in_any_real |= inside.any(0)
        around += int(inside.sum())
        covered += int(inside.any(1).sum())
        recalled += int((distances < fake_reach).any(1).sum())
    return {
        "precision": in_any_real.double().mean().item(),
        "recall": recalled / len(real),
        "density": around / (k * len(fake)),
        "coverage": covered / len(real),
    }


def nearest(queries: Tensor, base: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k nearest rows of `base` for each query, by Euclidean distance: -> distances, indices, both (Q, k).

    queries (Q, *shape), base (N, *shape), any real dtype, uint8 pixels too; distances are float32, nearest first. One
    product finds a few more than k candidates, whose distances are then taken anew by subtraction, so that an exact
    copy has distance 0. Raises UserError when base has fewer than k rows.
    """
    queries, base = queries.flatten(1), base.flatten(1)
    _check(queries, base, least=0)
    if len(base) < k:
        raise UserError(f"{k} nearest neighbours asked for among {len(base)}")
    candidates = min(k + SPARE, len(base))
    middle = _mean(base)  # distances do not change, but centred rows lose fewer digits in the product
    queries_centred = queries.float() - middle
    best = torch.full((len(queries), candidates), torch.inf, device=queries.device)
    best_at = torch.zeros(len(queries), candidates, dtype=torch.int64, device=queries.device)
    for rows in _slices(len(base), max(1, AT_ONCE // max(len(queries), queries.shape[1], 1))):
        piece = base[rows].float() - middle
        # |q - b|² without |q|², which is the same for all b
        score = torch.addmm(piece.square().sum(1), queries_centred, piece.T, alpha=-2)  # (Q, rows)
        near, at = score.topk(min(candidates, score.shape[1]), dim=1, largest=False)
        best, order = torch.cat([best, near], 1).sort(dim=1, stable=True)
        best = best[:, :candidates]
        best_at = torch.cat([best_at, at + rows.start], 1).gather(1, order[:, :candidates])
    best_at = best_at.sort(dim=1).values  # equal distances then come in the order of the base
    exact = torch.cat(
        [
            (queries[rows].double()[:, None] - base[best_at[rows]].double()).square().sum(2).sqrt()
            for rows in _slices(len(queries), max(1, AT_ONCE // max(candidates * queries.shape[1], 1)))
        ]
        or [best.double()]
    )
    distances, order = exact.sort(dim=1, stable=True)
    return distances[:, :k].float(), best_at.gather(1, order[:, :k])


def _check(a: Tensor, b: Tensor, least: int) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two sets of rows of one width are compared, not {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise UserError(f"{len(a)} and {len(b)} examples are too few to compare: this needs at least {least} of each")


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _mean(x: Tensor) -> Tensor:
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for rows in _slices(len(x), max(1, AT_ONCE // max(x.shape[1], 1))):
        total += x[rows].double().sum(0)
    return (total / len(x)).float()


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


def _distances(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of a at a time, and their Euclidean distances to all of b."""
    for rows in _slices(len(a), max(1, AT_ONCE // len(b))):
        yield rows, torch.cdist(a[rows], b, compute_mode="donot_use_mm_for_euclid_dist")


def _reach(x: Tensor, k: int) -> Tensor:
    """(N,): how far each row is from its k-th nearest other row."""
    reach = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for rows, distances in _distances(x, x):
        distances[torch.arange(len(distances)), torch.arange(rows.start, rows.stop)] = torch.inf
        reach[rows] = distances.kthvalue(k, dim=1).values
    return reach
