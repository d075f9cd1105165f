"""A report: one HTML file that holds its pictures, to be mailed, printed, or kept beside the model."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from smalti.checkpoint import write_text
from smalti.evaluation.plots import picture_grid

DENSITY = 2  # image pixels to a screen pixel in plots
LEAST_WIDTH = 400  # screen pixels; on a narrower screen a picture is scrolled rather than made illegible

STYLE = """
:root { color-scheme: light dark; --ink: #23272e; --quiet: #69707a; --line: #e1e4e8; --paper: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --quiet: #9aa1ab; --line: #363b43; --paper: #16191d; --card: #1f2329; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; }
.subtitle { color: var(--quiet); margin: 0.4rem 0 0; }
nav { margin: 1.5rem 0 0; padding: 0.75rem 0; border-block: 1px solid var(--line); font-size: 0.9rem; }
nav a { color: var(--ink); margin-right: 1.1rem; text-underline-offset: 0.2em; text-decoration-color: var(--quiet);
  display: inline-block; }
section { margin-top: 2.75rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 0.4rem; }
p { margin: 0 0 0.9rem; max-width: 44rem; white-space: pre-line; overflow-wrap: break-word; }
figure { margin: 1.1rem 0 1.4rem; }
figure div { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px; width: fit-content;
  max-width: 100%; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
figcaption { color: var(--quiet); font-size: 0.88rem; margin-top: 0.45rem; max-width: 44rem; }
.scroll { overflow-x: auto; margin: 1rem 0 1.4rem; }
table { border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 1.1rem 0.35rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--quiet); font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
dl { display: flex; flex-wrap: wrap; gap: 0.75rem; margin: 1.2rem 0; }
dl div { background: var(--card); border-radius: 8px; padding: 0.7rem 1rem; min-width: 8rem; }
dt { color: var(--quiet); font-size: 0.85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; color: var(--quiet); font-size: 0.85rem; }
@media print {
  :root { --ink: #000; --quiet: #555; --line: #ccc; --paper: #fff; --card: #f6f7f9; }
  body { font-size: 11pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2, h2 + p { break-after: avoid; } figure, tr, dl div { break-inside: avoid; }
  figure div, .scroll { overflow: visible; } figcaption { break-before: avoid; }
}
"""

Picture = Figure | Image.Image | Tensor


class Report:
    """Gathers sections with text, figures, tables and pictures; `write` makes one self-contained HTML file.

    All text is taken as plain text: nothing in it is read as HTML.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._sections: list[tuple[str, str, list[str]]] = []  # (anchor, title, HTML parts)

    def section(self, title: str, text: str = "") -> None:
        """Begin a section, with an opening paragraph. An empty line in `text` begins another."""
        anchor = slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        taken = {other for other, _, _ in self._sections}
        number = 1
        while anchor in taken:
            number += 1
            anchor = f"{slug}--{number}"
        self._sections.append((anchor, title, []))
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """Add paragraphs, divided by empty lines."""
        for paragraph in re.split(r"\n\s*\n", text.strip()):
            self._add(f"<p>{escape(paragraph)}</p>")

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Add a few figures that should catch the eye: name -> value."""
        tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{_said(value)}</dd></div>" for name, value in facts.items())
        self._add(f"<dl>{tiles}</dl>")

    def picture(self, picture: Picture, caption: str = "", columns: int = 8) -> None:
        """Add a plot, a Pillow image, or pictures (N, C, H, W) or (C, H, W), which are laid out in `columns`."""
        if isinstance(picture, Tensor):
            pictures = picture if picture.ndim == 4 else picture[None]
            picture = picture_grid(pictures, min(columns, len(pictures)))
        data = io.BytesIO()
        if isinstance(picture, Figure):
            picture.savefig(data, format="png", dpi=96 * DENSITY)
            width, height = (round(side * 96) for side in picture.get_size_inches())
            kind = "plot"
        else:
            picture.save(data, format="PNG", optimize=True)
            width, height = picture.size
            kind = "pixels"
        source = base64.b64encode(data.getvalue()).decode()
        about = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        self._add(
            f'<figure><div><img class="{kind}" width="{width}" height="{height}" alt="{escape(caption or kind)}" '
            f'style="min-width:{min(width, LEAST_WIDTH)}px" src="data:image/png;base64,{source}"></div>{about}</figure>'
        )

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a table: one mapping a row; columns are the keys in the order they are first seen."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not columns:
            return
        numeric = {key: all(_is_number(row.get(key)) or row.get(key) is None for row in rows) for key in columns}
        mark = {key: ' class="number"' if numeric[key] else "" for key in columns}
        head = "".join(f'<th scope="col"{mark[key]}>{escape(str(key))}</th>' for key in columns)
        cells = ["".join(f"<td{mark[key]}>{_said(row.get(key))}</td>" for key in columns) for row in rows]
        body = "".join(f"<tr>{row}</tr>\n" for row in cells)
        self._add(f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>')

    def html(self) -> str:
        """The whole file as text."""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        named = [(anchor, title) for anchor, title, _ in self._sections if title]
        links = "\n".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in named)
        contents = f'<nav aria-label="Contents">{links}</nav>' if len(named) > 2 else ""
        sections = "\n".join(
            "\n".join([f'<section id="{anchor}">', f"<h2>{escape(title)}</h2>" if title else "", *parts, "</section>"])
            for anchor, title, parts in self._sections
        )
        return (
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header><h1>{escape(self.title)}</h1>{subtitle}</header>\n{contents}\n{sections}\n"
            f"<footer>Written by smalti.</footer>\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the file, whole or not at all, making its folder if need be; -> its path."""
        path = Path(path)
        write_text(path, self.html())
        return path

    def _add(self, part: str) -> None:
        if not self._sections:
            self._sections.append(("start", "", []))
        self._sections[-1][2].append(part)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(value: Any) -> str:
    """A value for reading: four significant digits, thousands apart, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return escape(str(value))
