"""How long until the pictures are as good as the tutorial's: `fashion-tokenizer` beside the well-known small VQ-VAE.

The peer is written anew from its description: convolutions 1 → 64 → 32 of 4x4 and stride 2 with a ReLU between them,
the mirror of it with transposed convolutions, a codebook that learns by gradient from uniform ±1/K, the
straight-through gradient, codebook loss + 0.25 commitment, Adam 1e-3, batches of 128, fp32. Its pictures lie in memory
as floats and are drawn by one index, so none of its time is spent on loading. Both sides train on the same 60,000
Fashion-MNIST pictures with the same threads, one after the other, and are judged on the 10,000 test pictures by the
same function: mean squared error on the [0, 1] scale, clamped to it. Seconds are training alone, without judging.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import arguments, table, write
from smalti.config import Examples
from smalti.data.batch import Batch
from smalti.data.image import to_signal
from smalti.data.loader import Loader
from smalti.data.sources import DataConfig, MemorySource, open_source
from smalti.device import autocast, pick_device
from smalti.model import build
from smalti.paradigms.autoencode import Autoencode
from smalti.paradigms.base import Paradigm
from smalti.recipes import recipe as named_recipe
from smalti.training.loop import Progress, Run, fit


@dataclass(frozen=True)
class Size:
    """One of the tutorial's two sizes."""

    width: int  # channels of the convolutions
    codes: int
    dim: int  # width of a code
    passes: int
    reference: float  # test MSE that this tutorial reaches in a lucky run; some codebooks collapse to worse ones
    commitment: float = 0.25
    rate: float = 1e-3
    batch: int = 128


SIZES = {
    "small": Size(width=64, codes=128, dim=32, passes=3, reference=0.00803),
    "full": Size(width=128, codes=512, dim=64, passes=5, reference=0.00706),
}


@dataclass(frozen=True)
class Point:
    """How good a model was after so many seconds of training."""

    seconds: float
    mse: float  # test pictures, [0, 1] scale
    used: int  # codes that the test pictures use


@dataclass(frozen=True)
class Curve:
    """One training: its points in time, the last one its end, and what it was."""

    points: list[Point]
    codes: int
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def end(self) -> Point:
        """The model that the training leaves."""
        return self.points[-1]

    def seconds_to(self, mse: float) -> float | None:
        """The first moment at which the model was at least this good, None when it never was."""
        return next((point.seconds for point in self.points if point.mse <= mse), None)


def pictures(split: Literal["train", "test"]) -> Tensor:
    """Fashion-MNIST as uint8 (N, 1, 28, 28). `train` is all 60,000, those put aside for validation too."""
    parts: tuple[Literal["train", "validation", "test"], ...] = (
        ("train", "validation") if split == "train" else (split,)
    )
    found = [open_source(DataConfig(source="fashion-mnist"), part).pixels() for part in parts]
    return torch.cat([part for part in found if part is not None])


@torch.no_grad()
def judge(reconstruct: Callable[[Tensor], tuple[Tensor, Tensor]], test: Tensor, batch: int = 1000) -> tuple[float, int]:
    """Mean squared error on the [0, 1] scale and the number of codes in use, over the test pictures.

    `reconstruct` takes floats in [0, 1] (B, 1, 28, 28) and gives the same back, with the codes it went through.
    """
    squares, used = 0.0, set[int]()
    for part in test.split(batch):
        x = part.float() / 255
        x_hat, codes = reconstruct(x)
        squares += (x_hat.float().clamp(0, 1) - x).double().square().sum().item()
        used |= set(codes.unique().tolist())
    return squares / test.numel(), len(used)


# ---- the peer -------------------------------------------------------------------------------------------------------


class TutorialVQVAE(nn.Module):
    """The tutorial's network: x in [0, 1] (B, 1, H, W) -> the same, its codes (B, H/4, W/4), and the codes' loss."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.commitment = size.commitment
        self.encoder = nn.Sequential(
            nn.Conv2d(1, size.width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(size.width, size.dim, 4, stride=2, padding=1),
        )
        self.codebook = nn.Parameter(torch.empty(size.codes, size.dim).uniform_(-1 / size.codes, 1 / size.codes))
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(size.dim, size.width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(size.width, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1)  # (B, H/4, W/4, dim)
        flat = z.reshape(-1, z.shape[-1])
        distances = flat.square().sum(1, keepdim=True) - 2 * flat @ self.codebook.T + self.codebook.square().sum(1)
        codes = distances.argmin(1).view(z.shape[:-1])
        q = F.embedding(codes, self.codebook)
        loss = F.mse_loss(q, z.detach()) + self.commitment * F.mse_loss(z, q.detach())
        through = z + (q - z).detach()
        return self.decoder(through.permute(0, 3, 1, 2)), codes, loss


def peer(size: Size, train: Tensor, test: Tensor, seed: int) -> Curve:
    """Train the tutorial's model once; a point after every pass."""
    torch.manual_seed(seed)
    model = TutorialVQVAE(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=size.rate)
    x = train.float() / 255
    spent, points = 0.0, []
    for _ in range(size.passes):
        start = time.perf_counter()
        for rows in torch.randperm(len(x)).split(size.batch):
            batch = x[rows]
            x_hat, _, loss = model(batch)
            loss = loss + F.mse_loss(x_hat, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        spent += time.perf_counter() - start
        points.append(Point(spent, *judge(lambda x: model(x)[:2], test)))
    return Curve(points, size.codes, asdict(size))


# ---- our side -------------------------------------------------------------------------------------------------------


RECIPES = {"small": "fashion-tokenizer", "full": "fashion-tokenizer-512"}


def ours(name: str, size: Size, train: Tensor, test: Tensor, seed: int, quick: bool) -> Curve:
    """Train the recipe of one size by the library's own loop; its averaged weights judged every 25 steps.

    Judging is taken out of the time; everything else the loop does (logging, validation, saving) is in it.
    """
    recipe = named_recipe(RECIPES[name])
    if quick:
        recipe = recipe.changed(**{"training.steps": 20})
    training = recipe.training
    recipe = recipe.changed(**{"training.seed": seed, "training.validate_every": 5 if quick else 25})
    points: list[Point] = []
    judging = 0.0

    def judged(paradigm: Paradigm, progress: Progress) -> None:
        nonlocal judging
        spent = progress.seconds - judging
        began = time.perf_counter()
        network = cast(Autoencode, paradigm).tokenizer

        def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
            with autocast(torch.device("cpu")):
                x_hat, quantized = network(2 * x - 1)
            assert quantized.codes is not None
            return (x_hat.float() + 1) / 2, quantized.codes

        points.append(Point(spent, *judge(reconstruct, test)))
        judging += time.perf_counter() - began

    source = MemorySource("fashion-mnist", train)
    examples = Examples(signal=source.signal)
    held = train[:128]  # the loop wants something to validate on; the test pictures judge
    torch.manual_seed(seed)
    paradigm = build(recipe, examples)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(
            recipe.name,
            Path(folder),
            recipe.training,
            lambda start: iter(Loader(source, recipe.data, training.batch, seed, augment=True, start=start)),
            lambda: iter([Batch(0, torch.arange(128), torch.arange(128), to_signal(held))]),
            lambda paradigm, progress: None,
            watch=judged,
        )
        fit(paradigm, run, torch.device("cpu"))
    return Curve(points, size.codes, {"recipe": recipe.name, "steps": recipe.training.steps})


# ---- side by side ---------------------------------------------------------------------------------------------------


def middle(values: list[float | None]) -> float | None:
    """The median, None when any is missing."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known and len(known) == len(values) else None


def compare(name: str, peers: list[Curve], own: list[Curve]) -> dict[str, Any]:
    """One row of the table: medians over the runs, and the ratio of the times to equal quality, pair by pair."""
    row: dict[str, Any] = {
        "size": name,
        "peer s": middle([curve.end.seconds for curve in peers]),
        "peer MSE": middle([curve.end.mse for curve in peers]),
        "peer codes used": f"{middle([curve.end.used for curve in peers]):g} of {peers[0].codes}",
        "ours s to equal MSE": None,
        "ours / peer": None,
        "ours s": None,
        "ours MSE": None,
        "ours codes used": None,
    }
    if own:
        # the better of what the peer reached beside us and what it is known to reach
        known = SIZES[name].reference
        to_quality = [mine.seconds_to(min(known, theirs.end.mse)) for mine, theirs in zip(own, peers, strict=True)]
        ratios = [spent and spent / theirs.end.seconds for spent, theirs in zip(to_quality, peers, strict=True)]
        row |= {
            "ours s to equal MSE": middle(to_quality),
            "ours / peer": middle(ratios),
            "ours s": middle([curve.end.seconds for curve in own]),
            "ours MSE": middle([curve.end.mse for curve in own]),
            "ours codes used": f"{middle([curve.end.used for curve in own]):g} of {own[0].codes}",
        }
    return row


def main() -> None:
    """Measure, print, write."""
    question = "How long until the pictures are as good as the tutorial's?"
    parser = arguments(question)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--runs", type=int, default=3, help="trainings of each side, each with its own seed")
    options = parser.parse_args()
    sizes = {name: SIZES[name] for name in options.sizes}
    runs = 1 if options.quick else options.runs

    pick_device("cpu")  # both sides with the same settings of the process
    train, test = pictures("train"), pictures("test")
    if options.quick:
        train, test = train[:1024], test[:256]

    rows, curves = [], {}
    for name, size in sizes.items():
        peers, own = [], []
        for seed in range(runs):
            peers.append(peer(size, train, test, seed))
            own.append(ours(name, size, train, test, seed, options.quick))
            print(
                f"{name}, run {seed + 1} of {runs}: peer {peers[-1].end.seconds:.1f} s to {peers[-1].end.mse:.5f},"
                f" ours {own[-1].end.seconds:.1f} s to {own[-1].end.mse:.5f}"
            )
        rows.append(compare(name, peers, own))
        curves[name] = {"peer": [asdict(curve) for curve in peers], "ours": [asdict(curve) for curve in own]}
    table(f"time to quality, medians of {runs}; {len(train):,} pictures, judged on {len(test):,}", rows)
    write("tutorial", question, options.quick, runs=runs, test_tokens=len(test) * 49, rows=rows, curves=curves)


if __name__ == "__main__":
    main()
