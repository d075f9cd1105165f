from __future__ import annotations

import math

import pytest
from tests.tiny import Tiny
from tests.tiny import worded as worded

from smalti.data.sources import DataConfig, open_source
from smalti.evaluation import word_pages
from smalti.evaluation.evaluate import data_of, held_out, shuffled
from smalti.evaluation.report import Report
from smalti.model import Reader, load
from smalti.training.log import read_metrics


@pytest.fixture(scope="module")
def parts(worded: Tiny):
    model = load(worded.run, "cpu")
    assert isinstance(model, Reader)
    config: DataConfig = data_of(model, None)
    return model, shuffled(held_out(config)), open_source(config, "test")


def test_prompts_stand_beside_what_is_drawn(parts):
    model, test, source = parts
    report = Report("")
    word_pages.from_words(report, model, test, source)
    text = report.html()
    assert text.count("<img") == 1
    shown = [source.text(int(row))[0] for row in test.rows[: word_pages.SHOWN]]
    assert sum(text.count(f"<td>{each}</td>") for each in set(shown)) == len(shown)


def test_what_is_said_stands_beside_the_data(parts):
    model, test, source = parts
    report = Report("")
    word_pages.into_words(report, model, test, source)
    said = model.caption(word_pages._told(test, source)[0])
    assert all(f"<td>{each}</td>" in report.html() for each in said)


def test_losses_stand_beside_the_logarithm(parts, worded):
    model, *_ = parts
    report = Report("")
    word_pages.by_kind(report, model, worded.run)
    last = [row["values"] for row in read_metrics(worded.run / "metrics.jsonl") if row["split"] == "validation"][-1]
    for value in (math.log(16), last["nats_a_code"], last["nats_a_piece"]):
        assert f"{value:.4g}"[:4] in report.html()


def test_the_report_of_a_run_has_them(worded):
    text = (worded.run / "report" / "index.html").read_text()
    assert all(title in text for title in ("From words", "Into words", "Loss by kind"))
