"""The model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smalti.config import Examples
from smalti.data.named import NAMED_SETS
from smalti.model.base import CALLED
from smalti.recipe import Recipe

CALLS = {
    "interleaved": 'x = model.sample(4, "a prompt")\ntexts = model.caption(x)\nanswers = model.ask(x, "how many?")',
    "tokenizer": "again = model.reconstruct(x)  # x: (B, C, *space) in [-1, 1]",
    "generator": "x = model.sample(4)",
    "aligner": 'fit = model.similarity(x, ["a text", "another"])  # x: (B, C, *space) in [-1, 1]; cosines (B, 2)',
}


def card(recipe: Recipe, examples: Examples, figures: Mapping[str, Any]) -> str:
    """The model card: what it is, what it was trained on and how, and what was measured."""
    shape = "×".join(map(str, examples.signal.shape))
    kind = CALLED[recipe.paradigm.makes]
    call = CALLS.get(recipe.paradigm.kind, CALLS[recipe.paradigm.makes])
    if recipe.paradigm.words and recipe.paradigm.kind not in CALLS:
        call = call.replace("(4)", '(4, "a prompt")')
    if recipe.generates:
        reads = recipe.paradigm.reads
        kind += " of pixels" if reads == "signals" else f" over a tokenizer's {reads}"
    lines = [
        "---",
        "library_name: smalti",
        f"tags: [{recipe.paradigm.kind}, {examples.signal.kind}]",
        "---",
        f"# {recipe.name}",
        "",
        f"{kind[0].upper()}{kind[1:]} for {examples.signal.kind}s of {examples.signal.channels} channels and {shape},"
        f" trained with smalti on `{recipe.data.source}` for {recipe.training.steps} steps of {recipe.training.batch}.",
        "",
        "```python",
        "import smalti",
        "",
        'model = smalti.load("path/to/this/folder")',
        call,
        "```",
        "",
    ]
    if examples.labels:
        lines += [f"Labels: {', '.join(examples.labels)}.", ""]
    if recipe.data.source in NAMED_SETS:
        named = NAMED_SETS[recipe.data.source]
        lines += [f"Data: {named.title}. {named.attribution}; licence: {named.licence}.", ""]
    if figures:
        lines += ["| measured | value |", "|---|---|"]
        lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items()]
        lines.append("")
    lines += ["## Recipe", "", "```json", recipe.json_text().rstrip(), "```", ""]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
