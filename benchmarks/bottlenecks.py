"""Which bottleneck to choose: all of them at the same bits, in the same network, for the same minutes, on emoji.

Every tokenizer cuts 64x64 colour pictures into an 8x8 grid of about 10 bits (80 bytes a picture; `kl` is continuous and
has no bits). Everything but the bottleneck is the recipe `emoji-tokenizer`. The number of steps is what fits into the
minutes by the median pace of some steps, taken for all of them first: so every learning rate comes to its end, and what
else the machine does later takes nothing from anyone. Judged on the held-out concepts.

The peer, `chapter`, is the VQ-VAE of the textbook chapter, written anew from its description and widened to the same
grid, bits and minutes: three convolutions 4x4 of stride 2 and a 3x3, 128 channels, two residual blocks (3x3 to 32
channels, 1x1 back), the mirror of it, codes of width 64 that learn by gradient, commitment 0.25, Adam 1e-3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import PACE, RESULTS, arguments, kept, pace, pace_of, steps_in, table, write
from smalti.config import Config
from smalti.data.batch import Batch
from smalti.data.image import to_signal
from smalti.data.loader import Loader
from smalti.data.sources import DataConfig, open_source
from smalti.device import autocast, pick_device
from smalti.evaluation.codes import CodeMeter
from smalti.evaluation.distance import frechet
from smalti.evaluation.evaluate import evaluate, gathered, held_out, trained_judge
from smalti.evaluation.reconstruction import ReconstructionMeter
from smalti.model import load
from smalti.recipe import Recipe
from smalti.recipes.emoji import emoji_tokenizer
from smalti.runs import resume, train
from smalti.tokenizers.bottlenecks.fsq import FSQConfig
from smalti.tokenizers.bottlenecks.gumbel import GumbelConfig
from smalti.tokenizers.bottlenecks.kl import KLConfig
from smalti.tokenizers.bottlenecks.lfq import LFQConfig
from smalti.tokenizers.bottlenecks.rvq import RVQConfig
from smalti.tokenizers.bottlenecks.vq import VQConfig

LIVELY: dict[str, Any] = {"codes": 1024, "dim": 8, "decay": 0.95, "revive_below": 0.3}
BOTTLENECKS: dict[str, Config] = {
    "fsq": FSQConfig(),
    "vq": VQConfig(**LIVELY),
    "vq-cosine": VQConfig(**LIVELY, metric="cosine"),
    "vq-simvq": VQConfig(**LIVELY, learn="simvq"),
    "vq-gradient": VQConfig(**LIVELY, learn="gradient"),
    "vq-rotation": VQConfig(**{**LIVELY, "decay": 0.99}, estimator="rotation"),
    "rvq-2x32": RVQConfig(**{**LIVELY, "codes": 32}, stages=2),
    "lfq": LFQConfig(),
    "bsq": LFQConfig(spherical=True),
    "gumbel": GumbelConfig(),
    "kl": KLConfig(weight=5e-5),
}


def with_bottleneck(name: str, steps: int) -> Recipe:
    """The recipe `emoji-tokenizer` with another bottleneck."""
    recipe = emoji_tokenizer()
    model = recipe.model.model_copy(update={"bottleneck": BOTTLENECKS[name]})
    chosen = recipe.model_copy(update={"model": model, "name": name})
    return chosen.changed(**{"training.steps": steps, "training.validate_every": max(min(500, steps // 4), 1)})


def ours(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train a tokenizer for so many steps, or on to there, and evaluate it."""
    run = folder / name
    done = resume(run) if (run / "recipe.json").exists() else train(with_bottleneck(name, steps), out=run)
    if not done.finished:
        raise SystemExit(f"stopped at {name}; the same command goes on from there")
    return evaluate(load(run))


# ---- the peer -------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + 1x1(relu(3x3(relu(x))))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ChapterVQVAE(nn.Module):
    """x in [-1, 1] (B, 3, 64, 64) -> the same, its codes (B, 8, 8), and the codes' loss."""

    def __init__(self, codes: int = 1024, dim: int = 64, width: int = 128, inner: int = 32) -> None:
        super().__init__()
        down = [nn.Conv2d(3, width // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(width // 2, width, 4, 2, 1), nn.ReLU()]
        down += [nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
        blocks = [Residual(width, inner), Residual(width, inner), nn.ReLU()]
        self.encoder = nn.Sequential(*down, *blocks, nn.Conv2d(width, dim, 1))
        up = [nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1)]
        up += [nn.ReLU(), nn.ConvTranspose2d(width // 2, 3, 4, 2, 1)]
        mirror = [Residual(width, inner), Residual(width, inner), nn.ReLU()]
        self.decoder = nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), *mirror, *up)
        self.codebook = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).float()
        flat = z.reshape(-1, z.shape[-1])
        with torch.no_grad():
            codes = torch.cdist(flat.detach(), self.codebook).argmin(1).view(z.shape[:-1])
        q = F.embedding(codes, self.codebook)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder((z + (q - z).detach()).permute(0, 3, 1, 2)), codes, loss


def chapter_steps(steps: int) -> tuple[ChapterVQVAE, list[float]]:
    """The peer after so many steps, on the same pictures in the same order and precision; and when each step ended."""
    torch.manual_seed(0)
    device, recipe = pick_device(), emoji_tokenizer()
    model = ChapterVQVAE().to(memory_format=torch.channels_last).to(device)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    source = open_source(recipe.data, "train")
    batches: Iterator[Batch] = iter(Loader(source, recipe.data, recipe.training.batch, 0))
    at = []
    for _ in range(steps):
        x = next(batches).x.to(device)
        with autocast(device):
            x_hat, _, loss = model(x)
        (F.mse_loss(x_hat.float(), x) + loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        at.append(time.perf_counter())
    return model.eval(), at


@torch.no_grad()
def judged(model: ChapterVQVAE, data: DataConfig) -> dict[str, Any]:
    """The figures that `evaluate` gives for ours, for the peer."""
    config = data.model_copy(update={"shape": (64, 64), "channels": 3})
    source, test = open_source(config, "train"), held_out(config)
    eye = trained_judge(source, gathered(source, config), test, config)
    errors, meter, features = ReconstructionMeter(), CodeMeter(len(model.codebook)), []
    for part in test.pixels.split(250):
        x = to_signal(part)
        with autocast(torch.device("cpu")):
            x_hat, codes, _ = model(x)
        errors.update(x, x_hat.float().clamp(-1, 1))
        meter.update(codes[:, None])
        features.append(eye.features(x_hat.float().clamp(-1, 1)))
    distance = frechet(eye.features(test.pixels), torch.cat(features))
    used = meter.result()
    del used["codebooks"]  # every code's count
    return {**errors.result(), **used, f"frechet_{eye.name}": distance, "pictures": len(test)}


def row(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    size = figures.get("codes", figures.get("size"))
    share = figures["perplexity"] / size if "perplexity" in figures else None
    stages = figures.get("each_codebook", {}).values()
    return {
        "bottleneck": name,
        "PSNR, dB": figures["psnr"],
        "SSIM": figures["ssim"],
        "Fréchet": figures["frechet_classifier"],
        "codes used": min((stage["usage"] for stage in stages), default=figures.get("usage")),
        "perplexity / codes": min((stage["perplexity_share"] for stage in stages), default=share),
        "steps": figures["steps"],
        "ms a step": 1000 * figures["pace"],
    }


def measured_pace(name: str, folder: Path) -> float:
    """Seconds a step takes, the first ones left out."""
    if name != "chapter":
        return pace(with_bottleneck(name, PACE.stop), folder / "pace")
    return pace_of(chapter_steps(PACE.stop)[1])


def trained(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """The figures after so many steps."""
    if name != "chapter":
        return {**ours(name, steps, folder), "steps": steps}
    return {**judged(chapter_steps(steps)[0], emoji_tokenizer().data), "steps": steps}


def main() -> None:
    """Train what was not trained yet, one after the other, and print the table after each."""
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of training for each")
    parser.add_argument("--only", default="", help="some of them, with commas between")
    parser.add_argument("--runs", type=Path, default=Path("runs/bottlenecks"), help="where the runs are kept")
    options = parser.parse_args()
    seconds = 6 if options.quick else 60 * options.minutes
    chosen = options.only.split(",") if options.only else ["chapter", *BOTTLENECKS]
    folder = options.runs / f"{seconds:g}s"
    parts = RESULTS / "bottlenecks-parts"
    paces = {name: kept(parts / f"pace-{name}.json", partial(measured_pace, name, folder)) for name in chosen}
    found: dict[str, Any] = {}
    for name in chosen:
        steps = steps_in(seconds, paces[name])
        figures = kept(parts / f"{name}-{seconds:g}s.json", partial(trained, name, steps, folder))
        found[name] = {**figures, "pace": paces[name]}
        table(f"emoji, {seconds / 60:g} minutes each", [row(each, found[each]) for each in found])
    if "chapter" in found:
        best = max(figures["psnr"] for figures in found.values() if "perplexity" in figures)
        print(f"best with codes: {best:.2f} dB, {best - found['chapter']['psnr']:+.2f} dB beside the chapter's")
    write("bottlenecks", __doc__ or "", options.quick, seconds=seconds, figures=found)


if __name__ == "__main__":
    main()
