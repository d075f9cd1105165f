from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smalti.evaluation import charts
from smalti.evaluation.report import Report

ALONE = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Reads a page strictly: every element closed in order, every id once; gathers its text and pictures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.pictures: list[Image.Image] = []
        self.text: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert all(link in {f"#{name}" for name in self.ids} for link in self.links)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag not in ALONE:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            kind, data = values["src"].split(",", 1)
            assert kind == "data:image/png;base64"
            assert values["alt"]
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1], data))

    def said(self, tag: str) -> list[str]:
        return [data for where, data in self.text if where == tag]


def full_report() -> Report:
    report = Report("A run", "in one line")
    report.section("Pictures", "First.\n\nSecond.")
    report.picture(torch.zeros(10, 1, 8, 8), "ten")
    report.picture(charts.usage_bars([3, 1]), "bars")
    report.section("Figures")
    report.table([{"name": "mse", "value": 0.0048123}, {"name": "tokens", "value": 490000, "note": "all"}])
    report.section("Figures")
    report.facts({"coverage": 0.5, "label accuracy": 0.9})
    return report


def test_a_report_is_one_whole_page() -> None:
    page = full_report().html()
    read = Reader(page)
    assert page.startswith("<!DOCTYPE html>")
    assert read.said("h1") == ["A run"]
    assert read.said("h2") == ["Pictures", "Figures", "Figures"]
    assert read.ids == ["pictures", "figures", "figures--2"]
    assert read.said("p") == ["in one line", "First.", "Second."]
    assert read.said("figcaption") == ["ten", "bars"]
    assert read.said("td") == ["mse", "0.004812", "tokens", "490,000", "all"]
    assert read.said("dd") == ["0.5", "0.9"]
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)  # nothing is fetched from elsewhere


def test_pictures_survive_as_they_are() -> None:
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    report = Report("t")
    report.picture(pixels)
    report.picture(pixels[0])
    report.picture(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))
    for shown in Reader(report.html()).pictures:
        assert (np.asarray(shown) == pixels[0].permute(1, 2, 0).numpy()).all()


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
@settings(max_examples=50, deadline=None)
def test_text_is_never_read_as_html(words: str) -> None:
    report = Report(words, words)
    report.section(words, words)
    report.section("<script>alert(1)</script>", "</section><b>")
    report.section("third")
    report.table([{words: words, "<td>": "&amp;"}])
    report.picture(torch.zeros(1, 1, 2, 2), words + '" onload="')
    read = Reader(report.html())
    if words.strip():
        assert "".join(read.said("h1")) == words
    assert not read.said("script")
    assert not read.said("b")
    assert "&amp;" in read.said("td")


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = full_report().write(tmp_path / "report" / "index.html")
    assert path.read_text(encoding="utf-8") == full_report().html()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, []), (True, ["yes"]), (12345, ["12,345"]), (0.123456, ["0.1235"]), (12345.6, ["12,346"]), ("a<b", ["a<b"])],
)
def test_values_are_written_for_reading(value: object, said: list[str]) -> None:
    report = Report("t")
    report.table([{"": value}])
    assert Reader(report.html()).said("td") == said


def test_an_empty_table_adds_nothing() -> None:
    report = Report("t")
    report.table([])
    assert "<table" not in report.html()
