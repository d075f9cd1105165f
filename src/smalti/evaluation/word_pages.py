"""What a model of text says and draws, for the report: prompts beside pictures, captions, answers, loss by kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from smalti.data.example import Source
from smalti.data.image import to_signal
from smalti.evaluation.evaluate import HeldOut, first_texts
from smalti.evaluation.plots import picture_rows
from smalti.evaluation.report import Report
from smalti.model import Generator, Reader
from smalti.training.log import read_metrics

SHOWN = 12


def from_words(report: Report, generator: Generator, test: HeldOut, source: Source) -> None:
    """Held-out prompts, what is drawn for them, and the pictures they belong to."""
    some, prompts = _told(test, source)
    report.section("From words", "Held-out captions, and what is drawn for each: unpicked, seed 0.")
    drawn = generator.sample(len(prompts), prompts, seed=0)
    report.picture(picture_rows({"drawn": drawn, "held-out": some}))
    report.table([{"": i, "asked for": prompt} for i, prompt in enumerate(prompts, 1)])


def into_words(report: Report, reader: Reader, test: HeldOut, source: Source) -> None:
    """Held-out pictures with the captions and answers that the model gives, beside those of the data."""
    some, captions = _told(test, source)
    report.section("Into words", "What the model says of the same held-out pictures, likeliest pieces first.")
    rows: list[dict[str, Any]] = []
    said = reader.caption(some)
    asked = [source.questions(int(row)) for row in test.rows[: len(some)]]
    for i, (caption, told, questions) in enumerate(zip(captions, said, asked, strict=True)):
        rows.append({"": i + 1, "asked": "what is there?", "said": told, "in the data": caption})
        if questions:
            question, answer = questions[i % len(questions)]
            (given,) = reader.ask(some[i : i + 1], question)
            rows.append({"": i + 1, "asked": question, "said": given, "in the data": answer})
    report.table(rows)


def by_kind(report: Report, reader: Reader, folder: Path) -> None:
    """The held-out loss of each kind of token beside what knowing nothing costs."""
    rows = [row["values"] for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "validation"]
    if not rows:
        return
    sizes = {"code": reader.network.codes.size, "piece": reader.network.vocabulary.config.text}
    report.section(
        "Loss by kind",
        "Nats a token that the model was asked for. Choosing blindly among all of its kind would cost the logarithm of"
        " their number; the likeliest was right in the share that stands last. A loss that stays near the logarithm"
        " says that nothing of that kind is learnt; one that rises again, while that of training falls, that examples"
        " are being learnt by heart.",
    )
    table = []
    for kind, size in sizes.items():
        losses = [values[f"nats_a_{kind}"] for values in rows if f"nats_a_{kind}" in values]
        if losses:
            right = rows[-1].get(f"accuracy_{kind}")
            table.append(
                {"kind": f"{kind}s", "number": size, "ln": math.log(size), "nats": losses[-1], "least": min(losses)}
                | {"right": right}
            )
    report.table(table)


def _told(test: HeldOut, source: Source) -> tuple[Tensor, list[str]]:
    """Some held-out pictures as signals, and the first caption of each."""
    return to_signal(test.pixels[:SHOWN]), first_texts(source, test.rows[:SHOWN])
