"""Results as a table in the terminal and as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem .4rem; border-bottom: 1px solid var(--line); text-align: left; }
td:not(:first-child), th:not(:first-child) { text-align: right; }
figure { margin: 1rem 0; } img { max-width: 100%; border-radius: 6px; }
figcaption { opacity: .75; font-size: .9rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a title; every row has as many cells as the header."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture (H, W, 3) uint8 with a title and a sentence about it."""

    title: str
    caption: str
    pixels: np.ndarray


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align a table for the terminal: the first column to the left, numbers to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        return "  ".join([first, *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip()

    body = [aligned(row) for row in rows]
    return "\n".join([aligned(header), "  ".join("─" * width for width in widths), *body] if any(header) else body)


def html_report(path: Path, title: str, sections: Sequence[Table | Picture]) -> None:
    """Write one page with everything in it."""
    parts = [_table_html(part) if isinstance(part, Table) else _picture_html(part) for part in sections]
    page = (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _table_html(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = row(table.header, "th") if any(table.header) else ""
    body = "".join(row(cells, "td") for cells in table.rows)
    return f"<h2>{html.escape(table.title)}</h2>\n<table>{head}{body}</table>"


def _picture_html(picture: Picture) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    caption = html.escape(picture.caption)
    return (
        f"<h2>{html.escape(picture.title)}</h2>\n"
        f"<figure><img src='{source}' alt='{caption}'><figcaption>{caption}</figcaption></figure>"
    )
