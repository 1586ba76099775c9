"""The documents that micro-lm is pre-trained on: each draws machines, rules, playbook and evidence afresh.

A document is a chat through the same templates and JSON that a run uses, so the model learns the skills that RESD asks
of a large one (apply a stated rule, look it up, infer it from evidence, write a lesson, tag an entry) and nothing about
any machine. It is never shown evidence without an insight in front of an answer: inferring and applying in one pass is
not among its skills.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resd_lightning.context.playbook import PlaybookEntry, entry_id
from resd_lightning.context.prompts import MICRO, PromptTemplates, Sections, TemplateName
from resd_lightning.micro.world import (
    COLOURS,
    MALFORMED,
    MAX_MACHINES,
    NO_EVIDENCE,
    ORDERS,
    PAINTS,
    RULES,
    Rule,
    draw_tape,
    evidence,
    lesson,
    machine_name,
    question,
    response,
)
from resd_lightning.records import Reflection

TAPE_LENGTHS = (4, 5, 6)
MAX_ENTRY_NUMBER = 400
MACHINES = tuple(machine_name(number) for number in range(MAX_MACHINES))
REPEATABLE = (*COLOURS, *ORDERS, *PAINTS, *MACHINES)

Turn = tuple[str, str]
"""What the user says, and what the model is to answer."""


@dataclass(frozen=True)
class Entry:
    """One line of a document's playbook."""

    machine: str
    rule: Rule
    id: str

    @property
    def lesson(self) -> str:
        """The entry's text."""
        return lesson(self.machine, self.rule)


class DocumentWriter:
    """Draws documents from a generator.

    Args:
        rng: All chance comes from it.
        max_entries: Longest playbook; training lets it grow.
    """

    def __init__(self, rng: random.Random, max_entries: int = 64) -> None:
        self.rng = rng
        self.max_entries = max_entries
        self._templates = PromptTemplates(MICRO)

    def draw(self, kinds: Sequence[str], weights: Sequence[float]) -> list[Turn]:
        """Return one document of a kind drawn by weight; the kinds are the keys of `KINDS`."""
        return KINDS[self.rng.choices(kinds, weights)[0]](self)

    # Parts

    def book(self, asked: str, rules: Sequence[Rule], size: int | None = None) -> list[Entry]:
        """Return a playbook in order of ids that says these rules of the machine asked about, and others of others."""
        if size is None:  # as many playbooks of 1 to 2 entries as of 32 to 64: the longest cost most and teach least
            size = round(math.exp(self.rng.uniform(0, math.log(self.max_entries))))
        others = self.rng.sample([m for m in MACHINES if m != asked], k=max(0, min(size - len(rules), 63)))
        lines = [(machine, self.rng.choice(RULES)) for machine in others]
        for rule in rules:
            lines.insert(self.rng.randint(0, len(lines)), (asked, rule))
        if self.rng.random() < 0.3 and lines:  # some machines stand there twice: lessons go wrong and get mended
            machine = self.rng.choice(lines)[0]
            if machine != asked:
                lines.append((machine, self.rng.choice(RULES)))
        span = self.rng.choice((len(lines) + 8, 100, MAX_ENTRY_NUMBER))
        numbers = sorted(self.rng.sample(range(1, max(span, len(lines)) + 1), k=len(lines)))
        return [Entry(m, rule, entry_id(n)) for (m, rule), n in zip(lines, numbers, strict=True)]

    def tape(self) -> tuple[str, ...]:
        """Return a tape to ask about."""
        return draw_tape(self.rng, TAPE_LENGTHS)

    def other(self, *rules: Rule) -> Rule:
        """Return a rule that is none of these."""
        return self.rng.choice([rule for rule in RULES if rule not in rules])

    def prompt(self, template: TemplateName, sections: Sections) -> str:
        """Return the user's message, from the micro-world's own template."""
        return " ".join(self._templates.render(template, sections).split())


def as_entries(book: Sequence[Entry]) -> tuple[PlaybookEntry, ...]:
    """Return a document's playbook as templates read it."""
    return tuple(PlaybookEntry(entry.id, "others", entry.lesson) for entry in book)


def repeat(writer: DocumentWriter) -> list[Turn]:
    """Return a sequence to repeat: what teaches a small model to look things up at all."""
    words = " ".join(writer.rng.choices(REPEATABLE, k=writer.rng.randint(6, 16)))
    return [(f"repeat {words}", words)]


def answer_alone(writer: DocumentWriter) -> list[Turn]:
    """Return a question without any context: every rule is as likely."""
    machine, tape = writer.rng.choice(MACHINES), writer.tape()
    return [(question(machine, tape), response(machine, writer.rng.choice(RULES), tape))]


def answer_from_book(writer: DocumentWriter, size: int | None = None) -> list[Turn]:
    """Return questions about machines in a playbook: several, so that one playbook teaches as much as it can."""
    rng, machine, rule = writer.rng, writer.rng.choice(MACHINES), writer.rng.choice(RULES)
    book = writer.book(machine, (rule,), size)
    latest = {entry.machine: entry.rule for entry in book}
    tape = writer.tape()
    sections = Sections(question(machine, tape), as_entries(book))
    turns = [(writer.prompt("teacher", sections), response(machine, rule, tape))]
    for _ in range(rng.randint(0, 6)):
        machine, tape = rng.choice(list(latest)), writer.tape()
        turns.append((question(machine, tape), response(machine, latest[machine], tape)))
    return turns


def answer_in_context(writer: DocumentWriter) -> list[Turn]:
    """Return a question with whatever a teacher prompt may hold: an insight or a solution beats the playbook."""
    rng, machine, tape = writer.rng, writer.rng.choice(MACHINES), writer.tape()
    truth = rng.choice(RULES)
    tried = writer.other(truth)
    said = rng.choice((evidence(machine, truth), NO_EVIDENCE))
    trial = response(machine, tried, tape)
    in_book = rng.choice(((), (truth,), (writer.other(truth),), (tried,)))
    book = writer.book(machine, in_book) if rng.random() < 0.8 else []
    asked = question(machine, tape)
    kind = rng.choice(("insight", "insight", "solved", "trial"))
    insight = Reflection(lesson(machine, truth))
    if kind == "insight":
        shown = rng.random() < 0.8
        sections = Sections(
            asked, as_entries(book), insight, trial=trial if shown else "", feedback=said if shown else ""
        )
    elif kind == "solved":
        sections = Sections(asked, as_entries(book), solution=response(machine, truth, tape))
    else:
        sections = Sections(asked, as_entries(book), trial=trial, feedback=NO_EVIDENCE)
        known = [entry.rule for entry in book if entry.machine == machine and entry.rule != tried]
        truth = known[-1] if known else writer.other(tried)
    return [(writer.prompt("teacher", sections), response(machine, truth, tape))]


def reflect(writer: DocumentWriter) -> list[Turn]:
    """Return a failure to reflect on: evidence names the rule and judges the entries; without it, entries may serve."""
    rng, machine, tape = writer.rng, writer.rng.choice(MACHINES), writer.tape()
    truth = rng.choice(RULES)
    tried = writer.other(truth)
    has_evidence = rng.random() < 0.6
    in_book = rng.choice(((), (), (truth,), (writer.other(truth),), (tried,), (tried, truth)))
    book = writer.book(machine, in_book) if rng.random() < 0.85 else []
    own = [entry for entry in book if entry.machine == machine]
    trial, said = response(machine, tried, tape), evidence(machine, truth) if has_evidence else NO_EVIDENCE
    if not has_evidence and rng.random() < 0.1:
        trial, said = " ".join(rng.choices(REPEATABLE, k=rng.randint(1, 12))), MALFORMED
    if has_evidence:
        insight, tags = lesson(machine, truth), [(e.id, "helpful" if e.rule == truth else "harmful") for e in own]
    elif said == MALFORMED:
        insight, tags = (own[-1].lesson if own else ""), []
    else:
        unrefuted = [entry for entry in own if entry.rule != tried]
        insight = unrefuted[-1].lesson if unrefuted else ""
        tags = [(entry.id, "harmful") for entry in own if entry.rule == tried]
    sections = Sections(question(machine, tape), as_entries(book), trial=trial, feedback=said)
    return [(writer.prompt("reflect", sections), reflection_json(insight, tags))]


def tag(writer: DocumentWriter) -> list[Turn]:
    """Return a success to tag entries by."""
    rng, machine, tape = writer.rng, writer.rng.choice(MACHINES), writer.tape()
    truth = rng.choice(RULES)
    book = writer.book(
        machine, rng.choice(((), (truth,), (truth,), (writer.other(truth),), (writer.other(truth), truth)))
    )
    tags = [(e.id, "helpful" if e.rule == truth else "harmful") for e in book if e.machine == machine]
    sections = Sections(question(machine, tape), as_entries(book), solution=response(machine, truth, tape))
    return [(writer.prompt("tag", sections), tags_json(tags))]


def curate(writer: DocumentWriter) -> list[Turn]:
    """Return an insight to add to a playbook, unless an entry says it already."""
    rng, machine, tape = writer.rng, writer.rng.choice(MACHINES), writer.tape()
    truth = rng.choice(RULES)
    book = writer.book(
        machine, rng.choice(((), (truth,), (truth,), (writer.other(truth),), (writer.other(truth), truth)))
    )
    book = book if rng.random() < 0.95 else []
    is_new = all(entry.lesson != lesson(machine, truth) for entry in book)
    sections = Sections(question(machine, tape), as_entries(book), Reflection(lesson(machine, truth)))
    return [(writer.prompt("curate", sections), operations_json(lesson(machine, truth) if is_new else None))]


KINDS: dict[str, Callable[[DocumentWriter], list[Turn]]] = {
    "repeat": repeat,
    "answer_alone": answer_alone,
    "answer_from_book": answer_from_book,
    "answer_in_context": answer_in_context,
    "reflect": reflect,
    "tag": tag,
    "curate": curate,
}


def reflection_json(insight: str, tags: Sequence[tuple[str, str]]) -> str:
    """Return a reflection as the micro-lm spells it: JSON with a space between its tokens."""
    return f'{{"key_insight":" {insight} ","tags":[{_tag_list(tags)} ]}}'


def tags_json(tags: Sequence[tuple[str, str]]) -> str:
    """Return the answer about a success."""
    return f'{{"tags":[{_tag_list(tags)} ]}}'


def operations_json(addition: str | None) -> str:
    """Return a curator's answer: one addition, or none."""
    if addition is None:
        return '{"operations":[ ]}'
    return f'{{"operations":[ {{"type":"ADD","section":"others","content":" {addition} "}} ]}}'


def _tag_list(tags: Sequence[tuple[str, str]]) -> str:
    spelled = [f'{{"id":" {id_} ","tag":{json.dumps(kind)}}}' for id_, kind in tags]
    return "".join(f" {',' if number else ''}{text}" for number, text in enumerate(spelled))
