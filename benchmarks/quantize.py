"""What one training step of a bottleneck costs, beside vector-quantize-pytorch and beside the product and argmin alone.

4,096 vectors of 64 numbers: forward, backward to the vectors, and the codebook's update, in training mode, fp32. The
peers' settings are those that do the same work: running means with decay 0.99, commitment 0.25. Extra memory is the
highest resident memory during ten steps over that before the first, each measured in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import arguments, median_seconds, table, write
from smalti.device import keep_freed_memory
from smalti.tokenizers.bottlenecks import Bottleneck
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import CHUNK, VQConfig

ROWS, VECTORS, DIM = 64, 64, 64
LEVELS = (8, 5, 5, 5)


def latents(dim: int) -> Tensor:
    """The same every time."""
    return torch.randn(ROWS, VECTORS, dim, generator=torch.Generator().manual_seed(0))


def our_step(bottleneck: Bottleneck, started: bool = True) -> Callable[[], None]:
    """One step of ours, on latents that the codes were started from."""
    z = latents(bottleneck.in_width)
    if started:
        bottleneck.initialise(z.flatten(0, 1))
    bottleneck.train()

    def step() -> None:
        leaf = z.clone().requires_grad_()
        found = bottleneck(leaf)
        terms = [term.coefficient * term.sum / term.weight for term in found.terms]
        (found.vectors.sum() + sum(terms)).backward()
        bottleneck.after_step({name: each.value for name, each in found.statistics.items()})

    return step


def their_step(peer: torch.nn.Module, dim: int) -> Callable[[], None]:
    """One step of theirs; they give (vectors, codes, loss), or (vectors, codes)."""
    z = latents(dim)
    peer.train()

    def step() -> None:
        leaf = z.clone().requires_grad_()
        found = peer(leaf)
        (found[0].sum() + (found[2].sum() if len(found) > 2 else 0)).backward()

    return step


def limit(codes: int) -> Callable[[], None]:
    """The product and argmin alone, in the chunks that ours uses."""
    z, book = latents(DIM).flatten(0, 1), torch.randn(codes, DIM)
    half, columns = book.square().sum(1) / 2, book.t()

    def search() -> None:
        for part in z.split(max(1, CHUNK // codes)):
            torch.addmm(half, part, columns, alpha=-1).argmin(1)

    return search


def made(side: str, what: str, codes: int, started: bool = True) -> Callable[[], None]:
    """The step of one side: `vq`, `rvq` (8 stages) or `fsq`."""
    if side == "ours":
        configs: dict[str, Any] = {
            "vq": VQConfig(codes=codes, dim=DIM),
            "rvq": RVQConfig(codes=codes, dim=DIM, stages=8),
            "fsq": FSQConfig(levels=LEVELS, spread=0),
            "fsq-spread": FSQConfig(levels=LEVELS),
        }
        return our_step(configs[what].build(), started)
    from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize  # type: ignore[import-untyped]

    settings: dict[str, Any] = {"dim": DIM, "codebook_size": codes, "decay": 0.99, "commitment_weight": 0.25}
    if what.startswith("fsq"):
        return their_step(FSQ(levels=list(LEVELS)), len(LEVELS))
    return their_step(VectorQuantize(**settings) if what == "vq" else ResidualVQ(num_quantizers=8, **settings), DIM)


def memory(side: str, codes: int) -> float:
    """MiB that ten steps take beyond what was there before the first: the median of five processes."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return statistics.median(pool.apply(_grown, (side, codes)) for _ in range(5))


def _grown(side: str, codes: int) -> float:
    made(side, "vq", 16)()  # what any step brings along: threads, libraries
    step = made(side, "vq", codes, started=False)  # the start would leave freed memory behind to use
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest resident memory counts anew from here
    before = _resident("VmRSS")
    for _ in range(10):
        step()
    return (_resident("VmHWM") - before) / 1024


def _resident(line: str) -> int:
    """KiB, from the process's own status."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(each.split()[1]) for each in status if each.startswith(line))


def main() -> None:
    """Measure ours, the peer and the limit in turn, and print them as ratios."""
    parser = arguments((__doc__ or "").splitlines()[0])
    options = parser.parse_args()
    repeats = 3 if options.quick else 15
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    cases = [("vq", 512), ("vq", 1024), ("vq", 8192), ("rvq", 1024), ("fsq", 1000), ("fsq-spread", 1000)]
    for what, codes in cases:
        times = {side: median_seconds(made(side, what, codes), repeats, warm_up=3) for side in ("ours", "theirs")}
        least = median_seconds(limit(codes), repeats, warm_up=3) if not what.startswith("fsq") else None
        if least and what == "rvq":
            least *= 8
        rows.append(
            {
                "bottleneck": what,
                "codes": codes,
                "ours, ms": 1e3 * times["ours"],
                "theirs, ms": 1e3 * times["theirs"],
                "product + argmin, ms": 1e3 * least if least else None,
                "ours / theirs": times["ours"] / times["theirs"],
                "ours / limit": times["ours"] / least if least else None,
            }
        )
    table("one training step, 4,096 vectors", rows)
    grown = [{"side": side, "MiB more at 8,192 codes": memory(side, 8192)} for side in ("ours", "theirs")]
    table("memory", grown)
    write("quantize", __doc__ or "", options.quick, steps=rows, memory=grown)


if __name__ == "__main__":
    main()
