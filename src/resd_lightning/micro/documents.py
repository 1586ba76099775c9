"""The documents that micro-lm is pre-trained on: each draws machines, rules, playbook and evidence afresh.

A document is a chat through the same templates and JSON that a run uses, so the model learns the skills that RESD
asks of a large one (apply a stated rule, look it up, infer it from evidence, write a lesson, judge entries, leave out
what is said already) and nothing about any machine. Whoever is shown evidence without an insight makes nothing of it,
in these documents: without them a model of this kind learns to infer and apply in one pass, and raw feedback would do
for it what it takes a reflection to do for a large model on a hard task. Most documents that show a playbook ask about
several machines, one turn each: reading a playbook is most of the cost, and finding an entry is learned last.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from resd_lightning.context.playbook import PlaybookEntry, entry_id
from resd_lightning.context.prompts import MICRO, PromptTemplates, Sections, TemplateName
from resd_lightning.micro.tokens import MAX_ENTRIES_EVER
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
MAX_TURNS = 8
TWICE_SHARE = 0.4
"""Share of a playbook's pairs of entries that are about one machine, where such pairs are drawn at all."""
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


Verdict = tuple[Entry, str]
"""An entry, and helpful or harmful."""


@dataclass(frozen=True)
class Topic:
    """What one turn is about: a machine, what the playbook says of it, and a tape.

    Attributes:
        machine: The machine.
        entry: The playbook's entry about it; the latest where it has two, which is the one that counts.
        tape: The tape asked about.
        truth: What the machine does, as this turn has it: what its entry says, or something else.
        tried: The rule of a failed trial, never the truth.
    """

    machine: str
    entry: Entry | None
    tape: tuple[str, ...]
    truth: Rule
    tried: Rule

    @property
    def question(self) -> str:
        """The prompt of the task."""
        return question(self.machine, self.tape)

    @property
    def trial(self) -> str:
        """The failed response."""
        return response(self.machine, self.tried, self.tape)

    @property
    def solution(self) -> str:
        """The right response."""
        return response(self.machine, self.truth, self.tape)

    @property
    def insight(self) -> Reflection:
        """The reflection that states the truth."""
        return Reflection(lesson(self.machine, self.truth))

    @property
    def unrefuted(self) -> Rule | None:
        """What the entry says, unless the failed trial speaks against it."""
        return None if self.entry is None or self.entry.rule == self.tried else self.entry.rule

    def compared_with(self, rule: Rule) -> str:
        """Return the machine's entry spelled out, and compared with a rule part by part; nothing without an entry.

        A model this small can compare two words that stand side by side, and hardly two rules that it has to find.
        """
        if self.entry is None:
            return ""
        found = self.entry.rule
        compared = f"{_compare(found.order, rule.order)} {_compare(found.paint, rule.paint)}"
        return f"{self.entry.lesson} {self.entry.id} : {compared}"

    @property
    def verdict(self) -> Verdict | None:
        """What the truth says of the machine's entry."""
        if self.entry is None:
            return None
        return self.entry, "helpful" if self.entry.rule == self.truth else "harmful"


def _compare(found: str, wanted: str) -> str:
    return f"{found} {wanted} {'same' if found == wanted else 'other'}"


Asked = tuple[TemplateName, Sections, str]
"""A turn before it is rendered: template, sections without the playbook, and the answer."""


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
        """Return one document of a kind drawn by weight; the kinds are the keys of `DOCUMENTS`."""
        return DOCUMENTS[self.rng.choices(kinds, weights)[0]](self)

    def book(self, size: int | None = None) -> list[Entry]:
        """Return a playbook in order of ids; in half of them some machines stand there twice, as lessons get mended."""
        if size is None:  # as many playbooks of 1 to 2 entries as of 32 to 64: the longest cost most and teach least
            size = round(math.exp(self.rng.uniform(0, math.log(self.max_entries))))
        twice = sum(self.rng.random() < TWICE_SHARE for _ in range(size // 2)) if self.rng.random() < 0.5 else 0
        machines = self.rng.sample(MACHINES, k=size - twice)
        machines += self.rng.sample(machines, k=twice)
        self.rng.shuffle(machines)
        span = self.rng.choice((size + 8, 4 * size + 50, MAX_ENTRIES_EVER))
        numbers = sorted(self.rng.sample(range(1, span + 1), k=size))
        return [Entry(m, self.rng.choice(RULES), entry_id(n)) for m, n in zip(machines, numbers, strict=True)]

    def topic(self, machine: str, book: Sequence[Entry], trust: float = 0.5) -> Topic:
        """Return a turn's facts; with probability `trust` the machine's entry, where there is one, is true."""
        entry = next((entry for entry in reversed(book) if entry.machine == machine), None)
        truth = entry.rule if entry and self.rng.random() < trust else self.rng.choice(RULES)
        is_tried = entry is not None and entry.rule != truth and self.rng.random() < 0.5
        tried = entry.rule if entry and is_tried else self.other(truth)
        return Topic(machine, entry, self.tape(), truth, tried)

    def tape(self) -> tuple[str, ...]:
        """Return a tape to ask about."""
        return draw_tape(self.rng, TAPE_LENGTHS)

    def other(self, rule: Rule) -> Rule:
        """Return another rule."""
        return self.rng.choice([one for one in RULES if one != rule])

    def prompt(self, template: TemplateName, sections: Sections) -> str:
        """Return the user's message, from the micro-world's own template."""
        return " ".join(self._templates.render(template, sections).split())

    def conversation(self, kinds: Sequence[str], machines: Sequence[str], book: Sequence[Entry]) -> list[Turn]:
        """Return one turn of each kind about each machine; the first turn shows the playbook."""
        turns = []
        for number, (kind, machine) in enumerate(zip(kinds, machines, strict=True)):
            template, sections, answer = ASKED[kind](self, machine, book)
            shown = sections if number else with_entries(sections, book)
            turns.append((self.prompt(template, shown), answer))
        return turns


def with_entries(sections: Sections, book: Sequence[Entry]) -> Sections:
    """Return the sections with a document's playbook in front."""
    entries = tuple(PlaybookEntry(entry.id, "others", entry.lesson) for entry in book)
    return replace(sections, entries=entries)


# One turn of each kind


def look_up(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a question that the playbook answers, or that only a guess does."""
    topic = writer.topic(machine, book, trust=1.0)
    return "teacher", Sections(topic.question), topic.solution


def apply_insight(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a question with an insight, which beats the playbook."""
    topic = writer.topic(machine, book)
    sections = Sections(topic.question, reflection=topic.insight)
    if writer.rng.random() < 0.8:
        said = writer.rng.choice((evidence(machine, topic.truth), NO_EVIDENCE))
        sections = replace(sections, trial=topic.trial, feedback=said)
    return "teacher", sections, topic.solution


def copy_solution(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a question with its solution."""
    topic = writer.topic(machine, book)
    return "teacher", Sections(topic.question, solution=topic.solution), topic.solution


def try_another(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a question after a failed trial: what an entry says unless it was tried, else any other rule.

    Evidence changes nothing: to use it takes a reflection.
    """
    topic = writer.topic(machine, book)
    rule = topic.unrefuted or writer.other(topic.tried)
    said = writer.rng.choice((evidence(machine, topic.truth), NO_EVIDENCE))
    sections = Sections(topic.question, trial=topic.trial, feedback=said)
    return "teacher", sections, response(machine, rule, topic.tape)


def reflect(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a failure to reflect on: evidence names the rule and judges the entries; without it, entries may serve."""
    rng, topic = writer.rng, writer.topic(machine, book)
    trial, said, analysis = topic.trial, NO_EVIDENCE, topic.compared_with(topic.tried)
    if rng.random() < 0.6:
        said, analysis = evidence(machine, topic.truth), topic.compared_with(topic.truth)
        insight, verdict = topic.insight.key_insight, topic.verdict
    elif rng.random() < 0.1:
        trial, said = " ".join(rng.choices(REPEATABLE, k=rng.randint(1, 12))), MALFORMED
        insight, verdict, analysis = (topic.entry.lesson if topic.entry else ""), None, ""
    else:
        insight = lesson(machine, topic.unrefuted) if topic.unrefuted else ""
        verdict = (topic.entry, "harmful") if topic.entry and not topic.unrefuted else None
    return "reflect", Sections(topic.question, trial=trial, feedback=said), reflection_json(analysis, insight, verdict)


def tag(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return a success to tag entries by."""
    topic = writer.topic(machine, book)
    answer = tags_json(topic.compared_with(topic.truth), topic.verdict)
    return "tag", Sections(topic.question, solution=topic.solution), answer


def curate(writer: DocumentWriter, machine: str, book: Sequence[Entry]) -> Asked:
    """Return an insight to add to a playbook, unless the machine's entry says it already."""
    topic = writer.topic(machine, book)
    said = topic.insight.key_insight
    is_new = topic.entry is None or topic.entry.lesson != said
    answer = operations_json(topic.compared_with(topic.truth), said if is_new else None)
    return "curate", Sections(topic.question, reflection=topic.insight), answer


ASKED: dict[str, Callable[[DocumentWriter, str, Sequence[Entry]], Asked]] = {
    "look_up": look_up,
    "apply_insight": apply_insight,
    "copy_solution": copy_solution,
    "try_another": try_another,
    "reflect": reflect,
    "tag": tag,
    "curate": curate,
}
WITHOUT_BOOK = {"apply_insight": 0.45, "copy_solution": 0.15, "try_another": 0.05, "reflect": 0.35}
"""Weights of the turns that practise a skill without a playbook around it."""
TURN_WEIGHTS = {
    "look_up": 0.2,
    "apply_insight": 0.08,
    "copy_solution": 0.05,
    "try_another": 0.1,
    "reflect": 0.27,
    "tag": 0.15,
    "curate": 0.15,
}


# Whole documents


def repeat(writer: DocumentWriter) -> list[Turn]:
    """Return a sequence to repeat: what teaches a small model to look things up at all."""
    words = " ".join(writer.rng.choices(REPEATABLE, k=writer.rng.randint(6, 32)))
    return [(f"repeat {words}", words)]


def recall(writer: DocumentWriter) -> list[Turn]:
    """Return a playbook and machines to look up in it: many lookups to a document, and nothing else."""
    book = writer.book()
    latest = {entry.machine: entry for entry in book}
    asked = writer.rng.sample(list(latest), k=min(len(latest), writer.rng.randint(1, 24)))
    shown = " ".join(f"{entry.lesson} {entry.id} ;" for entry in book)
    found = " ; ".join(f"{latest[machine].lesson} {latest[machine].id}" for machine in asked)
    return [(f"book {shown} recall {' '.join(asked)}", found)]


def converse(writer: DocumentWriter) -> list[Turn]:
    """Return turns of drawn kinds about different machines, most of them in the playbook shown first."""
    rng = writer.rng
    book = writer.book() if rng.random() < 0.93 else []
    known = sorted({entry.machine for entry in book})
    unknown = [machine for machine in MACHINES if machine not in known]
    machines: list[str] = []
    for _ in range(1 if rng.random() < 0.3 else rng.randint(2, MAX_TURNS)):
        pool = known if known and (rng.random() < 0.75 or not unknown) else unknown
        machine = rng.choice(pool)
        pool.remove(machine)
        machines.append(machine)
    return writer.conversation(_kinds(writer, TURN_WEIGHTS, len(machines)), machines, book)


def practise(writer: DocumentWriter) -> list[Turn]:
    """Return turns without a playbook: apply a stated rule, copy a solution, guess, infer a rule from evidence."""
    machines = writer.rng.sample(MACHINES, k=writer.rng.randint(1, MAX_TURNS))
    return writer.conversation(_kinds(writer, WITHOUT_BOOK, len(machines)), machines, [])


def _kinds(writer: DocumentWriter, weights: dict[str, float], count: int) -> list[str]:
    return writer.rng.choices(list(weights), list(weights.values()), k=count)


DOCUMENTS: dict[str, Callable[[DocumentWriter], list[Turn]]] = {
    "repeat": repeat,
    "recall": recall,
    "practise": practise,
    "converse": converse,
}


# The JSON of its answers, with a space between its tokens


def reflection_json(analysis: str, insight: str, verdict: Verdict | None) -> str:
    """Return a reflection as the micro-lm spells it."""
    return f'{{"analysis":" {analysis} ","key_insight":" {insight} ","tags":[{_tag(verdict)} ]}}'


def tags_json(analysis: str, verdict: Verdict | None) -> str:
    """Return the answer about a success."""
    return f'{{"analysis":" {analysis} ","tags":[{_tag(verdict)} ]}}'


def operations_json(analysis: str, addition: str | None) -> str:
    """Return a curator's answer: one addition, or none."""
    added = "" if addition is None else f' {{"type":"ADD","section":"others","content":" {addition} "}}'
    return f'{{"analysis":" {analysis} ","operations":[{added} ]}}'


def _tag(verdict: Verdict | None) -> str:
    return "" if verdict is None else f' {{"id":" {verdict[0].id} ","tag":"{verdict[1]}"}}'
