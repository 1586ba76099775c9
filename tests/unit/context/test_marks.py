"""Spans of a teacher's prompt: the sections' own texts, under any template."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resd_lightning.context.marks import OPEN, section_spans
from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import SECTION_NAMES, PromptTemplates, Sections
from resd_lightning.records import Reflection, Span

FULL = Sections(
    "What is 1 + 1?",
    (PlaybookEntry("e00001", "strategies", "count {twice}", helpful=2), PlaybookEntry("e00002", "others", "be brief")),
    Reflection("carry nothing", error="guessed"),
    trial="It is 3.\nSurely.",
    feedback="3 is wrong.",
    solution="2",
)


def spans(sections: Sections, folder: str | None = None) -> tuple[str, tuple[Span, ...]]:
    templates = PromptTemplates(folder)
    text = templates.render("teacher", sections)
    return text, section_spans(lambda marked: templates.render("teacher", marked), sections, text)


@pytest.mark.parametrize("folder", [None, "micro"])
def test_each_section_stands_where_its_span_says_and_spans_are_in_order_and_apart(folder: str | None) -> None:
    text, found = spans(FULL, folder)
    shown = {name: text[start:end] for name, start, end in found}
    assert set(shown) == set(SECTION_NAMES)
    for name, own in {
        "playbook": ("e00001", "count {twice}", "be brief"),
        "reflection": ("carry nothing",),
        "trial": (FULL.trial,),
        "feedback": (FULL.feedback,),
        "solution": (FULL.solution,),
    }.items():
        assert all(part in shown[name] for part in own), name
    assert all(FULL.question not in part for part in shown.values())
    places = [place for _, start, end in found for place in (start, end)]
    assert places == sorted(places)


def test_a_section_that_is_not_shown_has_no_span() -> None:
    _, found = spans(replace(FULL, trial="", entries=()))
    assert {name for name, _, _ in found} == {"reflection", "feedback", "solution"}


def test_a_text_with_marks_of_its_own_and_a_template_that_changes_texts_have_no_spans(tmp_path: Path) -> None:
    assert spans(replace(FULL, trial=f"{OPEN}odd"))[1] == ()
    (tmp_path / "teacher.jinja").write_text("{{ question }} {{ trial[:2] }} {{ feedback|length }}")
    assert spans(FULL, str(tmp_path))[1] == ()
