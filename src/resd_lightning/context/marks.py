"""Where in a rendered prompt each section stands, whatever the template: it is rendered once more, with marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resd_lightning.context.playbook import PlaybookEntry
from resd_lightning.context.prompts import SECTION_NAMES, SectionName, Sections
from resd_lightning.records import Reflection, Span

OPEN, CLOSE = "\ue000", "\ue001"
"""Around what a section puts into the prompt; from the private use area of Unicode, where no text of people stands."""
_CODES = {chr(0xE010 + number): name for number, name in enumerate(SECTION_NAMES)}


def section_spans(render: Callable[[Sections], str], sections: Sections, text: str) -> tuple[Span, ...]:
    """Return where each section stands in a prompt, in order of place; what lies between is the template's.

    A section's heading belongs to it as far as it stands on the section's first line. Empty where the text has marks of
    its own, or where a template does something else with a marked text.

    Args:
        render: Renders a template.
        sections: What the prompt holds.
        text: The prompt, as rendered.
    """
    if any(mark in text for mark in (OPEN, CLOSE, *_CODES)):
        return ()
    plain, spans = _unmarked(render(_marked(sections)))
    return _grown(plain, spans) if plain == text else ()


def _marked(sections: Sections) -> Sections:
    def mark(name: SectionName, text: str) -> str:
        code = next(code for code, own in _CODES.items() if own == name)
        return f"{OPEN}{code}{text}{CLOSE}" if text else text

    def entry(one: PlaybookEntry) -> PlaybookEntry:
        return replace(one, id=mark("playbook", one.id), text=mark("playbook", one.text))

    return replace(
        sections,
        entries=tuple(entry(one) for one in sections.entries),
        reflection=sections.reflection and _marked_reflection(sections.reflection, mark),
        trial=mark("trial", sections.trial),
        feedback=mark("feedback", sections.feedback),
        solution=mark("solution", sections.solution),
    )


def _marked_reflection(reflection: Reflection, mark: Callable[[SectionName, str], str]) -> Reflection:
    return Reflection(
        mark("reflection", reflection.key_insight),
        mark("reflection", reflection.analysis),
        mark("reflection", reflection.error),
        mark("reflection", reflection.root_cause),
        mark("reflection", reflection.right_approach),
        reflection.tags,
    )


def _unmarked(text: str) -> tuple[str, list[Span]]:
    """Return a text without its marks, and what stood between them; neighbours of one section are one."""
    plain = ""
    spans: list[Span] = []
    before, *marked = text.split(OPEN)
    plain += before
    for part in marked:
        inside, _, after = part[1:].partition(CLOSE)
        name, start = _CODES[part[0]], len(plain)
        plain += inside
        if spans and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1], len(plain))
        else:
            spans.append((name, start, len(plain)))
        plain += after
    return plain, spans


def _grown(text: str, spans: list[Span]) -> tuple[Span, ...]:
    """Return the spans from the beginning of their first lines, as far as no other one stands there."""
    grown: list[Span] = []
    for name, start, end in spans:
        line = text.rfind("\n", 0, start) + 1
        grown.append((name, max(line, grown[-1][2] if grown else 0), end))
    return tuple(grown)
