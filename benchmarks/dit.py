"""How fast a diffusion transformer trains and samples, beside diffusers' DiT of the same size and the products alone.

12 layers of width 384 and 6 heads over 64 tokens, a batch of 16, products in the precision this machine likes best.
A training step is forward and backward of a squared error, the optimizer apart; sampling is one forward without
gradients, ours by what our sampler prepares once for the whole way. The limit takes the matrix products
of the blocks by themselves, in the same precision and shapes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import arguments, median_seconds, table, write
from smalti.config import Examples, SignalSpec
from smalti.device import autocast, pick_device, product_dtype
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.diffusion import Diffusion, DiffusionConfig

BATCH, CHANNELS, SIDE, CLASSES = 16, 4, 8, 1000
LAYERS, WIDTH, HEADS = 12, 384, 6


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, times in [0, 1), classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=generator)
    t, labels = torch.rand(BATCH, generator=generator), torch.randint(0, CLASSES, (BATCH,), generator=generator)
    return x, t, labels


def ours(sampling: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The paradigm's network, as recipes use it in training or in sampling."""
    signal = SignalSpec(channels=CHANNELS, shape=(SIDE, SIDE))
    network = TransformerConfig(layers=LAYERS, width=WIDTH, heads=HEADS, dropout=0.0)
    examples = Examples(signal=signal, labels=tuple(map(str, range(CLASSES))))
    model = DiffusionConfig(patch=1).build(network, examples, 1)
    assert isinstance(model, Diffusion)
    _alive(model)
    x, t, labels = inputs()
    sweep = model.sweeps.of(model.network, model.positions) if sampling else None
    return model, lambda: model(x, t, labels, sweep)[0]


def theirs(sampling: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    """diffusers' model of the same size, the same for both."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import DiTTransformer2DModel
    model: Any = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS, out_channels=CHANNELS,
        num_layers=LAYERS, sample_size=SIDE, patch_size=1, num_embeds_ada_norm=CLASSES, dropout=0.0,
    )  # fmt: skip
    _alive(model)
    x, t, labels = inputs()
    steps = (t * 1000).long()
    return model, lambda: model(x, timestep=steps, class_labels=labels).sample


def _alive(model: nn.Module) -> None:
    """No weight is zero, or a processor would have it easier."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)


def trained(network: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    """A step without its optimizer, which leaves no gradients behind."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with autocast(device):
            said = forward()
        said.float().square().mean().backward()

    return step


def sampled(network: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> Callable[[], None]:
    """One forward without gradients."""

    def step() -> None:
        with torch.no_grad(), autocast(device):
            forward()

    return step


def products(device: torch.device, backward: bool) -> Callable[[], None]:
    """The blocks' matrix products by themselves: of a forward, and of the two that each needs backward."""
    dtype, tokens = product_dtype(device), BATCH * SIDE * SIDE
    inner = TransformerConfig(layers=1, width=WIDTH, heads=HEADS).inner
    shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * inner), (inner, WIDTH)]
    work = [
        tuple(torch.randn(shape, dtype=dtype) for shape in ((tokens, rows), (rows, columns), (tokens, columns)))
        for rows, columns in shapes
    ]

    def run() -> None:
        for _ in range(LAYERS):
            for x, weight, slope in work:
                x @ weight
                if backward:
                    slope @ weight.t()
                    x.t() @ slope

    return run


def main() -> None:
    """Measure each in turn, several times over, and print the medians as ratios."""
    parser = arguments((__doc__ or "").splitlines()[0])
    options = parser.parse_args()
    repeats = 2 if options.quick else 15
    device = pick_device("cpu")
    rows: list[dict[str, Any]] = []
    for what, arranged in (("training step", trained), ("forward while sampling", sampled)):
        seconds = {}
        for name, made in (("ours", ours), ("diffusers", theirs)):
            network, forward = made(arranged is sampled)
            seconds[name] = median_seconds(arranged(network, forward, device), repeats, warm_up=3)
        limit = median_seconds(products(device, arranged is trained), repeats, warm_up=3)
        rows.append(
            {
                "what": what,
                "ours, pictures/s": BATCH / seconds["ours"],
                "diffusers, pictures/s": BATCH / seconds["diffusers"],
                "products alone, pictures/s": BATCH / limit,
                "ours / diffusers": seconds["diffusers"] / seconds["ours"],
                "ours / products": limit / seconds["ours"],
            }
        )
    table(f"{LAYERS} × {WIDTH}, {SIDE * SIDE} tokens, batch {BATCH}", rows)
    write("dit", __doc__ or "", options.quick, rows=rows)


if __name__ == "__main__":
    main()
