"""What is written out for short sequences on a processor, beside torch's own: attention and RMS normalisation.

Forward and backward in the shapes of the recipes. Ours are the ways `smalti.layers` takes; the peers are
`scaled_dot_product_attention` and `rms_norm`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import arguments, median_seconds, table, write
from smalti.device import pick_device
from smalti.layers.attention import attend
from smalti.layers.norm import RMSNorm

SHAPES = [(128, 4, 49, 48), (128, 4, 49, 64), (16, 6, 64, 64)]  # rows, heads, tokens, width of a head


def forward_backward(function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """One call and its gradient."""
    function(*inputs).sum().backward()


def main() -> None:
    """Measure, print, write."""
    question = "Is writing attention and normalisation out worth it?"
    options = arguments(question).parse_args()
    repeats = 3 if options.quick else 30
    pick_device("cpu")
    rows: list[dict[str, Any]] = []

    def compare(what: str, dtype: torch.dtype, own: Callable[..., Tensor], peer: Callable[..., Tensor], x: Any) -> None:
        ours, theirs = (1000 * median_seconds(partial(forward_backward, f, *x), repeats, 3) for f in (own, peer))
        kind = str(dtype).removeprefix("torch.")
        rows.append({"what": what, "dtype": kind, "torch ms": theirs, "ours ms": ours, "ours / torch": ours / theirs})

    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            x = [torch.randn(shape).to(dtype).requires_grad_() for _ in range(3)]
            compare(
                f"causal attention {shape}",
                dtype,
                lambda q, k, v: attend(q, k, v, None, True),
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                x,
            )
    norm = RMSNorm(192)
    values = [torch.randn(128, 49, 192, requires_grad=True)]
    compare(
        "RMS norm (128, 49, 192)", torch.float32, norm, lambda x: F.rms_norm(x, (192,), norm.weight, norm.eps), values
    )
    table(f"forward and backward, medians of {repeats}", rows)
    write("attention", question, options.quick, repeats=repeats, rows=rows)


if __name__ == "__main__":
    main()
