"""What a report shows of a continuous latent: its spread, pictures drawn from its prior, and ways through it."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.data.image import to_signal
from smalti.evaluation.charts import channel_ranges, scatter, unit_bars
from smalti.evaluation.evaluate import HeldOut
from smalti.evaluation.latents import ACTIVE
from smalti.evaluation.plots import picture_grid
from smalti.evaluation.report import Report
from smalti.evaluation.tokenizers import LatentFigures
from smalti.model import Tokenizer
from smalti.sampling.morph import morph

PLANE = 20  # pictures along each side of a latent plane


def latent(report: Report, figures: LatentFigures) -> None:
    """How far the latent spreads, what it costs, and which of its numbers say something."""
    found = figures.meter.result()
    report.section(
        "The latent",
        f"{found['numbers']:,} numbers a picture, each with a mean and a variance of its own, over"
        f" {figures.meter.signals:,} held-out pictures. A number is active when its mean varies by more than"
        f" {ACTIVE} (a variance) from picture to picture; the others follow the prior and say nothing.",
    )
    report.facts(
        {
            "numbers a picture": found["numbers"],
            "active": found["active_units"],
            "divergence from the prior, nats a picture": found["nats_a_picture"],
            "mean of all": found["mean"],
            "deviation of all": found["deviation"],
        }
    )
    report.picture(unit_bars(figures.meter.variances()))
    report.picture(channel_ranges(*figures.meter.channels()))


def prior(report: Report, tokenizer: Tokenizer) -> None:
    """Pictures decoded from draws of the prior."""
    report.section(
        "Drawn from the prior",
        "Decoded from latents of independent normal numbers, seed 0, unpicked. A large latent needs a generator to"
        " look like a picture, because its numbers depend on each other.",
    )
    report.picture(picture_grid(tokenizer.sample(60, seed=0), 12))


def interpolations(report: Report, tokenizer: Tokenizer, test: HeldOut, steps: int = 10, rows: int = 3) -> None:
    """Rows from one held-out picture to another, straight through the latent."""
    x = to_signal(test.pixels[: 2 * rows])
    ways = [morph(tokenizer, start, end, steps) for start, end in zip(x[::2], x[1::2], strict=False)]
    if not ways:
        return
    report.section(
        "From one picture to another",
        "Both ends are held-out pictures through the tokenizer; between them the latent moves on a straight line.",
    )
    report.picture(picture_grid(torch.cat(ways), steps))


def plane(report: Report, tokenizer: Tokenizer, test: HeldOut) -> None:
    """The whole of a latent of two numbers as one picture, and where held-out pictures lie in it."""
    means = tokenizer.latents(to_signal(test.pixels)).flatten(1)
    report.section(
        "The latent plane",
        "This latent is two numbers, so all of it can be seen at once. Each picture is decoded from one place of the"
        " plane; the places are the quantiles of the normal distribution, so that the prior draws each as often as any"
        " other (Kingma & Welling 2013, figure 4). The first number grows to the right, the second upwards.",
    )
    x = tokenizer.decode_latents(plane_latents().flatten(0, 1)[:, :, None, None])
    side = x.shape[-1]
    report.picture(picture_grid(x, PLANE, scale=max(1, round(28 / side)), gap=0))
    report.picture(
        scatter(means, test.labels, tokenizer.labels), f"where {len(means):,} held-out pictures lie, by their means"
    )


def plane_latents(side: int = PLANE) -> Tensor:
    """A grid over the plane, as it is looked at: (side, side, 2), the first row at the top.

    Its places are the normal quantiles of (i + 0.5) / side. The first number grows along a row, the second upwards.
    """
    quantiles = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    second, first = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([first, second], -1)


def is_plane(tokenizer: Tokenizer) -> bool:
    """Whether one picture's latent is exactly two numbers."""
    network = tokenizer.network
    return network.bottleneck.out_width == 2 and all(side == network.stride for side in tokenizer.signal.shape)
