"""What one token costs: our cached decoding beside transformers' LlamaForCausalLM.generate and the linear layers alone.

Random weights of one shape on all sides, greedy, 64 tokens after one start token, key-value cache. The peer's figure is
the whole call divided by the tokens it made. The limit is every matrix of one step applied in sequence and nothing
else: no step of this shape can be quicker without fusing or quantizing its products.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import arguments, median_seconds, table, write
from smalti.config import CodeSpec
from smalti.device import pick_device
from smalti.layers.transformer import TransformerConfig
from smalti.paradigms.autoregressive import Autoregressive, AutoregressiveConfig, AutoregressiveOptions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """The transformer that is measured."""

    layers: int = 8
    width: int = 256
    heads: int = 4
    hidden: int = 688  # SwiGLU
    vocabulary: int = 1035
    tokens: int = 64


def peer(shape: Shape, batches: list[int], dtype: torch.dtype, repeats: int) -> dict[int, float]:
    """Batch -> ms per decoding step of transformers' generate."""
    try:
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise SystemExit("transformers is not installed: pip install -c constraints.txt -e '.[bench]'") from error

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=2 * shape.tokens,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=None,  # nothing ends a row early
        pad_token_id=0,
    )
    model: Any = LlamaForCausalLM(config)
    model = model.to(dtype).eval()
    greedy = GenerationConfig(
        max_new_tokens=shape.tokens, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )

    def generate(batch: int) -> Tensor:
        start = torch.zeros(batch, 1, dtype=torch.long)
        made: Tensor = model.generate(start, attention_mask=torch.ones_like(start), generation_config=greedy)
        if made.shape != (batch, 1 + shape.tokens):
            raise RuntimeError(f"generate stopped early: {tuple(made.shape)}")
        return made

    return {batch: 1000 * median_seconds(partial(generate, batch), repeats) / shape.tokens for batch in batches}


@torch.inference_mode()
def linear_layers(shape: Shape, batches: list[int], dtype: torch.dtype, repeats: int) -> dict[int, float]:
    """Batch -> ms for all matrices of one step in sequence: q k v o, gate up down of every layer, the vocabulary."""
    torch.manual_seed(0)
    block = [(shape.width, shape.width)] * 4 + [(shape.width, shape.hidden)] * 2 + [(shape.hidden, shape.width)]
    sizes = block * shape.layers + [(shape.width, shape.vocabulary)]
    matrices = [torch.randn(out, inner).mul(inner**-0.5).to(dtype) for inner, out in sizes]  # all different in memory

    def steps(batch: int) -> None:
        inputs = {inner: torch.randn(batch, inner).to(dtype) for inner in (shape.width, shape.hidden)}
        for _ in range(shape.tokens):
            for matrix in matrices:
                F.linear(inputs[matrix.shape[1]], matrix)

    return {batch: 1000 * median_seconds(partial(steps, batch), repeats) / shape.tokens for batch in batches}


def ours(shape: Shape, batches: list[int], repeats: int) -> dict[int, float]:
    """Batch -> ms per decoding step of our next-token model, in the precision it picks itself."""
    network = TransformerConfig(
        layers=shape.layers, width=shape.width, heads=shape.heads, hidden=shape.hidden, dropout=0.0
    )
    codes = CodeSpec(codebooks=1, grid=(shape.tokens,), size=shape.vocabulary)
    paradigm = Autoregressive(AutoregressiveConfig(), network, codes).eval()
    greedy = AutoregressiveOptions(temperature=0)
    return {
        batch: 1000 * median_seconds(partial(paradigm.sample, batch, options=greedy), repeats) / shape.tokens
        for batch in batches
    }


def main() -> None:
    """Measure, print, write."""
    question = "What does one decoding step cost?"
    parser = arguments(question)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--repeats", type=int, default=7, help="calls for each figure; the median counts")
    options = parser.parse_args()
    shape = Shape(tokens=4) if options.quick else Shape()
    batches, repeats = ([1, 4], 2) if options.quick else (options.batches, options.repeats)

    pick_device("cpu")  # all sides with the same settings of the process
    theirs = {name: peer(shape, batches, dtype, repeats) for name, dtype in PRECISIONS.items()}
    limit = {name: linear_layers(shape, batches, dtype, repeats) for name, dtype in PRECISIONS.items()}
    mine = ours(shape, batches, repeats)

    rows: list[dict[str, Any]] = []
    for batch in batches:
        best, floor = (min(side[name][batch] for name in PRECISIONS) for side in (theirs, limit))
        own = mine[batch]
        rows.append(
            {"batch": batch}
            | {f"transformers {name} ms": theirs[name][batch] for name in PRECISIONS}
            | {f"linear layers {name} ms": limit[name][batch] for name in PRECISIONS}
            | {"ours ms": own}
            | {"ours / transformers": own / best, "ours / linear layers": own / floor}
        )
    table(f"one decoding step, median of {repeats} calls of {shape.tokens} tokens; ratios to the better side", rows)
    write("decoding", question, options.quick, shape=asdict(shape), repeats=repeats, rows=rows)


if __name__ == "__main__":
    main()
