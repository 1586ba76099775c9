"""The report as text: page, style, scripts and data in one file that asks nothing of any network."""

from __future__ import annotations

import json
from pathlib import Path

from resd_lightning.report.collect import Page

_FOLDER = Path(__file__).parent
_PIECES = {
    "style": ("vendor/uPlot.min.css", "style.css"),
    "script": ("vendor/uPlot.iife.min.js", "report.js"),
}


def page_text(page: Page) -> str:
    """Return the whole HTML file.

    The data stand in elements of their own, JSON that no script runs: one for all runs, and one for each update's
    rollouts, which the page parses when they are looked at.
    """
    html = (_FOLDER / "page.html").read_text(encoding="utf-8")
    data = [data_element("runs", {"runs": page.runs, "differing": page.differing})]
    for number, by_update in enumerate(page.rollouts):
        data.append(data_element(f"texts-{number}", page.texts[number]))
        data += [data_element(f"rollouts-{number}-{update}", lines) for update, lines in by_update.items()]
    pieces = {
        name: "\n".join((_FOLDER / file).read_text(encoding="utf-8") for file in files)
        for name, files in _PIECES.items()
    }
    # Data last, and by one cut: nothing that a model wrote is searched for a marker.
    for name, text in pieces.items():
        html = html.replace(f"/* {name} */", text)
    before, after = html.split("<!-- data -->")
    return before + "\n".join(data) + after


def data_element(id_: str, content: object) -> str:
    """Return an element that holds JSON, in which no text can end the element or begin another."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{id_}">{text}</script>'
