"""Which examples a step sees, and the randomness that belongs to one example: pure functions of (seed, step, row).

Nothing here has state, so a resumed run, or one split over other ranks, continues as if it had never stopped. The
numbers come from a counter-based hash, not from a library's generator: they are the same on every machine and in
every version. Importing this does not import torch: the processes that draw scenes do without.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_U64 = np.uint64
_MASK = (1 << 64) - 1


def indices(length: int, batch: int, step: int, seed: int) -> Tensor:
    """int64 (batch,): the examples of global step `step`, each in [0, length).

    Examples are numbered without end; example number p belongs to epoch p // length, and every epoch is its own
    permutation of all examples. A step may straddle epochs.
    """
    import torch

    if length < 1:
        raise ValueError("an order over no examples")
    positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs, places = np.divmod(positions, length)
    chosen = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = _permutation(length, seed, int(epoch))[places[here]]
    return torch.from_numpy(chosen)


def uniform(seed: int, step: int, rows: Tensor, stream: int = 0) -> Tensor:
    """float64 in [0, 1), the shape of `rows` (int64): one number for each (seed, step, row, stream).

    `rows` are places in the global batch of the step, so the numbers do not depend on how it was split.
    """
    import torch

    return torch.from_numpy(_unit(_hash(rows.cpu().numpy().astype(_U64), seed, step, stream)))


def draws(count: int, seed: int, step: int, stream: int = 0) -> list[float]:
    """`count` numbers in [0, 1): those of `uniform` for the rows 0 … count - 1."""
    return _unit(_hash(np.arange(count, dtype=_U64), seed, step, stream)).tolist()


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.argsort(_hash(np.arange(length, dtype=_U64), seed, epoch, -1), kind="stable")


def _unit(bits: np.ndarray) -> np.ndarray:
    """The upper 53 bits as float64 in [0, 1)."""
    return (bits >> _U64(11)).astype(np.float64) * 2.0**-53


def _hash(counter: np.ndarray, *keys: int) -> np.ndarray:
    """64 well-mixed bits for every counter under these keys."""
    state = np.zeros(1, dtype=_U64)
    for key in keys:
        state = _mix(state + _U64(key & _MASK))
    return _mix(state + _mix(counter))


def _mix(bits: np.ndarray) -> np.ndarray:
    """The step and finaliser of SplitMix64 (Steele, Lea and Flood, 2014); arithmetic is modulo 2⁶⁴."""
    bits = bits + _U64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> _U64(27))) * _U64(0x94D049BB133111EB)
    return bits ^ (bits >> _U64(31))
